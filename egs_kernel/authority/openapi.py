"""The OpenAPI document of the authority: its schemas are made of the types that requests are decoded by."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Final

import msgspec

from egs_kernel import __version__
from egs_kernel.authority.api import Issued, Pending, Problem, Status, Waiting
from egs_kernel.authority.approvals import ApprovalDocument
from egs_kernel.authority.intent import NewRequest, Renewal

_TYPES: Final = (NewRequest, Renewal, ApprovalDocument, Issued, Pending, Waiting, Problem, Status)

_FORBIDS = re.compile(r"\^\(\?!\[\\s\\S\]\*\[(\^?)((?:[^\]\\]|\\.)*)\]\)")
"""How our patterns begin that forbid characters anywhere (artifact/strict.py)."""

_PROBLEMS: Final = {
    "400": "The request is malformed.",
    "403": "Denied: by policy, by an approver, or because it is not what it says it is.",
    "404": "There is no such thing, or it is none of the asker's.",
    "409": "The idempotency key was used for another request.",
    "413": "The request is too large.",
    "429": "Too many requests, or the quota is used up.",
    "503": "Nothing can be decided or recorded now.",
}


@cache
def document() -> bytes:
    """The document, as JSON."""
    return json.dumps(_document(), indent=1).encode()


def _document() -> dict[str, Any]:
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "egs-authority",
            "version": __version__,
            "description": "Intent in, artifact or reasoned denial out. Over the Unix socket the kernel says who asks; over "
            "HTTPS the client's X.509-SVID does. docs/authority.md",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {"schemas": _plain(components)},
    }


def _plain(value: Any) -> Any:
    """Schemas whose patterns every tool understands: without looking ahead, and the same."""
    if isinstance(value, dict):
        return {
            name: _straight(item) if name == "pattern" and isinstance(item, str) else _plain(item)
            for name, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _straight(pattern: str) -> str:
    r"""`^(?![\\s\\S]*[FORBIDDEN])BEGINNING` → `^BEGINNING[^FORBIDDEN]*$`."""
    found = _FORBIDS.match(pattern)
    if found is None or pattern.endswith("$)"):
        return pattern
    negated, characters = found.groups()
    beginning = pattern[found.end() :]
    return f"^{beginning}[{characters if negated else f'^{characters}'}]*$"


def _paths() -> dict[str, Any]:
    request = _parameter("request", "A request's id.", "^[0-9a-f]{32}$")
    artifact = _parameter("artifact", "An artifact's id: the SHA-256 of its payload.", "^[0-9a-f]{64}$")
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key and the same intent get the same answer, for an hour and as long as the artifact.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
    }
    issued = {"200": ("An artifact.", "Issued"), "202": ("It waits for approvals.", "Pending")}
    listed = {"200": ("What waits.", "Waiting")}
    return {
        "/v1/requests": {
            "post": _operation(
                "ask",
                "Ask for an artifact.",
                issued,
                ("400", "403", "409", "413"),
                body="NewRequest",
                parameters=[key],
            ),
            "get": _operation("waiting", "Requests that wait for approvals.", listed, ()),
        },
        "/v1/requests/{request}": {
            "get": _operation(
                "show", "What became of a request.", issued, ("403", "404"), parameters=[request]
            ),
        },
        "/v1/requests/{request}/approvals": {
            "post": _operation(
                "approve",
                "Hand in what a person signed: an approval, or a no.",
                issued,
                ("400", "403", "404", "413"),
                body="ApprovalDocument",
                parameters=[request],
            ),
        },
        "/v1/artifacts/{artifact}/renewals": {
            "post": _operation(
                "renew",
                "The successor of an artifact that is still valid: the same intent, decided anew.",
                issued,
                ("400", "403", "404", "413"),
                body="Renewal",
                parameters=[artifact],
            ),
        },
        "/v1/status": {
            "get": _operation("status", "The authority.", {"200": ("The authority.", "Status")}, ())
        },
        "/v1/openapi.json": {
            "get": {
                "operationId": "openapi",
                "summary": "This document.",
                "responses": {
                    "200": {
                        "description": "This document.",
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            }
        },
    }


def _operation(  # noqa: PLR0913 - the parts of an operation, by name
    name: str,
    summary: str,
    good: dict[str, tuple[str, str]],
    problems: tuple[str, ...],
    *,
    body: str | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    responses = {code: _answer(text, schema) for code, (text, schema) in good.items()}
    responses |= {code: _answer(_PROBLEMS[code], "Problem") for code in (*problems, "429", "503")}
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": _content(schema)}


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _parameter(name: str, text: str, pattern: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": text,
        "schema": {"type": "string", "pattern": pattern},
    }
