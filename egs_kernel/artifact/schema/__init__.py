"""The published JSON Schemas, generated from the types in `artifact/statement.py`.

Run `python -m egs_kernel.artifact.schema` to write them again after a change of the types; a test
compares. Rules that join several fields (notBefore before notAfter, one program, the size of argv, no
empty parts) are beyond JSON Schema: docs/artifact.md has them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

import msgspec

from egs_kernel.artifact.statement import Predicate, Statement

SCHEMAS: Final = {
    "statement.schema.json": (Statement, "An in-toto Statement v1 that authorizes an execution"),
    "predicate.schema.json": (Predicate, "The predicate urn:egs-001:execution-authorization:v1"),
}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def published(name: str) -> dict[str, Any]:
    """The published schema of that file name, as it is in the package."""
    content: dict[str, Any] = json.loads(files(__name__).joinpath(name).read_bytes())
    return content


def generate(name: str) -> dict[str, Any]:
    """The schema of that file name, from the types."""
    kind, title = SCHEMAS[name]
    (_reference,), components = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    definitions = {key: _strict(value) for key, value in sorted(components.items())}
    schema = definitions.pop(kind.__name__)
    return {"$schema": _DIALECT, **schema, "title": title, "$defs": definitions}


def _strict(value: Any) -> Any:
    """Absent is the only way to say nothing: neither null nor a written default is allowed."""
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "anyOf" in value and {"type": "null"} in value["anyOf"]:
        choices = [choice for choice in value["anyOf"] if choice != {"type": "null"}]
        rest = {key: item for key, item in value.items() if key not in ("anyOf", "default")}
        return _strict({**rest, **(choices[0] if len(choices) == 1 else {"anyOf": choices})})
    strict = {key: _strict(item) for key, item in value.items() if key != "default"}
    if value.get("default") in ([], {}, ()) and value.get("type") in ("array", "object"):
        strict["minItems" if value["type"] == "array" else "minProperties"] = 1
    return strict
