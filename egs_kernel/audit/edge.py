"""The tree's right end: what is in no full tile and no full bundle yet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.audit.merkle import HASH_BYTES
from egs_kernel.audit.tiles import HEIGHT, WIDTH, Tile, complete_root, pack_entry, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.tiles import ReadTile


class Batch(msgspec.Struct, frozen=True):
    """Entries that come together.

    `packed`: each after its length; `leaves`: their hashes; `above`: the nodes of higher tile levels that they complete.
    """

    packed: Sequence[bytes]
    leaves: Sequence[bytes]
    above: Sequence[tuple[int, int, bytes]]


class Edge:
    """Rows of hashes and entries that grow into tiles and bundles.

    `size`: entries of the tree so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._entries: list[bytes] = []
        self._rows: list[bytearray] = [bytearray()]

    @classmethod
    def of(cls, size: int, read: ReadTile) -> Edge:
        """The edge of a tree of `size` entries, out of full tiles and bundles.

        Those that end at `size` or before, and the ones of level 0 that hold its last entries.

        Raises:
            RecordError: RECORD_CORRUPT: the bundle is damaged. What `read` raises.
        """
        edge = cls()
        edge.size = size
        index, width = divmod(size, WIDTH)
        if width:
            bundle = Tile(None, index)
            entries = unpack(read(bundle), bundle.path, WIDTH)
            edge._entries = [pack_entry(entry) for entry in entries[:width]]
            edge._rows[0] += read(Tile(0, index))[: width * HASH_BYTES]
        level = 1
        while count := size >> HEIGHT * level:
            first = count & ~(WIDTH - 1)
            row = (complete_root(read(Tile(level - 1, index))) for index in range(first, count))
            edge._rows.append(bytearray().join(row))
            level += 1
        return edge

    def grow(self, batch: Batch) -> Iterator[tuple[Tile, bytes]]:
        """Add entries.

        Yields:
            The bundles and tiles that are full with them, and their content.
        """
        packed, leaves = batch.packed, batch.leaves
        start = 0
        while start < len(leaves):
            taken = min(WIDTH - len(self._entries), len(leaves) - start)
            self._entries += packed[start : start + taken]
            self._rows[0] += b"".join(leaves[start : start + taken])
            self.size += taken
            start += taken
            if len(self._entries) == WIDTH:
                index = self.size // WIDTH - 1
                yield Tile(None, index), b"".join(self._entries)
                yield Tile(0, index), bytes(self._rows[0])
                self._entries = []
                self._rows[0] = bytearray()
        for level, index, node in batch.above:
            yield from self._raise_row(level, index, node)

    def partial(self) -> Iterator[Tile]:
        """The partial bundle and tiles of the tree as it is; `content` has what is in them."""
        if self._entries:
            yield Tile(None, self.size // WIDTH, len(self._entries))
        for level, row in enumerate(self._rows):
            if row:
                yield Tile(level, self.size >> HEIGHT * (level + 1), len(row) // HASH_BYTES)

    def content(self, tile: Tile) -> bytes:
        """The content of one of those, or of one that it was before, with a smaller width."""
        if tile.level is None:
            return b"".join(self._entries[: tile.width])
        return bytes(self._rows[tile.level][: tile.width * HASH_BYTES])

    def _raise_row(self, level: int, index: int, node: bytes) -> Iterator[tuple[Tile, bytes]]:
        while len(self._rows) <= level:
            self._rows.append(bytearray())
        row = self._rows[level]
        row += node
        if len(row) == WIDTH * HASH_BYTES:
            yield Tile(level, index // WIDTH), bytes(row)
            self._rows[level] = bytearray()
