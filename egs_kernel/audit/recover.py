"""Opening a record after whatever happened: verify from the checkpoint on, set a torn tail aside."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from egs_kernel.audit.anchor import Checkpoint, read_checkpoint, read_head, sync_folder, write_durably
from egs_kernel.audit.chain import START, Position, line_at, walk
from egs_kernel.audit.entries import Gap
from egs_kernel.audit.lines import MAX_LINE, corrupt, decode
from egs_kernel.audit.tally import Tally
from egs_kernel.errors import RecordError

if TYPE_CHECKING:
    from pathlib import Path

MAX_APPEND: Final = 16 * 1024 * 1024
"""Bytes of one append at most: all that a crash can leave unacknowledged."""
PENDING: Final = ".pending"
_TORN = re.compile(r"torn-[0-9]+-[0-9a-f]{16}\.bin\.pending")


class Recovered(msgspec.Struct, frozen=True):
    """Where the record ends, and what was counted up to there."""

    position: Position
    tally: Tally


def recover(file: BinaryIO, folder: Path) -> Recovered:
    """Verify what the checkpoint does not cover, and cut a torn tail off into a file of its own.

    Args:
        file: the record, open for reading and writing, locked.
        folder: the record's folder.

    Raises:
        RecordError: RECORD_CORRUPT when it is not what was written, RECORD_UNAVAILABLE when a later
            version wrote it.
        OSError: the disk fails.
    """
    size = os.fstat(file.fileno()).st_size
    head = read_head(folder)
    position, tally = _start(file, read_checkpoint(folder))
    if head is not None and head.end <= position.end:
        _require_line(file, head)  # older than the checkpoint: still one of our lines
    position = _walk_tail(file, position, tally, head)
    if head is not None and head.seq > position.seq:
        raise corrupt(
            f"entry {position.size}", f"the record ends there, but entry {head.seq} had been acknowledged"
        )
    if position.end < size:
        _set_aside(file, folder, position, size)
    return Recovered(position, tally)


def _start(file: BinaryIO, checkpoint: Checkpoint | None) -> tuple[Position, Tally]:
    if checkpoint is None:
        return START, Tally()
    _require_line(file, checkpoint.position)
    return checkpoint.position, checkpoint.tally


def _require_line(file: BinaryIO, position: Position) -> None:
    if line_at(file, position) is None:
        raise corrupt(f"entry {position.seq}", "the line that was acknowledged is changed or missing")


def _walk_tail(file: BinaryIO, position: Position, tally: Tally, head: Position | None) -> Position:
    try:
        for reached, _header, line in walk(file, position):
            if head is not None and head.seq == reached.seq and head != reached:
                raise corrupt(f"entry {reached.seq}", "the line is not the one that was acknowledged")
            tally.count(decode(line, f"entry {reached.seq}").entry)
            position = reached
    except RecordError:
        if not _is_unwritten(file, position):
            raise
    return position


def _is_unwritten(file: BinaryIO, position: Position) -> bool:
    """Whether what follows `position` is what a power loss leaves of an append: zeros where data should be.

    Some file systems make the new size durable before all of the data. No line holds a zero byte, and a
    single append is bounded. (`recover` refuses when `head` says that some of it was acknowledged.)
    """
    file.seek(position.end)
    rest = file.read(MAX_APPEND + 1)
    return len(rest) <= MAX_APPEND and b"\0" in rest[:MAX_LINE].partition(b"\n")[0]


def _set_aside(file: BinaryIO, folder: Path, position: Position, size: int) -> None:
    """Move the bytes after `position` to a file of their own; a later start reports it (`pending_gaps`)."""
    if size - position.end > MAX_APPEND:
        raise corrupt(f"entry {position.size}", f"{size - position.end} bytes follow that are no entry")
    file.seek(position.end)
    torn = file.read(size - position.end)
    name = f"torn-{position.size}-{hashlib.sha256(torn).hexdigest()[:16]}.bin"
    write_durably(folder / (name + PENDING), torn)
    sync_folder(folder)
    file.truncate(position.end)
    os.fsync(file.fileno())


def pending_gaps(folder: Path) -> list[tuple[Path, Gap]]:
    """Torn tails that no entry mentions yet: the file, and the entry to append.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if _TORN.fullmatch(path.name):
            size = path.stat().st_size
            detail = f"a crash cut a write off: {size} bytes before this entry are no whole line"
            found.append((path, Gap(cause="torn_tail", detail=detail, kept=path.name.removesuffix(PENDING))))
    return found


def settle(path: Path) -> None:
    """Take the mark off a torn tail's file, once an entry mentions it.

    Raises:
        OSError: it cannot be renamed.
    """
    path.rename(path.with_name(path.name.removesuffix(PENDING)))
    sync_folder(path.parent)
