"""The tree as files (C2SP tlog-tiles): 256 hashes to a tile, 256 entries to a bundle, and where each stands. Pure.

A tile of level L holds nodes of the tree's level 8 * L. Tiles at the tree's right end may be partial, with a width below
256; a full one never changes. Bundles are counted as the tiles of level 0 are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, Self

import msgspec

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.merkle import HASH_BYTES, Nodes, node_hash

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
"""Hashes of a full tile, entries of a full bundle."""
ENTRIES: Final = "entries"
MAX_ENTRY: Final = 0xFFFF
"""Bytes of an entry at most: its length is a big-endian uint16."""

_PREFIX = 2
_PATH = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*)([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)
_MAX_LEVEL = 63


class Tile(msgspec.Struct, frozen=True, order=True):
    """A tile, or with `level` None a bundle of entries: the `index`-th of its level, with `width` items."""

    level: int | None
    index: int
    width: int = WIDTH

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """The tile whose path that is; None when it is no tile's."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        index = int(match[2].replace("x", "").replace("/", "") + match[3])
        level = None if match[1] == ENTRIES else int(match[1])
        tile = cls(level, index, int(match[4] or WIDTH))
        return tile if tile.path == path and (level or 0) <= _MAX_LEVEL else None

    @property
    def path(self) -> str:
        """Below the log's folder or address: `tile/0/x001/x234/067`, `tile/entries/000.p/5`."""
        groups = [f"{self.index % 1000:03}"]
        rest = self.index // 1000
        while rest:
            groups.append(f"x{rest % 1000:03}")
            rest //= 1000
        level = ENTRIES if self.level is None else self.level
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"

    @property
    def partial_folder(self) -> str:
        """Where what it was before it became full stands, or will stand: `tile/entries/000.p`."""
        return f"{self.full.path}.p"

    @property
    def full(self) -> Tile:
        """The full tile that this one becomes."""
        return Tile(self.level, self.index)

    @property
    def first(self) -> int:
        """The first entry below it."""
        return self.index << HEIGHT * ((self.level or 0) + 1)

    @property
    def end(self) -> int:
        """The first entry beyond it."""
        return self.first + (self.width << HEIGHT * (self.level or 0))


ReadTile = Callable[[Tile], bytes]
"""The content of a tile or bundle; raises what its storage raises."""


def tile_at(level: int, index: int, size: int) -> Tile:
    """The tile of tile level `level` and number `index`, as wide as it is in a tree of `size` leaves."""
    return Tile(level, index, min(WIDTH, (size >> HEIGHT * level) - (index << HEIGHT)))


def bundle_of(seq: int, size: int) -> Tile:
    """The bundle that holds entry `seq` in a tree of `size` leaves."""
    index = seq >> HEIGHT
    return Tile(None, index, min(WIDTH, size - (index << HEIGHT)))


def tiles_between(old: int, size: int) -> Iterator[Tile]:
    """Tiles and bundles that a tree of `size` leaves has, and that of `old` did not: bundles first, then by level.

    These are what has to be written when a tree has grown. Those at the right end may be partial.
    """
    level: int | None = None
    before, count = old, size
    while count:
        for index in range(before >> HEIGHT, -(-count // WIDTH)):
            width = min(WIDTH, count - (index << HEIGHT))
            if before < (index << HEIGHT) + width:
                yield Tile(level, index, width)
        level, before, count = (
            (0, old, size) if level is None else (level + 1, before >> HEIGHT, count >> HEIGHT)
        )


def nodes_of(read: ReadTile, size: int) -> Nodes:
    """The nodes of a tree of `size` leaves, out of its tiles. Each tile is read once while it is of use.

    What a tile holds is believed: whoever reads proofs out of it compares them with a signed root.

    Raises (when asked):
        RecordError: RECORD_CORRUPT: a tile has the wrong length.
    """

    @lru_cache(maxsize=256)
    def content(level: int, index: int) -> bytes:
        tile = tile_at(level, index, size)
        found = read(tile)
        if len(found) != tile.width * HASH_BYTES:
            raise corrupt(tile.path, f"{len(found)} bytes where {tile.width} hashes belong")
        return found

    def node(level: int, index: int) -> bytes:
        steps = level % HEIGHT
        first = index << steps
        tile = content(level // HEIGHT, first >> HEIGHT)
        start = (first & (WIDTH - 1)) * HASH_BYTES
        return complete_root(tile[start : start + (HASH_BYTES << steps)])

    return node


def complete_root(hashes: bytes) -> bytes:
    """The root over a power of two of hashes that stand one after the other."""
    row = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    while len(row) > 1:
        row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
    return row[0]


def pack_entry(entry: bytes) -> bytes:
    """An entry as it stands in a bundle: after its length. A bundle is nothing but such entries.

    Raises:
        OverflowError: it is longer than `MAX_ENTRY`.
    """
    return len(entry).to_bytes(_PREFIX) + entry


def unpack(content: bytes, where: str, count: int) -> list[bytes]:
    """The entries of a bundle; `where` names it in errors.

    Raises:
        RecordError: RECORD_CORRUPT: the lengths do not add up, or there are not `count` entries.
    """
    entries = []
    start, end = 0, len(content)
    while start < end:
        first = start + _PREFIX
        start = first + int.from_bytes(content[start:first])
        entries.append(content[first:start])
    if start != end:
        raise corrupt(where, f"it ends within its entry {len(entries) - 1}")
    if len(entries) != count:
        raise corrupt(where, f"{len(entries)} entries where {count} belong")
    return entries
