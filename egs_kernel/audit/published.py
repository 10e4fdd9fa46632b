"""A log's static files (C2SP tlog-tiles) as a reader meets them: checkpoint, tiles, bundles."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.merkle import HASH_BYTES
from egs_kernel.audit.notes import MAX_NOTE
from egs_kernel.audit.tiles import MAX_ENTRY, WIDTH, Tile
from egs_kernel.errors import UnsafePath
from egs_kernel.model import Reason
from egs_kernel.ownership import require_private_folder

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BUNDLE: Final = WIDTH * (2 + MAX_ENTRY)
_SHARED_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class Published:
    """The files below a record's folder. Every method raises OSError when there is no such file or it may not be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self) -> bytes:
        """The published checkpoint, a signed note; nothing of it is verified.

        Raises:
            UnsafePath: others could have changed it.
        """
        return self.read(CHECKPOINT, MAX_NOTE)

    def tile(self, tile: Tile) -> bytes:
        """A tile or bundle; a partial one out of a wider one, when that has taken its place.

        Raises:
            UnsafePath: others could have changed it.
        """
        limit = _MAX_BUNDLE if tile.level is None else WIDTH * HASH_BYTES
        try:
            return self.read(tile.path, limit)
        except FileNotFoundError:
            if tile.width == WIDTH:
                raise
        content = self.read(self._wider(tile).path, limit)
        end = _end_of(content, tile.width) if tile.level is None else tile.width * HASH_BYTES
        return content[:end]

    def read(self, path: str, limit: int) -> bytes:
        """A file below the folder, of at most `limit` bytes.

        Raises:
            UnsafePath: others could have changed it, or it is larger.
        """
        require_private_folder(self._folder)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / path, flags)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            content = file.read(limit + 1) if stat.S_ISREG(status.st_mode) else b""
        if status.st_mode & _SHARED_WRITE or not stat.S_ISREG(status.st_mode) or len(content) > limit:
            raise UnsafePath(
                Reason.PATH_UNSAFE,
                f"{self._folder / path} is no file of at most {limit} bytes that only its owner can change",
                "Run: egs audit verify",
            )
        return content

    def _wider(self, tile: Tile) -> Tile:
        partial = (self._folder / tile.path).parent
        try:
            widths = sorted(int(path.name) for path in partial.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            widths = []
        return Tile(tile.level, tile.index, next((width for width in widths if width > tile.width), WIDTH))


def _end_of(bundle: bytes, count: int) -> int:
    """Where the first entries of a bundle end, each being after its length."""
    end = 0
    for _ in range(count):
        end += 2 + int.from_bytes(bundle[end : end + 2])
    return end
