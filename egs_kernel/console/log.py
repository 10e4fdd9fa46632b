"""The log below `/log/`: the record's checkpoint, tiles and, where that is wanted, entries (C2SP tlog-tiles)."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.published import Published
from egs_kernel.audit.tiles import Tile
from egs_kernel.errors import EgsError

if TYPE_CHECKING:
    from pathlib import Path

FOREVER: Final = "public, max-age=31536000, immutable"
_TILES: Final = "application/octet-stream"


class PublishedLog:
    """A record's folder as others may see it.

    Args:
        folder: the record's folder (`Paths.record`); the process's groups say whether it may be read.
        entries: whether entries are shown, to everybody who reaches the address. Hashes and checkpoints always are.
    """

    def __init__(self, folder: Path, *, entries: bool) -> None:
        self._files = Published(folder)
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
            content = self._files.checkpoint() if tile is None else self._files.tile(tile)
        except (EgsError, OSError) as error:
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


def _refusal(error: BaseException) -> Response:
    if isinstance(error, FileNotFoundError):
        return PlainTextResponse("the log has no such resource\n", 404)
    if isinstance(error, PermissionError):
        return PlainTextResponse("this process may not read the record: add it to its group\n", 403)
    return PlainTextResponse(f"the record cannot be shown: {error}\n", 503)
