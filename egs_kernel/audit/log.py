"""The record as a log to read: its size, its entries' bytes by number."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from egs_kernel.audit.reader import last_seq, lines_from, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


class OpenLog:
    """A record that is open for reading, as long as it was when it was opened."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = last_seq(file) + 1

    @property
    def size(self) -> int:
        """Entries."""
        return self._size

    def lines(self, since: int) -> Iterator[bytes]:
        """The bytes of each entry from `since` on."""
        with opened(self._path) as file:  # its own: whoever reads them may ask for others meanwhile
            for _, line in zip(range(since, self._size), lines_from(file, since), strict=False):
                yield line

    def line(self, seq: int) -> bytes:
        """The bytes of one entry."""
        return next(lines_from(self._file, seq))


@contextmanager
def open_log(path: Path) -> Iterator[OpenLog]:
    """The record at `path`.

    Raises:
        EgsError: it is missing, or may not be read.
    """
    with opened(path) as file:
        yield OpenLog(path, file)
