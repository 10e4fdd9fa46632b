"""The journal on the disk: files that are written at their end only, and removed when the tiles have what they hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.layout import JOURNAL, segment_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from egs_kernel.audit.files import Files

SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""A file of the journal that has as many is followed by another: with `TRIM_BYTES`, what a start has to read."""


class Segments:
    """The journal of one writer.

    Attributes:
        failed: a write could not be made durable, or could not be taken back: nothing can be appended any more. The kernel
            may take pages for clean that never reached the disk.
    """

    def __init__(self, folder: Path, files: Files, firsts: Sequence[int], end: int) -> None:
        """Go on with the journal of `folder`.

        Args:
            folder: the record's.
            files: the disk.
            firsts: the numbers of the first entries of its files.
            end: the size of the last one.

        Raises:
            OSError: the last one cannot be opened.
        """
        self._folder = folder
        self._files = files
        self._firsts = list(firsts)
        self._descriptor = files.open_append(segment_path(folder, firsts[-1])) if firsts else None
        self._end = end
        self.failed = False

    @property
    def files(self) -> int:
        """How many files it has."""
        return len(self._firsts)

    def append(self, first: int, frame: bytes) -> None:
        """Append a frame whose first entry is number `first`, and return when it is durable.

        Raises:
            OSError: it is not durable. Nothing of it is left, or `failed` is set.
            RecordError: RECORD_CORRUPT: somebody else wrote to the file.
        """
        if self._descriptor is None or self._end >= SEGMENT_BYTES:
            self._begin(first)
        descriptor = self._untouched()
        synced = False
        try:
            self._files.write(descriptor, frame)
            synced = True  # from here on a failure leaves the page cache in an unknown state
            self._files.sync(descriptor)
        except OSError:
            self._take_back(descriptor, poisoned=synced)
            raise
        except BaseException:
            self._take_back(descriptor, poisoned=True)
            raise
        self._end += len(frame)

    def trim(self, size: int) -> None:
        """Remove the files that hold nothing but the first `size` entries; the last one stays.

        Raises:
            OSError: one cannot be removed.
        """
        while len(self._firsts) > 1 and self._firsts[1] <= size:
            self._files.unlink(segment_path(self._folder, self._firsts[0]))
            del self._firsts[0]

    def trimmable(self, size: int) -> int:
        """How many files `trim` would remove."""
        return sum(first <= size for first in self._firsts[1:])

    def close(self) -> None:
        """Let the last file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begin(self, first: int) -> None:
        """Begin a new file. It is there before anything is in it, so that nothing acknowledged lacks its name."""
        descriptor = self._files.open_append(segment_path(self._folder, first))
        try:
            self._files.sync_folder(self._folder / JOURNAL)
        except BaseException:
            os.close(descriptor)  # an empty file stays: the next append goes on with it
            raise
        self.close()
        self._descriptor, self._end = descriptor, 0
        self._firsts.append(first)

    def _untouched(self) -> int:
        assert self._descriptor is not None  # noqa: S101 - append has begun a file
        size = os.lseek(self._descriptor, 0, os.SEEK_END)  # less work than fstat; writes go there anyway
        if size != self._end:
            self.failed = True
            raise corrupt(
                segment_path(self._folder, self._firsts[-1]).relative_to(self._folder).as_posix(),
                f"it has {size} bytes, not the {self._end} written: somebody changed it",
            )
        return self._descriptor

    def _take_back(self, descriptor: int, *, poisoned: bool) -> None:
        try:
            self._files.truncate(descriptor, self._end)
        except OSError:
            poisoned = True  # the half-written frame stays: the next open sets it aside
        self.failed = self.failed or poisoned
