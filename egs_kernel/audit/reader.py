"""Reading the record, also while the daemon appends to it, and also a copy of its folder."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from functools import lru_cache
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
from egs_kernel.audit.tiles import WIDTH, Tile, bundle_of, unpack
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.entries import Recorded


_BUNDLES = 32
"""That are kept for who asks for one entry after the other."""


class Reader:
    """The record in a folder. Nothing is verified (`check.verify` does that).

    Entries come out of the journal as far as it reaches back, and out of bundles before that; of a copy without a journal,
    out of bundles up to its checkpoint.
    """

    def __init__(self, folder: Path, cold: Path | None = None) -> None:
        self.folder = folder
        self.cold = cold
        self._full = lru_cache(maxsize=_BUNDLES)(self._read_full)
        self._tail: list[bytes] = []  # what was in no full bundle when it was last looked for
        self._tail_first = 0

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

    @property
    def first(self) -> int:
        """The first entry that was not moved to cold storage: the oldest bundles go first, and some stay.

        Raises:
            EgsError: the record is missing or may not be read.
        """
        with _explained(self.folder):
            low, high = 0, next(iter(segments_of(self.folder)), 0) // WIDTH
            while low < high:
                middle = (low + high) // 2 if low else 0  # as a rule nothing was moved
                if find(self.folder, self.cold, Tile(None, middle)) is None:
                    low = middle + 1
                else:
                    high = middle
            return low * WIDTH

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
        index, place = divmod(seq, WIDTH)
        with _explained(self.folder):
            if find(self.folder, self.cold, Tile(None, index)) is not None:
                return self._full(index)[place]
        if not self._tail_first <= seq < self._tail_first + len(self._tail):
            self._tail_first, self._tail = index * WIDTH, list(self.lines(index * WIDTH))
        if seq - self._tail_first >= len(self._tail):
            raise EgsError(
                Reason.NOT_FOUND,
                f"there is no entry {seq}",
                f"There are {self.size} entries; the first is 0.",
            )
        return self._tail[seq - self._tail_first]

    @contextmanager
    def segments(self, since: int | None) -> Iterator[list[tuple[int, BinaryIO]]]:
        """The journal's files, open: those with entries from `since` on; None: the last one."""
        with ExitStack() as stack:
            found = self._open_segments(stack, since)
            while found is None:  # the daemon has trimmed the journal: what was in it is in bundles now
                found = self._open_segments(stack, since)
            yield found

    def _open_segments(self, stack: ExitStack, since: int | None) -> list[tuple[int, BinaryIO]] | None:
        firsts = segments_of(self.folder)
        wanted = [first for first, following in pairwise(firsts) if since is not None and following > since]
        try:
            return [
                (first, stack.enter_context(segment_path(self.folder, first).open("rb")))
                for first in wanted + firsts[-1:]
            ]
        except FileNotFoundError:
            return None

    def bundle(self, seq: int, size: int) -> list[bytes]:
        """The entries of the bundle that begins with `seq`, as far as they are below `size`."""
        tile = bundle_of(seq, size)
        tiles = TileFolder(self.folder, self.cold)
        width = tile.width
        if find(self.folder, self.cold, tile.full) is not None:
            tile = tile.full
        return unpack(tiles.read(tile), tile.path, tile.width)[:width]

    def _read_full(self, index: int) -> list[bytes]:
        tile = Tile(None, index)
        return unpack(TileFolder(self.folder, self.cold).read(tile), tile.path, WIDTH)

    def published(self) -> tuple[bytes, Checkpoint]:
        """The published checkpoint, as it stands in its file, and what it says. Whoever signed it.

        Raises:
            NoteError: it is none.
            EgsError: NOT_FOUND: nothing is published; it may not be read.
        """
        with _explained(self.folder):
            note = (self.folder / CHECKPOINT).read_bytes()
        return note, Checkpoint.parse(Note.parse(note).text)

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
