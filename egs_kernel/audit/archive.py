"""Entries of long ago, moved to another folder in the same layout: full bundles, which never change.

Hashes stay, 32 bytes for each entry, so every proof stays possible, and what is moved can be verified as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.merkle import HASH_BYTES, leaf_hash
from egs_kernel.audit.tiles import WIDTH, Tile, unpack
from egs_kernel.durable import replace_file, sync_folder
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT: Final = 1 << 15
"""The newest entries, which stay: a daemon that starts looks through many of them."""


def move_bundles(
    folder: Path, cold: Path, end: int, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> int:
    """Move every full bundle with entries below `end` alone.

    A bundle is compared with the tree's hashes, is durable in `cold`, and only then deleted.

    Args:
        folder: the record's folder.
        cold: where to; made when it is missing.
        end: entries that may go, all of them under the published checkpoint.
        progress: called now and then with bundles done and in all.

    Returns:
        How many entries were moved.

    Raises:
        RecordError: RECORD_CORRUPT: a bundle is not what the tree says; it stays. RECORD_UNAVAILABLE: a disk fails.
        EgsError: NOT_PERMITTED.
    """
    moved = 0
    count = max(0, end) // WIDTH
    try:
        for index in range(count):
            tile = Tile(None, index)
            if (folder / tile.path).exists():
                _move(folder, cold, tile)
                moved += WIDTH
            progress(index + 1, count)
    except PermissionError as error:
        raise EgsError(
            Reason.NOT_PERMITTED,
            f"{error.filename} may not be moved",
            "Run as root, while the gate is not sealed (egs status).",
        ) from error
    except OSError as error:
        raise RecordError(
            Reason.RECORD_UNAVAILABLE,
            f"{error.filename or cold}: {error.strerror}; {moved} entries were moved",
            "Free space or repair the disk, then run it again: it goes on where it ended.",
        ) from error
    return moved


def _move(folder: Path, cold: Path, tile: Tile) -> None:
    content = (folder / tile.path).read_bytes()
    hashes = (folder / Tile(0, tile.index).path).read_bytes()
    found = b"".join(leaf_hash(entry) for entry in unpack(content, tile.path, WIDTH))
    if found != hashes[: WIDTH * HASH_BYTES]:
        raise corrupt(tile.path, "its entries are not those of the tree")
    target = cold / tile.path
    _make_folder(target.parent)
    replace_file(target, content, 0o640)
    (folder / tile.path).unlink()
    sync_folder((folder / tile.path).parent)


def _make_folder(folder: Path) -> None:
    """Durably: what is moved below it is deleted where it was."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o750)
        sync_folder(folder.parent)
