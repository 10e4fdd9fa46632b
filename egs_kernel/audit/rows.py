"""What the index has of an entry: one row, out of the entry's line alone. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.lines import microseconds
from egs_kernel.audit.query import REFUSALS

COLUMNS: Final = {
    "seq": "INTEGER PRIMARY KEY",
    "time": "INTEGER NOT NULL",
    "boot": "INTEGER NOT NULL",
    "type": "TEXT NOT NULL",
    "verdict": "TEXT",
    "reason": "TEXT",
    "scope": "TEXT",
    "pid": "INTEGER",
    "peer": "INTEGER",
    "start": "TEXT",
    "artifact": "TEXT",
    "request": "TEXT",
    "execution": "TEXT",
    "parent": "TEXT",
}
"""What is searched by, and its type in SQLite."""


class _Process(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: str | None = None


class _Event(msgspec.Struct, frozen=True):
    pid: int | None = None
    verdict: str | None = None
    reason: str | None = None
    scope: str | None = None
    artifact_id: str | None = None
    start_ticks: str | None = None
    execution: str | None = None
    parent_execution: str | None = None


class Line(_Event, frozen=True, kw_only=True):
    """Of a line what is searched by; everything else is skipped."""

    seq: int
    time: str
    type: str
    request: str | None = None
    event: _Event | None = None
    task: _Process | None = None
    peer: _Process | None = None
    posture: msgspec.Raw = msgspec.Raw()


class _Posture(msgspec.Struct, frozen=True):
    boot_id: str


_LINES: Final = msgspec.json.Decoder(Line)
_POSTURES: Final = msgspec.json.Decoder(_Posture)


class Boots:
    """Counts the kernel's boots, from posture to posture."""

    def __init__(self, number: int = 0, boot_id: str | None = None) -> None:
        self.number = number
        self.boot_id = boot_id

    def take(self, line: Line) -> bool:
        """Take one more entry into account; whether it is the first of a boot.

        Raises:
            RecordError: RECORD_CORRUPT: it is a posture that names no boot.
        """
        if line.type != "posture" or (boot_id := _boot_id(line)) == self.boot_id:
            return False
        self.number, self.boot_id = self.number + 1, boot_id
        return True


def read_line(line: bytes, seq: int) -> Line:
    """What is searched by of the line of entry `seq`.

    Raises:
        RecordError: RECORD_CORRUPT: it is none.
    """
    try:
        found = _LINES.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(f"entry {seq}", f"the line is no entry ({error})") from error
    if found.seq != seq:
        raise corrupt(f"entry {seq}", f"the line calls itself entry {found.seq}")
    return found


def _boot_id(line: Line) -> str:
    try:
        return _POSTURES.decode(line.posture).boot_id
    except (msgspec.DecodeError, RecursionError) as error:
        raise corrupt(f"entry {line.seq}", str(error)) from error


def row_of(line: Line, boot: int) -> dict[str, Any]:
    """The row of an entry of this boot, by column."""
    subject = line.event or line
    process = line.task or subject
    return {
        "seq": line.seq,
        "time": microseconds(line.time),
        "boot": boot,
        "type": line.type,
        "verdict": "deny" if line.type in REFUSALS else subject.verdict,
        "reason": subject.reason,
        "scope": subject.scope,
        "pid": process.pid,
        "peer": None if line.peer is None else line.peer.pid,
        "start": process.start_ticks,
        "artifact": subject.artifact_id or None,
        "request": line.request,
        "execution": _number(subject.execution),
        "parent": _number(subject.parent_execution),
    }


def _number(text: str | None) -> str | None:
    return None if text == "0" else text
