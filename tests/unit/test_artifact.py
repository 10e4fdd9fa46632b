"""Envelope, canonical JSON and statement: every rule refuses what breaks it, with its reason."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import MAX_ARTIFACT, parse_envelope
from egs_kernel.artifact.schema import SCHEMAS, generate, published
from egs_kernel.artifact.statement import (
    Predicate,
    Statement,
    encode_statement,
    format_time,
    parse_statement,
    parse_time,
)
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from tests.unit.issuing import EVERY_FIELD, signed, statement

MALFORMED = Reason.ARTIFACT_MALFORMED
UNKNOWN = Reason.ARTIFACT_UNKNOWN_FIELD
NOT_CANONICAL = Reason.ARTIFACT_NOT_CANONICAL
VERSION = Reason.ARTIFACT_UNKNOWN_VERSION


def refusal_of(payload: bytes) -> Reason:
    with pytest.raises(Refused) as caught:
        parse_statement(payload)
    assert caught.value.next_step
    return caught.value.reason


def set_in(value: Any, path: str, item: Any) -> Any:
    """`value` with `item` at a dotted path; what is missing on the way is made."""
    *parents, last = path.split(".")
    place = value
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[int(last) if isinstance(place, list) else last] = item
    return value


# canonical JSON


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", MALFORMED),
        (b"{", MALFORMED),
        (b"{}{}", MALFORMED),
        (b'{"a":1}\n', NOT_CANONICAL),
        (b'{"a": 1}', NOT_CANONICAL),
        (b'{"b":1,"a":1}', NOT_CANONICAL),
        (b'{"a":1,"a":1}', NOT_CANONICAL),
        (b'{"a":1.0}', NOT_CANONICAL),
        (b'{"a":1e0}', NOT_CANONICAL),
        (b'{"a":-0}', NOT_CANONICAL),
        (b'{"a":9007199254740993}', NOT_CANONICAL),
        (b'{"a":"\\u0041"}', NOT_CANONICAL),
        (b'{"a":"\\/"}', NOT_CANONICAL),
        (b'{"a":"\\u00E9"}', NOT_CANONICAL),
        (b'{"a":"\\ud800"}', MALFORMED),
        (b'{"a":"\xff"}', MALFORMED),
        (b'\xef\xbb\xbf{"a":1}', MALFORMED),
        (b'{"a":NaN}', MALFORMED),
        (b"[" * 60_000, MALFORMED),
        (b"[" * 400 + b"]" * 400 + b" ", NOT_CANONICAL),
    ],
    ids=lambda value: value[:24].hex() if isinstance(value, bytes) else value.code,
)
def test_what_is_not_canonical_is_refused(payload: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        canonical.decode_canonical(payload)
    assert caught.value.reason is reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1000, 1000) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_what_we_encode_is_canonical(value: Any) -> None:
    assert canonical.encode(canonical.decode_canonical(canonical.encode(value))) == canonical.encode(value)


@given(json_values)
def test_other_spellings_of_the_same_value_are_not(value: Any) -> None:
    spelled = json.dumps(value, indent=1).encode()
    if spelled != canonical.encode(value):
        with pytest.raises(Refused):
            canonical.decode_canonical(spelled)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_canonical_value_or_refused(content: bytes) -> None:
    try:
        value = canonical.decode_canonical(content)
    except Refused:
        return
    assert canonical.encode(value) == content


# the envelope


def envelope(**changes: Any) -> bytes:
    value = {**json.loads(signed(statement())), **changes}
    return json.dumps({name: item for name, item in value.items() if item is not ...}).encode()


def test_an_envelope_may_be_written_with_white_space() -> None:
    assert parse_envelope(envelope()).payload == parse_envelope(signed(statement())).payload


GOOD_SIGNATURE = json.loads(signed(statement()))["signatures"][0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", MALFORMED),
        (b"\xff", MALFORMED),
        (b"null", MALFORMED),
        (b"[]", MALFORMED),
        (b"[" * 60_000, MALFORMED),
        (signed(statement())[:-20], MALFORMED),
        (b" " * (MAX_ARTIFACT + 1), Reason.ARTIFACT_TOO_LARGE),
        (signed(statement()).replace(b'"payload":', b'"payload":"","payload":'), MALFORMED),
        (signed(statement()).replace(b'"sig":', b'"sig":"","sig":'), MALFORMED),
        (envelope(extra=1), UNKNOWN),
        (envelope(signatures=[{**GOOD_SIGNATURE, "cert": "x"}]), UNKNOWN),
        (envelope(payload=...), MALFORMED),
        (envelope(payload=7), MALFORMED),
        (envelope(payload="a"), MALFORMED),
        (envelope(payload="\u00e9"), MALFORMED),
        (envelope(payloadType="application/json"), VERSION),
        (envelope(signatures=[]), MALFORMED),
        (envelope(signatures=[GOOD_SIGNATURE] * 2), MALFORMED),
        (envelope(signatures=[{"keyid": str(n), "sig": ""} for n in range(17)]), MALFORMED),
        (envelope(signatures=[{"sig": GOOD_SIGNATURE["sig"]}]), MALFORMED),
        (envelope(signatures=[{"keyid": "", "sig": ""}]), MALFORMED),
        (envelope(signatures=[{"keyid": "a", "sig": "!"}]), MALFORMED),
        (b'{"a":' + b"9" * 5000 + b"}", MALFORMED),
    ],
    ids=str,
)
def test_envelopes_that_are_refused(content: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        parse_envelope(content)
    assert caught.value.reason is reason


@given(st.binary(max_size=300))
def test_no_bytes_end_in_another_error(content: bytes) -> None:
    with pytest.raises(Refused):
        parse_envelope(content)


# the statement


def test_the_smallest_and_the_fullest_statement_round_trip() -> None:
    for value in (statement(), statement(EVERY_FIELD)):
        payload = canonical.encode(value)
        assert encode_statement(parse_statement(payload)) == payload


def objects_in(value: Any, path: str = "") -> list[str]:
    """The dotted paths of all JSON objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [found for name, item in items for found in objects_in(item, f"{path}{name}.")]
    return [path, *inner] if isinstance(value, dict) else inner


@pytest.mark.parametrize("path", objects_in(statement(EVERY_FIELD)))
def test_an_unknown_field_is_refused_at_every_level(path: str) -> None:
    value = set_in(statement(EVERY_FIELD), f"{path}extra", {})
    reason = refusal_of(canonical.encode(value))
    # The names of environment variables are data: there, any name is known, and its value must be text.
    assert reason is (MALFORMED if path.endswith("environment.set.") else UNKNOWN)


WRONG: list[tuple[str, Any]] = [
    ("subject", []),
    ("subject.0.name", "report"),
    ("subject.0.name", ""),
    ("subject.0.name", "/a\nb"),
    ("subject.0.digest.sha256", "AB" * 32),
    ("subject.0.digest.sha256", "ab" * 31),
    ("subject.0.digest.sha256", "ab" * 31 + "a\n"),
    ("subject.0.annotations.role", "script"),
    ("subject.0.annotations.role", "owner"),
    ("predicate.notBefore", "2026-11-23T15:00:00Z"),
    ("predicate.notAfter", "2026-11-23T13:00:00Z"),
    ("predicate.issuedAt", "2026-11-23T15:00:00Z"),
    ("predicate.notAfter", "2026-11-23T15:00:00+00:00"),
    ("predicate.notAfter", "2026-11-23T15:00:00.5Z"),
    ("predicate.notAfter", "2026-11-23 15:00:00Z"),
    ("predicate.notAfter", "2026-11-23T15:00:00z"),
    ("predicate.notAfter", "2026-02-30T15:00:00Z"),
    ("predicate.notAfter", "2026-12-31T23:59:60Z"),
    ("predicate.notAfter", "2026-11-23T24:00:00Z"),
    ("predicate.notAfter", "٢٠٢٦-11-23T15:00:00Z"),
    ("predicate.notAfter", 1795446000),
    ("predicate.scope.name", ""),
    ("predicate.scope.name", "Agents"),
    ("predicate.scope.name", "agents\n"),
    ("predicate.scope.name", "*"),
    ("predicate.scope.policyDigest", "x"),
    ("predicate.identity", {}),
    ("predicate.identity", None),
    ("predicate.identity.uid", -1),
    ("predicate.identity.uid", 2**32 - 1),
    ("predicate.identity.uid", True),
    ("predicate.identity.user", "svc\n"),
    ("predicate.identity.user", None),
    ("predicate.identity.groups", []),
    ("predicate.identity.groups", [None]),
    ("predicate.identity.spiffeId", "https://example.org"),
    ("predicate.identity.unit", "system.slice"),
    ("predicate.identity.unit", "a/b.service"),
    ("predicate.identity.unit", "a.service\n"),
    ("predicate.identity.hosts", [""]),
    ("predicate.identity.cgroup", "egs.slice"),
    ("predicate.intent", {}),
    ("predicate.intent.argv", []),
    ("predicate.intent.argv", ["report", "a\0b"]),
    ("predicate.intent.argv", ["report", "a\x1bb"]),
    ("predicate.intent.argv", ["report", "a\n"]),
    ("predicate.intent.argv", ["report", "a\x7f"]),
    ("predicate.intent.argv", ["report", "a\u202eb"]),
    ("predicate.intent.argv", ["x" * 4096]),
    ("predicate.intent.argv", ["é" * 2048]),
    ("predicate.intent.argv", "report"),
    ("predicate.intent.purpose", "a\x9bb"),
    ("predicate.intent.environment.allow", ["LD_PRELOAD"]),
    ("predicate.intent.environment.allow", ["A=B"]),
    ("predicate.intent.environment.allow", []),
    ("predicate.intent.environment.set", {"A": "b\0c"}),
    ("predicate.intent.environment.set", {"A B": "c"}),
    ("predicate.constraints", {}),
    ("predicate.constraints.code", {}),
    ("predicate.constraints.code", {"anonymous": "maybe"}),
    ("predicate.constraints.syscalls", {}),
    ("predicate.constraints.syscalls", {"action": "kill"}),
    ("predicate.constraints.syscalls", {"profile": "x", "action": "trap"}),
    ("predicate.constraints.syscalls", {"allow": ["read"], "deny": ["read"]}),
    ("predicate.uses", 0),
    ("predicate.uses", 2**32),
    ("predicate.uses", 1.5),
    ("predicate.lineage", {}),
    ("predicate.lineage.parentArtifact", "none"),
    ("predicate.governance", {}),
    ("predicate.governance.risk", "none"),
]


@pytest.mark.parametrize(("path", "item"), WRONG, ids=str)
def test_wrong_values_are_refused(path: str, item: Any) -> None:
    assert refusal_of(canonical.encode(set_in(statement(), path, item))) is MALFORMED


def test_the_longest_argv_is_accepted() -> None:
    parse_statement(canonical.encode(statement({"intent": {"argv": ["x" * 2047, "é" * 1023 + "x"]}})))


@pytest.mark.parametrize("missing", ["_type", "predicateType"])
def test_another_type_or_version_is_refused(missing: str) -> None:
    value = statement()
    assert refusal_of(canonical.encode({**value, missing: value[missing].replace("v1", "v2")})) is VERSION
    del value[missing]
    assert refusal_of(canonical.encode(value)) is VERSION


@pytest.mark.parametrize("missing", ["subject", "predicate"])
def test_a_missing_part_is_refused(missing: str) -> None:
    value = statement()
    del value[missing]
    assert refusal_of(canonical.encode(value)) is MALFORMED


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_payload_that_is_no_object_is_refused(value: Any) -> None:
    assert refusal_of(canonical.encode(value)) is MALFORMED


@pytest.mark.parametrize("role", ["program", "script"])
def test_one_program_and_no_two_subjects_of_one_name(role: str) -> None:
    value = statement()
    second = {**value["subject"][0], "annotations": {"role": role}}
    value["subject"].append(second)
    assert refusal_of(canonical.encode(value)) is MALFORMED


def test_the_message_names_the_field_and_not_the_expression() -> None:
    with pytest.raises(Refused, match=r"predicate\.scope\.name") as caught:
        parse_statement(canonical.encode(set_in(statement(), "predicate.scope.name", "A")))
    assert "regex" not in caught.value.message


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_round_trip(moment: datetime) -> None:
    text = format_time(moment)
    assert parse_time(text) == moment.replace(microsecond=0)
    assert len(text) == 20


# the schemas


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_types_schema(name: str) -> None:
    assert published(name) == generate(name), "run: python -m egs_kernel.artifact.schema"
    jsonschema.Draft202012Validator.check_schema(published(name))


STATEMENT_SCHEMA = jsonschema.Draft202012Validator(published("statement.schema.json"))
PREDICATE_SCHEMA = jsonschema.Draft202012Validator(published("predicate.schema.json"))


@pytest.mark.parametrize("value", [statement(), statement(EVERY_FIELD)], ids=["smallest", "fullest"])
def test_the_schemas_accept_what_we_accept(value: Any) -> None:
    STATEMENT_SCHEMA.validate(value)
    PREDICATE_SCHEMA.validate(value["predicate"])
    msgspec.convert(value, Statement)
    msgspec.convert(value["predicate"], Predicate)


@pytest.mark.parametrize(
    "path", [path for path in objects_in(statement(EVERY_FIELD)) if not path.endswith("set.")]
)
def test_the_schema_refuses_unknown_fields(path: str) -> None:
    assert not STATEMENT_SCHEMA.is_valid(set_in(statement(EVERY_FIELD), f"{path}extra", {}))


BEYOND_SCHEMA = (
    "predicate.notBefore", "predicate.notAfter", "predicate.issuedAt", "predicate.identity", "predicate.intent",
    "predicate.lineage", "predicate.governance", "predicate.constraints", "predicate.constraints.syscalls",
    "subject.0.annotations.role", "predicate.intent.argv", "predicate.intent.environment.allow",
)  # fmt: skip


@pytest.mark.parametrize(("path", "item"), [case for case in WRONG if case[0] not in BEYOND_SCHEMA], ids=str)
def test_the_schema_refuses_wrong_values_too(path: str, item: Any) -> None:
    assert not STATEMENT_SCHEMA.is_valid(set_in(statement(), path, item))


def test_the_envelope_is_base64_of_the_payload() -> None:
    payload = canonical.encode(statement())
    assert base64.b64decode(json.loads(signed(statement()))["payload"]) == payload


def test_the_example_of_the_page_is_an_artifact() -> None:
    page = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    value = json.loads(example.replace("…", "ab" * 32))
    STATEMENT_SCHEMA.validate(value)
    parse_statement(canonical.encode(value))
