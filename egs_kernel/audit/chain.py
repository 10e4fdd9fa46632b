"""The chain of lines: each names the hash of the line before it. Pure over an open file's bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from egs_kernel.audit.lines import GENESIS, MAX_LINE, corrupt, header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.entries import Header


class Position(msgspec.Struct, frozen=True):
    """The end of a line: its number and hash, and the byte offsets at which it starts and the next would."""

    seq: int
    start: int
    end: int
    hash: str

    @property
    def size(self) -> int:
        """Entries up to here."""
        return self.seq + 1


START: Final = Position(-1, 0, 0, GENESIS)
"""Before the first entry."""


def check_link(before: Position, line: bytes) -> tuple[Position, Header]:
    """The position after `line` (without its newline), when it continues the chain.

    Raises:
        RecordError: it does not, with the number of the first entry that is wrong.
    """
    where = f"entry {before.seq + 1}"
    found = header(line, where)
    if found.seq != before.seq + 1:
        raise corrupt(where, f"the line calls itself entry {found.seq}")
    if found.prev != before.hash:
        problem = "it does not follow the line before it: that line or this one was changed"
        raise corrupt(where, problem if before.seq >= 0 else "the first entry names a predecessor")
    return after(before, line), found


def after(before: Position, line: bytes) -> Position:
    """The position after `line` (without its newline), written at the end of `before`."""
    return Position(before.seq + 1, before.end, before.end + len(line) + 1, hashlib.sha256(line).hexdigest())


def walk(file: BinaryIO, before: Position = START) -> Iterator[tuple[Position, Header, bytes]]:
    """Every whole line after `before`, each checked to continue the chain.

    Ends at the end of the file or at a line without newline (one that is being written, or torn); it
    may be called again from the last position when the file has grown.

    Raises:
        RecordError: a line does not continue the chain.
    """
    file.seek(before.end)
    while (line := file.readline(MAX_LINE)).endswith(b"\n"):
        before, found = check_link(before, line[:-1])
        yield before, found, line[:-1]
    if len(line) == MAX_LINE:
        raise corrupt(f"entry {before.seq + 1}", f"a line of more than {MAX_LINE} bytes")


def line_at(file: BinaryIO, position: Position) -> bytes | None:
    """The line (without newline) that ends at `position`, when it is the one that `position` describes."""
    length = position.end - position.start
    if not 1 < length <= MAX_LINE:
        return None
    file.seek(position.start)
    line = file.read(length)
    if not line.endswith(b"\n") or hashlib.sha256(line[:-1]).hexdigest() != position.hash:
        return None
    return line[:-1]


def find(file: BinaryIO, seq: int, size: int) -> int:
    """The offset of the first line whose number is `seq` or more, in the first `size` bytes of a file.

    Reads a logarithmic number of lines. It does not verify the chain.

    Raises:
        RecordError: a line on the way is no entry.
    """
    low, high = 0, size  # the answer lies in low..high, both of them starts of lines or the end
    while low < high:
        middle = (low + high) // 2
        start = _line_start(file, middle, low)
        file.seek(start)
        line = file.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            high = start
        elif header(line[:-1], f"byte {start}").seq < seq:
            low = start + len(line)
        else:
            high = start
    return low


def _line_start(file: BinaryIO, offset: int, lowest: int) -> int:
    """The start of the line that holds the byte at `offset`; `lowest` is a start of a line before it."""
    window = 4096
    while True:
        begin = max(lowest, offset - window)
        file.seek(begin)
        found = file.read(offset - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        if begin == lowest:
            return lowest
        window *= 4
