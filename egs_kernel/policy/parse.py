"""Cedar texts to policies, each with an id of its own, checked against the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cedarpy import PolicySet, Schema, policies_to_json_str, validate_policies

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.policy.places import Place, locate, named_in, statements

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_KNOWN_ANNOTATIONS: Final = frozenset({"id", "advice", "description"})
_NEXT = "Correct it, then: egs policy check"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One policy.

    Attributes:
        id: its `@id`.
        effect: permit or forbid.
        advice: what it tells whoever it denies, or permits; "": nothing.
        text: as it was written.
        json: its JSON form.
        file: the text that it is from.
        place: where it begins there.
    """

    id: str
    effect: str
    advice: str
    text: str
    json: dict[str, Any]
    file: str
    place: Place


def parse_policies(texts: Mapping[str, str]) -> dict[str, Policy]:
    """The policies of several texts, by their ids.

    Args:
        texts: Cedar policies by the name of their file.

    Raises:
        UsageError: POLICY_INVALID, with file, line and column.
    """
    policies: dict[str, Policy] = {}
    for file, text in sorted(texts.items()):
        for policy in _parse(file, text):
            if policy.id in policies:
                other = policies[policy.id]
                raise invalid(
                    f"{file}:{policy.place}: the id {policy.id} is that of {other.file}:{other.place}, too"
                )
            policies[policy.id] = policy
    return policies


def require_valid(policies: Mapping[str, Policy], schema: Schema) -> None:
    """Check policies against the schema.

    Raises:
        UsageError: POLICY_INVALID: the first that it refuses, with its place and everything that is wrong with it.
    """
    if validate_policies("\n".join(policy.text for policy in policies.values()), schema):
        return
    for policy in policies.values():
        result = validate_policies(policy.text, schema)
        if not result:
            # Cedar has no order for them. Those that name what is wrong come first.
            told = sorted(
                {_plainly(error.error) for error in result.errors}, key=lambda text: ("`" not in text, text)
            )
            place = named_in(policy.text, told[0]).after(policy.place)
            raise invalid(f"{policy.file}:{place}: {policy.id}: {'; '.join(told)}")


def invalid(message: str) -> UsageError:
    """The refusal of a set that is none."""
    return UsageError(Reason.POLICY_INVALID, message, _NEXT)


def _parse(file: str, text: str) -> Iterator[Policy]:
    try:
        PolicySet.from_str(text)
    except ValueError as error:
        place = locate(text, _parses)
        raise invalid(f"{file}:{place}: {error}") from error
    for statement in statements(text):
        document = msgspec.json.decode(policies_to_json_str(statement.text))
        where = f"{file}:{statement.place}"
        if document["templates"]:
            raise invalid(f"{where}: it is a template (?principal, ?resource), which nothing here links")
        policy = next(iter(document["staticPolicies"].values()))
        annotations = policy.get("annotations", {})
        yield Policy(
            id=_id(annotations, where),
            effect=policy["effect"],
            advice=annotations.get("advice") or "",
            text=statement.text,
            json=policy,
            file=file,
            place=statement.place,
        )


def _id(annotations: dict[str, str | None], where: str) -> str:
    if unknown := sorted(set(annotations) - _KNOWN_ANNOTATIONS):
        raise invalid(f"{where}: there is no annotation @{unknown[0]}: @id, @advice, @description")
    name = annotations.get("id") or ""
    if not _ID.fullmatch(name):
        raise invalid(f'{where}: each policy needs an id of its own: @id("…") of a-z 0-9 . _ -')
    return name


def _plainly(message: str) -> str:
    """Without the number that Cedar gives to a policy."""
    return re.sub(r"^for policy `policy0`, ", "", message)


def _parses(text: str) -> str | None:
    """Why Cedar does not take a text; None when it does."""
    try:
        PolicySet.from_str(text)
    except ValueError as error:
        return str(error)
    return None
