"""What stands in the record's folder (docs/record.md), and what of it another program may have put there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.files import FRESH
from egs_kernel.audit.merkle import HASH_BYTES
from egs_kernel.audit.tiles import WIDTH, Tile, complete_root
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

JOURNAL: Final = "journal"
TILES: Final = "tile"
STATE: Final = "state.json"
PENDING: Final = ".pending"
"""What the name of a torn tail's file ends in until an entry tells of it."""
OLD_RECORD: Final = "record.jsonl"
"""The record of versions before there was a log."""

_SEGMENT = re.compile(rf"([0-9]{{20}})({re.escape(FRESH)})?", re.ASCII)
_TORN = re.compile(rf"torn-[0-9]+-[0-9a-f]{{16}}\.bin({re.escape(PENDING)})?", re.ASCII)
_OURS = {CHECKPOINT, STATE, JOURNAL, TILES, CHECKPOINT + FRESH, STATE + FRESH}


def segment_path(folder: Path, first: int) -> Path:
    """The journal's file whose first entry is number `first`."""
    return folder / JOURNAL / f"{first:020}"


def segments_of(folder: Path) -> list[int]:
    """The numbers of the first entries of the journal's files, in order.

    Raises:
        RecordError: RECORD_UNAVAILABLE: somebody put a file there.
        OSError: the folder cannot be read.
    """
    found = []
    try:
        names = sorted(path.name for path in (folder / JOURNAL).iterdir())
    except FileNotFoundError:
        return []
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match is None:
            raise foreign(folder / JOURNAL / name)
        if match[2] is None:
            found.append(int(match[1]))
    return found


def require_ours(folder: Path) -> None:
    """Check the names in the record's folder.

    Raises:
        RecordError: RECORD_UNAVAILABLE: there is something that does not belong there.
        OSError: the folder cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir())
    if OLD_RECORD in names:
        raise old_record(folder)
    for name in names:
        if name not in _OURS and _TORN.fullmatch(name) is None:
            raise foreign(folder / name)


def old_record(folder: Path) -> RecordError:
    """The error for a record that an earlier version wrote."""
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"{folder / OLD_RECORD} is a record of an earlier version, which was a chain and not a log",
        f"Move {folder} away and keep it; a new record begins then, in which no uses are counted yet: "
        "revoke artifacts with limited uses first.",
    )


def foreign(path: Path) -> RecordError:
    """The error for a file in the record's folder that nobody of ours wrote."""
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"{path} does not belong in the record's folder",
        f"Find out who put it there, and move it away: mv {path} /root/",
    )


def find(folder: Path, cold: Path | None, tile: Tile) -> Path | None:
    """Where a tile or bundle is: in the record's folder, or, as a bundle, where it was moved to; None: nowhere."""
    path = folder / tile.path
    if path.exists():
        return path
    if tile.level is None and cold is not None and (cold / tile.path).exists():
        return cold / tile.path
    return None


def missing(tile: Tile) -> RecordError:
    """The error for a tile or bundle that is not there."""
    error = corrupt(tile.path, "it is missing")
    if tile.level is None:
        error.next_step = (
            f"If entries were archived, name their folder: --cold DIR. Otherwise: {error.next_step}"
        )
    return error


class TileFolder:
    """The tiles and bundles of a record's folder, read one by one."""

    def __init__(self, folder: Path, cold: Path | None = None) -> None:
        """Of the record in `folder`; `cold`: where bundles of long ago were moved to (`egs audit archive`)."""
        self._folder = folder
        self._cold = cold

    def read(self, tile: Tile) -> bytes:
        """The content of a tile or bundle.

        Raises:
            RecordError: RECORD_CORRUPT: it is missing, or a tile of the wrong length.
            OSError: it cannot be read.
        """
        for place in (tile.full, tile, tile.full):  # a partial one goes when the full one is there
            content = self._content(place)
            if content is not None:
                return content if tile.level is None else content[: tile.width * HASH_BYTES]
        raise missing(tile)

    def read_full(self, tile: Tile) -> bytes:
        """The same, out of full tiles alone, which are synced when a record depends on them; partial ones never are.

        A partial tile is part of the full one where that is there; otherwise it is made of the level below, which has a full
        tile for each of its hashes.

        Raises:
            RecordError: RECORD_CORRUPT: one is missing, or of the wrong length.
            OSError: one cannot be read.
        """
        if tile.level and tile.width < WIDTH and find(self._folder, self._cold, tile.full) is None:
            first = tile.index * WIDTH
            below = (Tile(tile.level - 1, index) for index in range(first, first + tile.width))
            return b"".join([complete_root(self.read_full(each)) for each in below])
        content = self._content(tile.full)
        if content is None:
            raise missing(tile)
        return content if tile.level is None else content[: tile.width * HASH_BYTES]

    def _content(self, tile: Tile) -> bytes | None:
        path = find(self._folder, self._cold, tile)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None  # just removed
        if tile.level is not None and len(content) != tile.width * HASH_BYTES:
            raise corrupt(tile.path, f"{len(content)} bytes where {tile.width} hashes belong")
        return content
