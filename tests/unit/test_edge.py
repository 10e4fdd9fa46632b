"""The tree's right end: whatever the batches, the tiles and bundles that tlog-tiles asks for come out, once each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.edge import Batch, Edge
from egs_kernel.audit.merkle import Frontier, leaf_hash
from egs_kernel.audit.tiles import Tile, nodes_of, pack_entry, tiles_between

BATCHES = st.lists(st.sampled_from([1, 2, 200, 255, 256, 257, 511, 700]), min_size=1, max_size=9)


def entries_from(start: int, count: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(start, start + count)]


def grow(edge: Edge, frontier: Frontier, count: int) -> list[tuple[Tile, bytes]]:
    entries = entries_from(frontier.size, count)
    leaves = [leaf_hash(entry) for entry in entries]
    above = frontier.extend(leaves, step=8)
    return list(edge.grow(Batch([pack_entry(entry) for entry in entries], leaves, above)))


def contents(edge: Edge) -> list[tuple[Tile, bytes]]:
    return [(tile, edge.content(tile)) for tile in edge.partial()]


@given(BATCHES, st.data())
def test_an_edge_gives_every_tile_once_and_can_be_built_from_them(
    batches: list[int], data: st.DataObject
) -> None:
    edge, frontier, files = Edge(), Frontier(), {}
    for count in batches:
        for tile, content in grow(edge, frontier, count):
            assert tile not in files
            assert tile.width == 256
            files[tile] = content
        partial = dict(contents(edge))
        assert set(files) | set(partial) == set(tiles_between(0, frontier.size))
        assert (
            frontier.root()
            == Frontier.of(frontier.size, nodes_of((files | partial).__getitem__, edge.size)).root()
        )
    # a start: from full tiles alone, at any size whose last entries are in a full bundle
    whole = frontier.size // 256 * 256
    size = data.draw(st.integers(0, whole))
    again = Edge.of(size, files.__getitem__)
    smaller, other = Edge(), Frontier()
    grow(smaller, other, size)
    assert contents(again) == contents(smaller)
    assert again.size == size
    assert grow(again, other.copy(), 300) == grow(smaller, other, 300)
