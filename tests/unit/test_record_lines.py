"""The byte form of entries: one form for each value, the one RFC 8785 gives."""

from __future__ import annotations

import enum
import hashlib
import json
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit import lines
from egs_kernel.audit.entries import (
    ENTRY_CLASSES,
    ENTRY_TYPES,
    DaemonStopped,
    Decision,
    Entry,
    Exec,
    Gap,
    Request,
    Verification,
)
from egs_kernel.audit.merkle import leaf_hash
from egs_kernel.audit.shapes import SAFE_INTEGER, WIDE, shape_of
from egs_kernel.audit.tiles import MAX_ENTRY
from egs_kernel.errors import RecordError
from egs_kernel.model import ARGV_MAX, ExecEvent, FileIdentity, Intent, Posture, Reason, Tier, Verdict
from tests.samples import exec_event

SAFE = st.integers(-(2**53) + 1, 2**53 - 1)
TEXTS = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))


def values(hint: Any, name: str = "", numbers: st.SearchStrategy[int] = SAFE) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one line a kind of type
    """Any value of a field's type; `numbers`: those that JSON has as numbers, by default in the range that it allows."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        return st.integers(-(2**63), 2**64 - 1) if name in WIDE else numbers
    if hint is str:
        return TEXTS
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(part, name, numbers) for part in parts))
    if origin is tuple and parts[-1] is Ellipsis:
        return st.lists(values(parts[0], "", numbers), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(part, "", numbers) for part in parts))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return structs(hint, numbers)
    return st.from_type(hint)


def structs(kind: Any, numbers: st.SearchStrategy[int] = SAFE) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {name: values(hints[name], name, numbers) for name in kind.__struct_fields__}
    return st.fixed_dictionaries(fields).map(lambda chosen: kind(**chosen))


ENTRIES = st.one_of(*(structs(kind) for kind in ENTRY_CLASSES))
EDGES = st.sampled_from([0, 1, -1, 10**15, 2**53 - 1, 1 - 2**53, 2**53, -(2**53), 2**63, 10**40])
PERHAPS_UNWRITABLE = st.one_of(*(structs(kind, EDGES) for kind in ENTRY_CLASSES))


def line_of(entry: Any) -> bytes:
    return lines.encode(entry, seq=0, time="2026-11-23T14:00:00.000000Z")


@given(ENTRIES)
def test_a_line_is_rfc_8785_and_gives_the_entry_back(entry: Any) -> None:
    line = line_of(entry)
    assert line == rfc8785.dumps(json.loads(line))
    assert lines.is_canonical(line)
    assert b"\n" not in line
    recorded = lines.decode(line)
    assert recorded.entry == entry
    assert recorded.hash == leaf_hash(line).hex()


@given(ENTRIES)
def test_the_fields_that_are_changed_are_all_that_have_to_be(entry: Any) -> None:
    """The quick way to a line says what the thorough one says."""
    kind: type[Entry] = type(entry)
    try:
        quick = msgspec.json.encode(shape_of(kind).fill(entry, 7, "now"))
    except UnicodeEncodeError:
        return
    assert quick == lines.canonical(lines._unusual(entry) | {"v": 2, "seq": 7, "time": "now"})


@given(st.lists(ENTRIES | PERHAPS_UNWRITABLE, max_size=4), st.integers(0, 2**53 - 9))
def test_lines_that_are_made_together_are_those_that_are_made_alone(entries: list[Any], first: int) -> None:
    try:
        alone = [lines.encode(entry, seq=seq, time="now") for seq, entry in enumerate(entries, first)]
    except RecordError:
        with pytest.raises(RecordError):
            lines.encode_all(entries, first=first, time="now")
        return
    assert lines.encode_all(entries, first=first, time="now") == alone


@given(PERHAPS_UNWRITABLE)
def test_a_number_that_cannot_be_written_is_among_the_numbers_of_its_entry(entry: Any) -> None:
    try:
        line_of(entry)
    except RecordError:
        kind: type[msgspec.Struct] = type(entry)
        assert not 0 <= shape_of(kind).numbers(entry) <= SAFE_INTEGER


SCALARS = st.none() | st.booleans() | SAFE | st.text()
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner),
)


@given(JSON)
def test_the_fast_encoder_equals_rfc8785(value: Any) -> None:
    assert lines.canonical(value) == rfc8785.dumps(value)


@given(structs(Posture))
def test_a_posture_digest_is_that_of_its_canonical_json(posture: Posture) -> None:
    wire = json.loads(line_of(lines.posture_entry(posture)))
    assert hashlib.sha256(rfc8785.dumps(wire["posture"])).hexdigest() == wire["digest"]


def test_every_type_is_listed_and_none_uses_a_field_of_the_envelope() -> None:
    assert len(set(ENTRY_TYPES)) == len(ENTRY_CLASSES)
    for kind in ENTRY_CLASSES:
        assert not set(kind.__struct_fields__) & set(lines.ENVELOPE_FIELDS)


def test_every_integer_of_an_exec_event_is_either_wide_or_at_most_32_bits() -> None:
    narrow = {"argv_bytes", "ctime_nanoseconds", "device", "egid", "euid", "generation", "gid"}
    narrow |= {"kill_error", "parent_pid", "pid", "seccomp_filters", "seccomp_mode", "uid"}
    hints = typing.get_type_hints(ExecEvent) | typing.get_type_hints(FileIdentity)
    assert {name for name, hint in hints.items() if hint is int} <= WIDE | narrow


def test_kernel_numbers_are_strings_and_codes_are_names() -> None:
    line = json.loads(line_of(Verification(passed=False, reason=Reason.SIGNATURE_INVALID)))
    assert line["reason"] == "signature_invalid"
    decision = Decision(verdict=Verdict.KILL, reason=Reason.NO_GRANT, scope="s", policy_digest="", posture="")
    assert json.loads(line_of(decision))["verdict"] == "kill"


def test_bytes_that_are_no_text_are_kept() -> None:
    argv = ("cat", b"\xff\xfe".decode("utf-8", "surrogateescape"))
    request = Request(request="r", scope="s", intent=Intent(program="/bin/cat", digest="d", argv=argv))
    line = line_of(request)
    assert json.loads(line)["intent"]["argv"] == ["cat", {"base64": "//4="}]
    assert lines.decode(line).entry == request


@pytest.mark.parametrize(
    "entry",
    [
        DaemonStopped(cause="\ud800"),
        DaemonStopped(cause="x" * MAX_ENTRY),
        Gap(cause="events_lost", detail="", lost=2**53),
    ],
)
def test_what_has_no_form_is_refused(entry: Any) -> None:
    with pytest.raises(RecordError) as caught:
        line_of(entry)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE
    assert caught.value.next_step


@pytest.mark.parametrize("word", ["\x01", "\udcff", '"', "é", "x"])
@pytest.mark.parametrize("length", [1, 2, 1000, 4094])
def test_the_longest_event_of_the_gate_fits_into_an_entry(word: str, length: int) -> None:
    """An exec that cannot be recorded would end every daemon that finds it in the gate's buffer."""
    size = len(word.encode("utf-8", "surrogateescape"))
    argv = (word * (length // size),) * (ARGV_MAX // (length // size * size + 1)) if length >= size else ()
    number = 2**64 - 1
    wide = dict.fromkeys(WIDE & set(ExecEvent.__struct_fields__), number)
    file = FileIdentity(2**32 - 1, number, 2**32 - 1, number, number, 10**9)
    name = (word * 255)[: 255 // size]
    event = exec_event(
        **wide,
        file=file,
        script=file,
        argv=argv,
        filename=name,
        comm=name[:15],
        artifact_id="f" * 64,
        scope="s" * 32,
    )
    line = line_of(Exec(event=event, use_until="9999-12-31T23:59:59Z"))
    assert lines.decode(line).entry == Exec(event=event, use_until="9999-12-31T23:59:59Z")


def altered(**fields: Any) -> bytes:
    return rfc8785.dumps(json.loads(line_of(DaemonStopped(cause="c"))) | fields)


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (altered(v=3), Reason.RECORD_UNAVAILABLE, "format version 3"),
        (altered(type="teleport"), Reason.RECORD_UNAVAILABLE, "'teleport'"),
        (altered(extra=1), Reason.RECORD_CORRUPT, "extra"),
        (altered(cause=1), Reason.RECORD_CORRUPT, "cause"),
        (altered(cause={"base64": "YQ=="}), Reason.RECORD_CORRUPT, "is UTF-8"),
        (altered(cause={"base64": "!"}), Reason.RECORD_CORRUPT, "entry 0"),
        (altered(seq="x"), Reason.RECORD_CORRUPT, "seq"),
        (b"[]", Reason.RECORD_CORRUPT, "no entry"),
        (b"\xff", Reason.RECORD_CORRUPT, "no entry"),
        (b"", Reason.RECORD_CORRUPT, "no entry"),
    ],
)
def test_a_line_that_is_not_ours_is_named(line: bytes, reason: Reason, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        lines.decode(line)
    assert caught.value.reason is reason
    assert words in caught.value.message
    assert caught.value.next_step


def test_a_reason_of_a_later_version_is_named() -> None:
    line = line_of(Verification(passed=False, reason=Reason.REVOKED)).replace(b'"revoked"', b'"bewitched"')
    with pytest.raises(RecordError) as caught:
        lines.decode(line)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE
    assert "bewitched" in caught.value.message


@given(structs(Exec), st.data())
def test_a_wide_field_takes_only_the_one_decimal_form(entry: Exec, data: st.DataObject) -> None:
    wire = json.loads(line_of(entry))
    form = data.draw(st.sampled_from([7, "07", "+7", "-0", " 7", "7.0", "", None]))
    wire["event"]["execution"] = form
    with pytest.raises(RecordError):
        lines.decode(rfc8785.dumps(wire))


@pytest.mark.parametrize(
    ("line", "canonical"),
    [
        (b'{"a":1,"b":2}', True),
        (b'{"b":2,"a":1}', False),
        (b'{"a":1,"a":1}', False),
        (b'{"a": 1}', False),
        (b'{"a":1.0}', False),
        (b'{"a":1e0}', False),
        (b'{"a":9007199254740991}', True),
        (b'{"a":9007199254740992}', False),
        (b'{"a":"9007199254740992"}', True),
        (b'{"a":"\\u0061"}', False),
        (b'{"a":1}x', False),
        (b'"\xff"', False),
    ],
)
def test_other_spellings_are_not_canonical(line: bytes, *, canonical: bool) -> None:
    assert lines.is_canonical(line) is canonical


def respelled(line: bytes, data: st.DataObject) -> bytes:
    """The line with another spelling of something, or with another byte."""
    fields = json.loads(line)
    key = data.draw(st.sampled_from(sorted(fields)))
    at = data.draw(st.integers(0, len(line) - 1))
    forms: tuple[Callable[[], bytes], ...] = (
        lambda: json.dumps(fields, sort_keys=True).encode(),
        lambda: json.dumps(dict(sorted(fields.items(), reverse=True)), separators=(",", ":")).encode(),
        lambda: line[:-1] + b',"' + key.encode() + b'":' + json.dumps(fields[key]).encode() + b"}",
        lambda: line.replace(b'"v":2', data.draw(st.sampled_from([b'"v":2.0', b'"v":2e0', b'"v":3']))),
        lambda: line.replace(b'"seq":0', b'"seq":9007199254740992'),
        lambda: line.replace(b'"t', b'"\\u0074'),
        lambda: line + b"\n",
        lambda: line[:at] + line[at + 1 :],
        lambda: line[:at] + data.draw(st.binary(min_size=1, max_size=3)) + line[at:],
    )
    form: Callable[[], bytes] = data.draw(st.sampled_from(forms))
    return form()


@given(ENTRIES, st.data())
def test_what_is_quickly_found_canonical_is_canonical(entry: Any, data: st.DataObject) -> None:
    """`egs audit verify` looks closer only at what does not come back as it was out of its type's shape."""
    line = line_of(entry)
    assert lines._usual(line) in {None, lines.header(line, "")}
    edited = respelled(line, data)
    assert lines._usual(edited) is None or lines.is_canonical(edited)


def test_most_lines_are_quickly_found_canonical() -> None:
    for entry in (DaemonStopped(cause="SIGTERM"), Gap(cause="events_lost", detail="caf\u00e9", lost=3)):
        assert lines._usual(line_of(entry)) == lines.header(line_of(entry), "")


def test_times_have_microseconds_and_compare_as_text() -> None:
    assert lines.timestamp(1_795_442_401_000_001_999) == "2026-11-23T14:00:01.000001Z"
    assert lines.timestamp(0) == "1970-01-01T00:00:00.000000Z"


def test_tiers_are_written_by_name() -> None:
    posture = Posture(
        kernel="", boot_id="", lockdown="", tier=Tier.LSM, gate=(), policy_digest="", clock_synchronized=True
    )
    assert json.loads(line_of(lines.posture_entry(posture)))["posture"]["tier"] == "lsm"
