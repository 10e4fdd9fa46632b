"""Reading the record, also while the daemon appends to it, and also a copy of its folder."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from egs_kernel.audit.checkpoint import CHECKPOINT, Checkpoint
from egs_kernel.audit.frames import frames_in
from egs_kernel.audit.layout import (
    JOURNAL,
    OLD_RECORD,
    TileFolder,
    find,
    old_record,
    segment_path,
    segments_of,
)
from egs_kernel.audit.lines import decode
from egs_kernel.audit.notes import Note
from egs_kernel.audit.tiles import WIDTH, bundle_of, unpack
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.entries import Recorded


class Reader:
    """The record in a folder. Nothing is verified (`check.verify` does that).

    Entries come out of the journal as far as it reaches back, and out of bundles before that; of a copy without a journal,
    out of bundles up to its checkpoint.
    """

    def __init__(self, folder: Path, cold: Path | None = None) -> None:
        self.folder = folder
        self.cold = cold

    @property
    def size(self) -> int:
        """How many entries there are now.

        Raises:
            RecordError: the record is damaged.
            EgsError: the record is missing or may not be read.
        """
        with _explained(self.folder), self.segments(None) as segments:
            for first, file in segments:
                size = first
                for frame in frames_in(file.read()):
                    size = frame.size
                return size
            return self._published()

    def lines(self, since: int = 0) -> Iterator[bytes]:
        """Entries (their bytes) from number `since` on, to the last one that is there.

        Raises:
            RecordError: a bundle is missing or damaged.
            EgsError: the record is missing or may not be read.
        """
        with _explained(self.folder), self.segments(since) as segments:
            begin = segments[0][0] if segments else self._published()
            for seq in range(since // WIDTH * WIDTH, begin, WIDTH) if since < begin else ():
                yield from self.bundle(seq, begin)[max(0, since - seq) :]
            for _first, file in segments:
                for frame in frames_in(file.read()):
                    if frame.size > since:
                        yield from frame.entries[max(0, since - frame.first) :]

    def line(self, seq: int) -> bytes:
        """One entry.

        Raises:
            EgsError: NOT_FOUND: there is none of that number.
            RecordError: its bundle is missing or damaged.
        """
        found = next(self.lines(seq), None)
        if found is None:
            raise EgsError(
                Reason.NOT_FOUND,
                f"there is no entry {seq}",
                f"There are {self.size} entries; the first is 0.",
            )
        return found

    @contextmanager
    def segments(self, since: int | None) -> Iterator[list[tuple[int, BinaryIO]]]:
        """The journal's files, open: those with entries from `since` on; None: the last one."""
        with ExitStack() as stack:
            while True:
                firsts = segments_of(self.folder)
                last = firsts[-1:]
                wanted = [
                    first for first, following in pairwise(firsts) if since is not None and following > since
                ]
                try:
                    yield [
                        (first, stack.enter_context(segment_path(self.folder, first).open("rb")))
                        for first in wanted + last
                    ]
                except FileNotFoundError:
                    continue  # the daemon has trimmed the journal: what was in it is in bundles now
                return

    def bundle(self, seq: int, size: int) -> list[bytes]:
        """The entries of the bundle that begins with `seq`, as far as they are below `size`."""
        tile = bundle_of(seq, size)
        tiles = TileFolder(self.folder, self.cold)
        width = tile.width
        if find(self.folder, self.cold, tile.full) is not None:
            tile = tile.full
        return unpack(tiles.read(tile), tile.path, tile.width)[:width]

    def checkpoint(self) -> Checkpoint | None:
        """The published checkpoint, whoever signed it; None of a new record.

        Raises:
            NoteError: it is none.
            EgsError: it may not be read.
        """
        with _explained(self.folder):
            path = self.folder / CHECKPOINT
            return Checkpoint.parse(Note.parse(path.read_bytes()).text) if path.exists() else None

    def _published(self) -> int:
        checkpoint = self.checkpoint()
        return 0 if checkpoint is None else checkpoint.size


def open_record(folder: Path, cold: Path | None = None) -> Reader:
    """The record in a folder, or a copy of it; `cold`: where entries of long ago were moved to.

    Raises:
        EgsError: NOT_FOUND or NOT_PERMITTED.
        RecordError: RECORD_UNAVAILABLE: an earlier version wrote it, or the disk fails.
    """
    with _explained(folder):
        names = {path.name for path in folder.iterdir()}
        if OLD_RECORD in names:
            raise old_record(folder)
        if not names & {JOURNAL, CHECKPOINT}:
            raise FileNotFoundError(errno.ENOENT, "no journal and no checkpoint")
        return Reader(folder, cold)


def read(folder: Path, since: int = 0) -> Iterator[Recorded]:
    """Entries from number `since` on. Nothing is verified (`check.verify` does that).

    Raises:
        RecordError: an entry is damaged, or a later version wrote it.
        EgsError: the record is missing or may not be read.
    """
    for seq, line in enumerate(open_record(folder).lines(since), since):
        yield decode(line, f"entry {seq}")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EgsError(
            Reason.NOT_FOUND, f"there is no record in {folder}", "Start egsd, or name the record's folder."
        ) from error
    except PermissionError as error:
        raise EgsError(
            Reason.NOT_PERMITTED,
            f"{folder} may not be read by this user",
            "Run as root, or as a member of the folder's group.",
        ) from error
    except OSError as error:
        raise RecordError(
            Reason.RECORD_UNAVAILABLE, f"{folder} cannot be read: {error.strerror}", "Check the disk (dmesg)."
        ) from error
