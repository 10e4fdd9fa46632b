"""Writes what is durable in the journal out as a log: bundles, tiles, and then the checkpoint over them.

In this order, so that whoever reads a checkpoint finds every tile and bundle that it needs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.tiles import Tile, tiles_between

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from egs_kernel.audit.edge import Edge
    from egs_kernel.audit.files import Files


_FOLDER = 1000
"""Tiles of a folder (`Tile.path`)."""


class Publisher:
    """One log's, of whose entries `full` are in full bundles on the disk. One thread at a time.

    Attributes:
        full: entries in full bundles: after `write`, on the disk (not synced).
    """

    def __init__(self, folder: Path, files: Files, full: int) -> None:
        self.full = full
        self._folder = folder
        self._files = files
        self._full: deque[tuple[Tile, bytes]] = deque()
        self._outdated: deque[Tile] = deque()
        self._partial: set[Tile] = set()  # that are written
        self._folders: set[Path] = set()  # that are there

    def take(self, tiles: Iterable[tuple[Tile, bytes]]) -> None:
        """Put full bundles and tiles, and their content, where they will be written from."""
        for tile, content in tiles:
            self._full.append((tile, content))
            if tile.level is None:
                self.full = tile.end

    def write(self) -> None:
        """Write the tiles and bundles that have become full.

        Raises:
            OSError: one cannot be written; the next call goes on with it.
        """
        while self._full:
            tile, content = self._full[0]
            self._put(tile, content)
            self._outdated.append(tile)
            self._full.popleft()

    def publish(self, note: bytes, partial: Iterable[tuple[Tile, bytes]]) -> None:
        """Write what is left, and the checkpoint of all that was taken; remove what no checkpoint needs any more.

        `partial`: the partial bundle and tiles at its size, and their content.

        Raises:
            OSError: something cannot be written; the checkpoint that is there stays good.
        """
        self.write()
        for tile, content in partial:
            if tile not in self._partial:
                self._put(tile, content)
                self._partial.add(tile)
        self._files.put(self._folder / CHECKPOINT, note, synced=True)
        while self._outdated:
            tile = self._outdated[0]
            self._remove_partial(tile)
            self._partial = {kept for kept in self._partial if kept.full != tile}
            self._outdated.popleft()

    def repair(self, base: int, edge: Edge) -> None:
        """Write partial tiles anew that a power loss may have left empty, of the tree from `base` entries on.

        Those that are part of a full tile are removed. `edge`: the tree's right end.

        Raises:
            OSError: the disk fails.
        """
        self.write()
        now = {(tile.level, tile.index) for tile in edge.partial()}
        for tile in tiles_between(base - 1 if base else 0, edge.size):
            if (tile.level, tile.index) not in now:
                self._remove_partial(tile)
                continue
            for path in self._partial_files(tile):
                older = Tile.parse(path.relative_to(self._folder).as_posix())
                if older is None or older.width > tile.width:
                    self._files.unlink(path)
            for path in self._partial_files(tile):
                older = Tile(tile.level, tile.index, int(path.name))
                self._put(older, edge.content(older))

    def _put(self, tile: Tile, content: bytes) -> None:
        path = self._folder / tile.path
        try:
            if path.parent not in self._folders:
                self._files.make_folder(path.parent)
                self._folders.add(path.parent)
            self._files.put(path, content)
        except OSError:
            self._folders.clear()  # somebody may have removed one
            raise
        if tile.index % _FOLDER == _FOLDER - 1:
            self._folders.discard(path.parent)

    def _remove_partial(self, tile: Tile) -> None:
        folder = self._folder / tile.partial_folder
        self._folders.discard(folder)
        if folder.is_dir():
            for path in self._partial_files(tile):
                self._files.unlink(path)
            self._files.remove_folder(folder)

    def _partial_files(self, tile: Tile) -> list[Path]:
        folder = self._folder / tile.partial_folder
        return sorted(folder.iterdir()) if folder.is_dir() else []
