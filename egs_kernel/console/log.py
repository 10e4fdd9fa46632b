"""The log below `/log/`: the record's checkpoint, tiles and, where that is wanted, entries (C2SP tlog-tiles)."""

from __future__ import annotations

import gzip
import os
import stat
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.merkle import HASH_BYTES
from egs_kernel.audit.notes import MAX_NOTE
from egs_kernel.audit.tiles import MAX_ENTRY, WIDTH, Tile
from egs_kernel.errors import EgsError
from egs_kernel.ownership import require_private_folder

if TYPE_CHECKING:
    from pathlib import Path

FOREVER: Final = "public, max-age=31536000, immutable"
_TILES: Final = "application/octet-stream"
_MAX_BUNDLE: Final = WIDTH * (2 + MAX_ENTRY)
_SHARED_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class Unreadable(Exception):
    """A file of the record that is not served, and why."""


class PublishedLog:
    """A record's folder as others may see it.

    Args:
        folder: the record's folder (`Paths.record`); the process's groups say whether it may be read.
        entries: whether entries are shown, to everybody who reaches the address. Hashes and checkpoints always are.
    """

    def __init__(self, folder: Path, *, entries: bool) -> None:
        self._folder = folder
        self._entries = entries

    def answer(self, path: str, *, compressed: bool) -> Response:
        """What is at a path below the log's address: `checkpoint`, `tile/…`; 404, 403 or 503 with the reason.

        Args:
            path: as it was asked for; only a path of tlog-tiles leads to a file.
            compressed: whether the client takes gzip.
        """
        tile = Tile.parse(path)
        if tile is None and path != CHECKPOINT:
            return PlainTextResponse("no resource of a log (C2SP tlog-tiles)\n", 404)
        if tile is not None and tile.level is None and not self._entries:
            return PlainTextResponse("entries are not shown here: console.entries in egs.toml\n", 403)
        try:
            require_private_folder(self._folder)
            content = self._read(CHECKPOINT, MAX_NOTE) if tile is None else self._tile(tile)
        except (EgsError, Unreadable, OSError) as error:
            return _refusal(error.__cause__ or error)
        if tile is None:
            return PlainTextResponse(content, headers={"Cache-Control": "no-cache"})
        headers = {"Content-Type": _TILES, "Cache-Control": FOREVER}
        if tile.level is None:
            headers["Vary"] = "Accept-Encoding"
            if compressed:
                content = gzip.compress(content, compresslevel=3, mtime=0)
                headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers)

    def _tile(self, tile: Tile) -> bytes:
        """A tile or bundle; a partial one out of a wider one, when that has taken its place."""
        limit = _MAX_BUNDLE if tile.level is None else WIDTH * HASH_BYTES
        try:
            return self._read(tile.path, limit)
        except FileNotFoundError:
            if tile.width == WIDTH:
                raise
        wider = self._wider(tile)
        content = self._read(wider.path, limit)
        if tile.level is None:
            return content[: _end_of(content, tile.width)]
        return content[: tile.width * HASH_BYTES]

    def _wider(self, tile: Tile) -> Tile:
        partial = (self._folder / tile.path).parent
        try:
            widths = sorted(int(path.name) for path in partial.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            widths = []
        return Tile(tile.level, tile.index, next((width for width in widths if width > tile.width), WIDTH))

    def _read(self, path: str, limit: int) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / path, flags)
        except NotADirectoryError as error:
            raise FileNotFoundError from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & _SHARED_WRITE:
                raise Unreadable(f"{path} is no file that only its owner can change")
            content = file.read(limit + 1)
        if len(content) > limit:
            raise Unreadable(f"{path} is larger than {limit} bytes")
        return content


def _end_of(bundle: bytes, count: int) -> int:
    """Where the first entries of a bundle end, each being after its length."""
    end = 0
    for _ in range(count):
        end += 2 + int.from_bytes(bundle[end : end + 2])
    return end


def _refusal(error: BaseException) -> Response:
    if isinstance(error, FileNotFoundError):
        return PlainTextResponse("the log has no such resource\n", 404)
    if isinstance(error, PermissionError):
        return PlainTextResponse("this process may not read the record: add it to its group\n", 403)
    return PlainTextResponse(f"the record cannot be shown: {error}\n", 503)
