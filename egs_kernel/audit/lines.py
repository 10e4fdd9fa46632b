"""The bytes of an entry: a line of text, one RFC 8785 canonical JSON object, one form for each value.

Three rules beside RFC 8785's (docs/record.md):

- fields in `WIDE` hold 64-bit kernel values: decimal strings always, since RFC 8785 ends at 2^53;
- verdicts, reasons, grant kinds and tiers are written by name;
- a string that is not UTF-8 (argv is bytes) is written as `{"base64": …}`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import rfc8785

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.entries import (
    ENTRY_CLASSES,
    ENTRY_TYPES,
    Entry,
    EntryType,
    Header,
    PostureEntry,
    Recorded,
)
from egs_kernel.audit.merkle import leaf_hash
from egs_kernel.audit.shapes import FORMAT_VERSION, NAMED, SAFE_INTEGER, UNTAGGED, WIDE, shape_of
from egs_kernel.audit.tiles import MAX_ENTRY
from egs_kernel.errors import RecordError
from egs_kernel.model import Posture, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

ENVELOPE_FIELDS: Final = ("v", "seq", "time", "type")
_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,19}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ENCODER = msgspec.json.Encoder(order="sorted")
"""Equal to RFC 8785 for what we write (ASCII keys, no floats, integers below 2^53): a property test."""
_SHAPES = msgspec.json.Encoder(order="deterministic")
"""The same for shapes, whose fields are sorted already."""


class _UnknownNameError(ValueError):
    """A verdict, reason or grant kind that a later version added (names need no new format version)."""


def _no_floats(text: str) -> float:
    raise ValueError(f"{text} is a float: the record has none")


_ANYTHING = msgspec.json.Decoder(float_hook=_no_floats)
_HEADERS = msgspec.json.Decoder(Header)
_DIGITS = bytes.maketrans(b"123456789,[-", b"000000000:::")
_LONG = b":" + b"0" * 16
_TYPE = b'"type":"'
_KINDS = {str(kind.__struct_config__.tag).encode(): kind for kind in ENTRY_CLASSES}


def _newer(seq: int, problem: str) -> RecordError:
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"entry {seq} cannot be read by this version: {problem}",
        "Read the record with the egs-kernel version that wrote it, or a later one.",
    )


def timestamp(nanoseconds: int) -> str:
    """CLOCK_REALTIME nanoseconds as the record writes them: RFC 3339, UTC, microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=1)  # most appends are in the second of the one before
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def microseconds(time: str) -> int:
    """A time as the record writes it, in microseconds since 1970."""
    return (datetime.fromisoformat(time) - _EPOCH) // _MICROSECOND


def canonical(wire: object) -> bytes:
    """RFC 8785 bytes of what `_outward` made."""
    return _ENCODER.encode(wire)


def posture_digest(posture: Posture) -> str:
    """The SHA-256 (hex) that decisions cite for a posture: of its canonical JSON."""
    return hashlib.sha256(canonical(_outward(msgspec.to_builtins(posture)))).hexdigest()


def posture_entry(posture: Posture) -> PostureEntry:
    """The entry that records `posture` under its digest."""
    return PostureEntry(digest=posture_digest(posture), posture=posture)


def encode(entry: Entry, *, seq: int, time: str) -> bytes:
    """The line of an entry.

    Raises:
        RecordError: a value has no form in the record, or the line would be longer than `MAX_ENTRY`.
    """
    try:
        line = _SHAPES.encode(shape_of(type(entry)).fill(entry, seq, time))
        usual = not _may_have_long_number(line)
    except UnicodeEncodeError:  # bytes that are no text
        usual = False
    if not usual:
        line = canonical(_unusual(entry) | {"v": FORMAT_VERSION, "seq": seq, "time": time})
    if len(line) > MAX_ENTRY:
        raise _unwritable(f"it has {len(line)} bytes; an entry has at most {MAX_ENTRY}")
    return line


def encode_all(entries: Sequence[Entry], *, first: int, time: str) -> list[bytes]:
    """The lines of entries of which the first is number `first`: as `encode`, and faster, since an append does this most.

    Raises:
        RecordError: as `encode`.
    """
    wires = []
    numbers = first + len(entries)
    for seq, entry in enumerate(entries, first):
        shape = shape_of(type(entry))
        wires.append(shape.fill(entry, seq, time))
        numbers |= shape.numbers(entry)
    try:
        content = _SHAPES.encode_lines(wires)
    except UnicodeEncodeError:
        content = b""
    lines = content.split(b"\n")[:-1]  # inside a line it would be escaped
    usual = 0 <= numbers <= SAFE_INTEGER or not _may_have_long_number(content)
    if len(lines) < len(entries) or not usual or max(map(len, lines), default=0) > MAX_ENTRY:
        return [encode(entry, seq=seq, time=time) for seq, entry in enumerate(entries, first)]
    return lines


def _unusual(entry: Entry) -> dict[str, Any]:
    """The fields of an entry whose text and numbers have to be looked at one by one."""
    try:
        wire: dict[str, Any] = _outward(msgspec.to_builtins(entry))
    except (UnicodeEncodeError, OverflowError) as error:
        raise _unwritable(f"a value has no canonical form: {error}") from error
    if UNTAGGED in wire:
        del wire[UNTAGGED]["type"]
    return wire


def _unwritable(problem: str) -> RecordError:
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"the entry cannot be recorded: {problem}",
        "Shorten or correct what was asked (argv, environment, purpose): what cannot be recorded is refused.",
    )


def header(line: bytes, where: str) -> Header:
    """The header of a line; `where` names the line in errors.

    Raises:
        RecordError: it is no such line, or of another format version.
    """
    try:
        found = _HEADERS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(where, f"the line is no entry ({error})") from error
    if found.v != FORMAT_VERSION:
        raise _newer(found.seq, f"format version {found.v}, known is {FORMAT_VERSION}")
    return found


def checked_header(line: bytes, seq: int) -> Header:
    """The header of entry `seq`, whose line is the one canonical form of what it says.

    Raises:
        RecordError: RECORD_CORRUPT: it is not; RECORD_UNAVAILABLE: a later version wrote it.
    """
    where = f"entry {seq}"
    usual = _usual(line)
    found = usual or header(line, where)
    if found.seq != seq:
        raise corrupt(where, f"it calls itself entry {found.seq}")
    if usual is None and not is_canonical(line):
        raise corrupt(where, "it is not canonical JSON")
    return found


def _usual(line: bytes) -> Header | None:
    """The header of a line that is what `encode` makes of its content; None: it may be canonical all the same.

    Into a shape and back again: what has other keys, other numbers, another order or another spelling comes back as other
    bytes, or does not fit.
    """
    begin = line.rfind(_TYPE) + len(_TYPE)  # of the entry's own type, or of none: then it does not fit
    kind = _KINDS.get(line[begin : line.find(b'"', begin)])
    if kind is None:
        return None
    try:
        found = _decoder(kind).decode(line)
    except ValueError:  # msgspec's and Unicode errors are
        return None
    fits = found.v == FORMAT_VERSION and _SHAPES.encode(found) == line
    return Header(found.v, found.seq, found.time, found.type) if fits else None


@cache
def _decoder(kind: type[Entry]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape_of(kind).wire)


def is_canonical(line: bytes) -> bool:
    """Whether the line is the one RFC 8785 form of its content (and so has no duplicate keys)."""
    try:
        value = _ANYTHING.decode(line)
        if _may_have_long_number(line):  # perhaps beyond 2^53: not ours to write, and rfc8785 refuses it
            return rfc8785.dumps(value) == line
        return canonical(value) == line
    except (ValueError, RecursionError):  # msgspec's, rfc8785's and Unicode errors are ValueErrors
        return False


def _may_have_long_number(line: bytes) -> bool:
    """Whether there are 16 digits or more where a number begins. Ten times as fast as a regular expression."""
    return _LONG in line.translate(_DIGITS)


def decode(line: bytes, where: str = "this entry") -> Recorded:
    """The entry of a line.

    Raises:
        RecordError: RECORD_CORRUPT when it is no entry, RECORD_UNAVAILABLE when a later version wrote it.
    """
    head = header(line, where)
    if head.type not in ENTRY_TYPES:
        raise _newer(head.seq, f"entry type {head.type!r} is unknown")
    try:
        wire = msgspec.json.decode(line)
        body = {key: value for key, value in wire.items() if key == "type" or key not in ENVELOPE_FIELDS}
        entry: EntryType = msgspec.convert(_inward(body), EntryType)
    except _UnknownNameError as error:
        raise _newer(head.seq, str(error)) from error
    except (ValueError, RecursionError) as error:  # msgspec's, binascii's and Unicode errors are ValueErrors
        raise corrupt(f"entry {head.seq}", str(error)) from error
    return Recorded(head.seq, head.time, entry, leaf_hash(line).hex())


def _outward(value: Any) -> Any:
    """Python's builtins → what JSON shows."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _text_outward(value)
    if kind is dict:
        return {key: _field_outward(key, item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_outward(item) for item in value]
    if kind is int and not -SAFE_INTEGER <= value <= SAFE_INTEGER:
        raise OverflowError(f"{value} is beyond 2^53")
    return value


def _field_outward(key: str, value: Any) -> Any:
    if key in WIDE and type(value) is int:
        return str(value)
    if key in NAMED:
        return NAMED[key](value).name.lower()
    return _outward(value)


def _text_outward(value: str) -> str | dict[str, str]:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"base64": base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()}
    return value


def _inward(value: Any) -> Any:
    """What JSON shows → Python's builtins. Undoes `_outward` and accepts nothing else."""
    if type(value) is dict:
        if value.keys() == {"base64"}:
            return _text_inward(value["base64"])
        return {key: _field_inward(key, item) for key, item in value.items()}
    if type(value) is list:
        return [_inward(item) for item in value]
    return value


def _field_inward(key: str, value: Any) -> Any:
    if key in WIDE:
        if type(value) is not str or not _DECIMAL.fullmatch(value):
            raise ValueError(f"{key} is {value!r}, not a decimal string")
        return int(value)
    if key in NAMED:
        name = value.upper() if type(value) is str and value.islower() else value
        if name not in NAMED[key].__members__:
            raise _UnknownNameError(f"{key} {value!r} is unknown")
        return int(NAMED[key][name])
    return _inward(value)


def _text_inward(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"base64 is {value!r}, not a string")
    raw = base64.b64decode(value, validate=True)
    text = raw.decode("utf-8", "surrogateescape")
    if _text_outward(text) != {"base64": value}:
        raise ValueError("base64 of a string that is UTF-8")
    return text
