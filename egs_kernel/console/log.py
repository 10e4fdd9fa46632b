"""The log below `/log/`: the record's checkpoint, tiles and, where that is wanted, entries (C2SP tlog-tiles)."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.notes import MAX_NOTE
from egs_kernel.audit.published import Published
from egs_kernel.audit.tiles import Tile
from egs_kernel.errors import EgsError
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COSIGNED_SECONDS: Final = 600.0
"""How long a cosigned checkpoint is shown though there is a newer one."""
FOREVER: Final = "public, max-age=31536000, immutable"
_TILES: Final = "application/octet-stream"


class PublishedLog:
    """A record's folder as others may see it.

    Args:
        folder: the record's folder (`Paths.record`); the process's groups say whether it may be read.
        cosigned: the latest cosigned checkpoint (`Paths.cosigned`), which is shown while it is fresh.
        clock: Unix seconds.
        entries: whether entries are shown, to everybody who reaches the address. Hashes and checkpoints always are.
    """

    def __init__(self, folder: Path, cosigned: Path, clock: Callable[[], float], *, entries: bool) -> None:
        self._files = Published(folder)
        self._cosigned = cosigned
        self._clock = clock
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
            content = self._checkpoint() if tile is None else self._files.tile(tile)
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

    def _checkpoint(self) -> bytes:
        """The cosigned one: who asks for cosignatures wants nothing newer. Old, its witnesses may be gone."""
        content = self._files.checkpoint()
        try:
            age = self._clock() - self._cosigned.stat().st_mtime
            return read_private_file(self._cosigned, MAX_NOTE) if age <= COSIGNED_SECONDS else content
        except FileNotFoundError:
            return content


def _refusal(error: BaseException) -> Response:
    if isinstance(error, FileNotFoundError):
        return PlainTextResponse("the log has no such resource\n", 404)
    if isinstance(error, PermissionError):
        return PlainTextResponse("this process may not read the record: add it to its group\n", 403)
    return PlainTextResponse(f"the record cannot be shown: {error}\n", 503)
