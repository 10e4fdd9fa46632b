"""Reading the record, also while the daemon appends to it."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from egs_kernel.audit.anchor import read_head
from egs_kernel.audit.chain import START, Position, find, walk
from egs_kernel.audit.entries import ENTRY_TYPES, Recorded
from egs_kernel.audit.lines import MAX_LINE, corrupt, decode, header, is_canonical
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RECORD_FILE: Final = "record.jsonl"


class Verified(msgspec.Struct, frozen=True):
    """A record that verified: how far, in what time span, and what is worth a look.

    `head_checked`: the last line was also compared with `head` (a copy of the bare file has none; then
    `position.hash` is what to compare with a note of one's own). `torn`: bytes after the last line.
    """

    position: Position
    first_time: str | None
    last_time: str | None
    types: dict[str, int]
    unknown_types: int
    head_checked: bool
    torn: int


def record_file(path: Path) -> Path:
    """The file of a record: `path` itself, or `record.jsonl` in it when it is a folder."""
    return path / RECORD_FILE if path.is_dir() else path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The record's file (or the one in folder `path`), open for reading.

    Raises:
        EgsError: NOT_FOUND or NOT_PERMITTED.
        RecordError: RECORD_UNAVAILABLE when the disk fails.
    """
    try:
        file = record_file(path).open("rb")
    except FileNotFoundError as error:
        raise EgsError(
            Reason.NOT_FOUND,
            f"there is no record at {path}",
            "Start egsd, or name the record's folder or file.",
        ) from error
    except PermissionError as error:
        raise EgsError(
            Reason.NOT_PERMITTED,
            f"{path} may not be read by this user",
            "Run as root, or as a member of the file's group.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        try:
            yield file
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # the caller's own, such as a broken pipe
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> RecordError:
    return RecordError(
        Reason.RECORD_UNAVAILABLE, f"{path} cannot be read: {error.strerror}", "Check the disk (dmesg)."
    )


def read(path: Path, since_seq: int = 0) -> Iterator[Recorded]:
    """Entries from `since_seq` on to the last whole line. Does not verify the chain (`verify` does).

    Raises:
        RecordError: an entry is damaged, or a later version wrote it.
        EgsError: the record is missing or may not be read.
    """
    with opened(path) as file:
        for line in lines_from(file, since_seq):
            yield decode(line)


def lines_from(file: BinaryIO, since_seq: int) -> Iterator[bytes]:
    """Whole lines (without newline) from entry `since_seq` on.

    Raises:
        RecordError: a line on the way to `since_seq` is no entry.
    """
    size = file.seek(0, os.SEEK_END)  # also empties the read buffer: a failed write may have been taken back
    file.seek(find(file, since_seq, size))
    while (line := file.readline(MAX_LINE)).endswith(b"\n"):
        yield line[:-1]


def last_position(file: BinaryIO) -> Position:
    """The last whole line, unverified; `START` when there is none.

    Raises:
        RecordError: the last line is no entry.
    """
    size = os.fstat(file.fileno()).st_size
    begin = max(0, size - 2 * MAX_LINE)
    file.seek(begin)
    whole, newline, _torn = file.read(size - begin).rpartition(b"\n")
    if not newline:
        return START
    line = whole.rpartition(b"\n")[2]
    end = begin + len(whole) + 1
    seq = header(line, "the last line").seq
    return Position(seq, end - len(line) - 1, end, hashlib.sha256(line).hexdigest())


def last_seq(file: BinaryIO) -> int:
    """The number of the last whole line; -1 when there is none.

    Raises:
        RecordError: the last line is no entry.
    """
    return last_position(file).seq


def verify(path: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Walk the whole record: numbers, chain, canonical form, and the end against `head`.

    Args:
        path: the record's folder, or a file.
        progress: called now and then with bytes done and bytes in all.

    Raises:
        RecordError: RECORD_CORRUPT with the first entry that is wrong.
        EgsError: the record is missing or may not be read.
    """
    with opened(path) as file:
        walker = _Walker(file, progress)
        head = read_head(path) if path.is_dir() else None
        walker.walk(head)
        newer = read_head(path) if path.is_dir() else None
        if newer is not None and newer.seq > walker.position.seq:  # the daemon went on meanwhile
            head = newer
            walker.walk(head)
        if head is not None and head.seq > walker.position.seq:
            raise corrupt(
                f"entry {walker.position.size}",
                f"the record ends there, but entry {head.seq} had been acknowledged",
            )
        return walker.result(head_checked=head is not None)


class _Walker:
    """A verification under way."""

    def __init__(self, file: BinaryIO, progress: Callable[[int, int], None]) -> None:
        self.position = START
        self._file = file
        self._progress = progress
        self._times: tuple[str, str] | None = None
        self._types: dict[str, int] = {}

    def walk(self, head: Position | None) -> None:
        total = os.fstat(self._file.fileno()).st_size
        for position, found, line in walk(self._file, self.position):
            if not is_canonical(line):
                raise corrupt(f"entry {position.seq}", "the line is not canonical JSON")
            if head is not None and head.seq == position.seq and head != position:
                raise corrupt(f"entry {position.seq}", "the line is not the one that was acknowledged")
            self.position = position
            self._types[found.type] = self._types.get(found.type, 0) + 1
            self._times = (self._times[0] if self._times else found.time, found.time)
            if position.seq % 2048 == 0:
                self._progress(position.end, total)

    def result(self, *, head_checked: bool) -> Verified:
        first, last = self._times or (None, None)
        return Verified(
            position=self.position,
            first_time=first,
            last_time=last,
            types=dict(sorted(self._types.items())),
            unknown_types=sum(count for name, count in self._types.items() if name not in ENTRY_TYPES),
            head_checked=head_checked,
            torn=os.fstat(self._file.fileno()).st_size - self.position.end,
        )
