"""The record as it grows: each entry once, in order, without reading again what was read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from egs_kernel.audit.frames import frames_in
from egs_kernel.audit.layout import JOURNAL, segment_path, segments_of
from egs_kernel.audit.lines import decode
from egs_kernel.audit.reader import Reader
from egs_kernel.daemon.watch import FILE, FOLDER, Watcher
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from egs_kernel.audit.entries import Recorded


class Tail:
    """Follows the record in a folder; the descriptor is readable when there may be more.

    Attributes:
        seq: the number of the next entry.
        unread: entries that a later version wrote: they were skipped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = Reader(folder)
        self._watcher = Watcher(lambda: None)
        self._watcher.add(folder / JOURNAL, FILE | FOLDER, lambda _name: None)
        self._file: BinaryIO | None = None
        self._first = -1
        self._rest = b""
        self._between = False
        self.seq = 0
        self.unread = 0

    def fileno(self) -> int:
        """Readable when the journal changed."""
        return self._watcher.fileno()

    def close(self) -> None:
        """Let go of it."""
        self._watcher.close()
        if self._file is not None:
            self._file.close()

    def skip(self) -> None:
        """Begin with what comes from now on.

        Raises:
            EgsError: the record cannot be read.
        """
        self.seq = self._reader.size

    def read(self) -> Iterator[Recorded]:
        """The entries that have come since.

        Raises:
            EgsError: the record cannot be read, or is damaged.
        """
        self._watcher.dispatch()
        while True:
            if self._file is None:
                yield from self._catch_up()
            yield from self._read_on()
            if self._file is None and self._between:
                continue
            if not self._turn():
                return

    def _catch_up(self) -> Iterator[Recorded]:
        """From wherever it stands, bundles included; then the journal is followed from its last file on."""
        self.seq = max(self.seq, self._reader.first)
        for line in self._reader.lines(self.seq):
            yield from self._decoded(line)
        firsts = segments_of(self._folder)
        if firsts:
            self._open(firsts[-1])

    def _open(self, first: int) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        try:
            self._file = segment_path(self._folder, first).open("rb")
        except FileNotFoundError:
            return  # trimmed: the next read catches up
        self._first, self._rest = first, b""

    def _read_on(self) -> Iterator[Recorded]:
        self._between = False
        if self._file is None:
            return
        content = self._rest + self._file.read()
        end = 0
        for frame in frames_in(content):
            end = frame.end
            if frame.first > self.seq:
                self._file.close()
                self._file, self._between = None, True
                return  # the journal was written anew meanwhile: catch up
            if frame.size > self.seq:
                for line in frame.entries[self.seq - frame.first :]:
                    yield from self._decoded(line)
        self._rest = content[end:]

    def _turn(self) -> bool:
        """Go on to the next file of the journal, if there is one, or to the one that took the place of this one."""
        if self._file is None:
            return False
        later = [first for first in segments_of(self._folder) if first > self._first]
        if later:
            self._open(later[0])
        elif not self._is_still_there():
            self._file.close()
            self._file = None
            return True  # catches up
        else:
            return False
        return self._file is not None

    def _is_still_there(self) -> bool:
        """Whether the open file is the one of that name: a daemon that starts writes the last one anew."""
        if self._file is None:
            return False
        try:
            now = segment_path(self._folder, self._first).stat()
        except FileNotFoundError:
            return False
        return now.st_ino == os.fstat(self._file.fileno()).st_ino

    def _decoded(self, line: bytes) -> Iterator[Recorded]:
        self.seq += 1
        try:
            yield decode(line)
        except RecordError as error:
            if error.reason is not Reason.RECORD_UNAVAILABLE:
                raise
            self.unread += 1  # of a later version
