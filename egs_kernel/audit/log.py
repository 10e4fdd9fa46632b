"""The record as a log to read: its size, its entries' bytes by number."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from egs_kernel.audit.reader import Reader, open_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class OpenLog:
    """A record that is open for reading, as long as it was when it was opened."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._size = reader.size

    @property
    def size(self) -> int:
        """Entries."""
        return self._size

    def lines(self, since: int) -> Iterator[bytes]:
        """The bytes of each entry from `since` on."""
        for _, line in zip(range(since, self._size), self._reader.lines(since), strict=False):
            yield line

    def line(self, seq: int) -> bytes:
        """The bytes of one entry."""
        return self._reader.line(seq)


@contextmanager
def open_log(path: Path, cold: Path | None = None) -> Iterator[OpenLog]:
    """The record at `path`; `cold`: where entries of long ago were moved to.

    Raises:
        EgsError: it is missing, or may not be read.
    """
    yield OpenLog(open_record(path, cold))
