"""The tiles and bundles on the disk, compared with those that the entries give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.files import FRESH
from egs_kernel.audit.layout import TILES, find, foreign
from egs_kernel.audit.merkle import HASH_BYTES, leaf_hashes, root
from egs_kernel.audit.tiles import HEIGHT, WIDTH, Tile, complete_root, nodes_of, tile_at, unpack
from egs_kernel.errors import RecordError

if TYPE_CHECKING:
    from egs_kernel.audit.checkpoint import Checkpoint
    from egs_kernel.audit.reader import Reader


class Shelves:
    """The tiles and bundles of a record with a checkpoint."""

    def __init__(self, folder: Path, cold: Path | None, published: Checkpoint) -> None:
        self._folder = folder
        self._cold = cold
        self._published = published
        self._partial: dict[Tile, bytes] = {}

    def compare(self, tile: Tile, content: bytes) -> None:
        """Check that a tile or bundle is what the entries give, when the checkpoint needs it.

        Raises:
            RecordError: RECORD_CORRUPT: it is not, and whether it is wrong itself or an entry is.
        """
        if tile.end > self._published.size:
            return
        found = self._file(tile)
        if tile.width < WIDTH:
            self._partial[tile.full] = content
            if found is None:  # it has become full, and the partial one is gone
                found = self._file(tile.full)
                found = found and found[: len(content)]
        if found is None:
            raise corrupt(tile.path, "it is missing")
        if found != content:
            raise self._difference(tile, content, found)

    def require_nothing_else(self, reader: Reader) -> None:
        """Check that there is nothing but tiles and bundles, and that old partial ones are parts of later ones.

        Raises:
            RecordError: RECORD_CORRUPT, or RECORD_UNAVAILABLE when there is a file that does not belong there.
        """
        paths = _files_below(self._folder / TILES)
        size = reader.size
        for path in paths:
            tile = Tile.parse(path.relative_to(self._folder).as_posix())
            if tile is None and not path.name.endswith(FRESH) and os.path.lexists(path):  # not just removed
                raise foreign(path)
            if tile is not None and tile.first >= size:
                raise corrupt(tile.path, f"it is beyond the record's end, entry {size - 1}")
            if tile is not None and tile.width < WIDTH and tile.end <= self._published.size:
                self._compare_partial(tile)

    def _compare_partial(self, tile: Tile) -> None:
        later = self._partial.get(tile.full) or self._file(tile.full)
        found = self._file(tile)
        if later is None or found is None:
            return  # just removed
        if tile.level is None:
            unpack(found, tile.path, tile.width)
        if not later.startswith(found) or (tile.level is not None and len(found) != tile.width * HASH_BYTES):
            raise corrupt(tile.path, "it is no part of the tile that it became")

    def _difference(self, tile: Tile, content: bytes, found: bytes) -> RecordError:
        if tile.level is None:
            return self._bundle_difference(tile, content, found)
        if len(found) != len(content):
            return corrupt(tile.path, f"{len(found)} bytes where {tile.width} hashes belong")
        at = next(at for at in range(len(content)) if content[at] != found[at]) // HASH_BYTES
        span = 1 << HEIGHT * tile.level
        first = tile.first + at * span
        entries = f"entry {first}" if span == 1 else f"entries {first} to {first + span - 1}"
        if self._fits(tile, found):
            where = f"entry {first}" if span == 1 else Tile(None, first // WIDTH).path
            return corrupt(where, f"{entries} cannot have the hash {at} of {tile.path}, which was signed")
        return corrupt(tile.path, f"its hash {at} is not that of {entries}")

    def _bundle_difference(self, tile: Tile, content: bytes, found: bytes) -> RecordError:
        """Of entries out of the journal, and their bundle: the hashes tell which of them were signed."""
        try:
            bundled = leaf_hashes(unpack(found, tile.path, tile.width))
        except RecordError as error:
            return error
        hashes = Tile(0, tile.index, tile.width)
        signed = b"".join(bundled)
        if signed != self._tile(hashes) or not self._fits(hashes, signed):
            return corrupt(tile.path, "its entries are not those of the journal, or of the tree")
        written = leaf_hashes(unpack(content, tile.path, tile.width))
        at = next(at for at in range(tile.width) if written[at] != bundled[at])
        return corrupt(
            f"entry {tile.first + at}", f"the journal has another one than {tile.path}, which was signed"
        )

    def _fits(self, tile: Tile, found: bytes) -> bool:
        """Whether a tile, as it is on the disk, fits to what is above it: then it is what was signed."""
        assert tile.level is not None  # noqa: S101 - only of tiles
        size = self._published.size
        parent = tile_at(tile.level + 1, tile.index >> HEIGHT, size)
        above = self._file(parent) or self._file(parent.full) if tile.width == WIDTH else None
        if above is not None:
            start = tile.index % WIDTH * HASH_BYTES
            return above[start : start + HASH_BYTES] == complete_root(found)
        try:
            return root(size, nodes_of(self._tile, size)) == self._published.root
        except RecordError:
            return False

    def _tile(self, tile: Tile) -> bytes:
        found = self._file(tile) or self._file(tile.full)
        if found is None:
            raise corrupt(tile.path, "it is missing")
        return found[: tile.width * HASH_BYTES]

    def _file(self, tile: Tile) -> bytes | None:
        path = find(self._folder, self._cold, tile)
        try:
            return None if path is None else path.read_bytes()
        except FileNotFoundError:  # just removed
            return None


def _files_below(folder: Path) -> list[Path]:
    """Whatever is no folder; a folder of partial tiles that the daemon just removed had nothing more to say."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return sorted(Path(at, name) for at, _, names in os.walk(folder, onerror=failed) for name in names)
