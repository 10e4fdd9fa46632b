"""Tiles: where they stand (the examples of tlog-tiles), what a tree of any size has, and nodes out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.merkle import Frontier, leaf_hash, root
from egs_kernel.audit.tiles import (
    MAX_ENTRY,
    Tile,
    bundle_of,
    nodes_of,
    pack_entry,
    tile_at,
    tiles_between,
    unpack,
)
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

TREE = 66_500  # a full tile of level 1, and a partial one at each level
LEAVES = [leaf_hash(number.to_bytes(4)) for number in range(TREE)]


def rows() -> dict[int, list[bytes]]:
    """Tile level → the nodes of it, of all of the leaves."""
    found: dict[int, list[bytes]] = {0: LEAVES, 1: [], 2: []}
    for level, _index, completed in Frontier().extend(LEAVES, step=8):
        found[level].append(completed)
    return found


ROWS = rows()


def read(tile: Tile) -> bytes:
    assert tile.level is not None
    start = tile.index * 256
    return b"".join(ROWS[tile.level][start : start + tile.width])


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999, 1), "tile/0/999.p/1"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(None, 1234067, 255), "tile/entries/x001/x234/067.p/255"),
    ],
)
def test_paths(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/00/000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/07",
        "tile/64/000",
        "tile/x/000",
        "tile/data/000",
        "tile/8/0/000",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/٠٠٠",  # noqa: RUF001 - digits, but not ours
        "checkpoint",
        "",
    ],
)
def test_what_is_no_path_of_a_tile(path: str) -> None:
    assert Tile.parse(path) is None


@given(st.integers(0, 63) | st.none(), st.integers(0, 2**40), st.integers(1, 256))
def test_every_path_gives_its_tile_back(level: int | None, index: int, width: int) -> None:
    assert Tile.parse(Tile(level, index, width).path) == Tile(level, index, width)


def test_the_example_of_70000() -> None:
    found = list(tiles_between(0, 70_000))
    assert sum(tile.level == 0 and tile.width == 256 for tile in found) == 273
    assert [tile for tile in found if tile.width < 256] == [
        Tile(None, 273, 112),
        Tile(0, 273, 112),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]
    assert list(tiles_between(0, 256)) == [Tile(None, 0), Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles_between(256, 256)) == []


@given(st.integers(0, 200_000), st.integers(0, 70_000))
def test_what_a_grown_tree_has_to_have_written(old: int, more: int) -> None:
    size = old + more
    new = set(tiles_between(old, size))
    assert new == set(tiles_between(0, size)) - set(tiles_between(0, old))
    for tile in new:
        if tile.level is not None:
            assert tile == tile_at(tile.level, tile.index, size)
        assert tile.first < size


@given(st.integers(1, TREE), st.data())
def test_nodes_and_roots_out_of_tiles(size: int, data: st.DataObject) -> None:
    nodes = nodes_of(read, size)
    frontier = Frontier.of(size, nodes)
    assert frontier.root() == root(size, nodes)
    assert frontier.size == size
    level = data.draw(st.integers(0, size.bit_length() - 1))
    index = data.draw(st.integers(0, (size >> level) - 1))
    subtree = Frontier()
    subtree.extend(LEAVES[index << level : (index + 1) << level])
    assert nodes(level, index) == subtree.root()


def test_a_tile_of_the_wrong_length_is_refused() -> None:
    nodes = nodes_of(lambda tile: read(tile)[:-1], 5)
    with pytest.raises(RecordError, match=r"tile/0/000\.p/5") as caught:
        nodes(0, 3)
    assert caught.value.reason is Reason.RECORD_CORRUPT


def bundle(entries: list[bytes]) -> bytes:
    return b"".join(pack_entry(entry) for entry in entries)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_bundles(entries: list[bytes]) -> None:
    assert unpack(bundle(entries), "here", len(entries)) == entries
    with pytest.raises(RecordError, match="where 21 belong"):
        unpack(bundle(entries), "here", 21)


def test_an_entry_can_be_as_long_as_its_length_can_say() -> None:
    longest = b"x" * MAX_ENTRY
    assert unpack(bundle([longest, b""]), "here", 2) == [longest, b""]
    with pytest.raises(OverflowError):
        pack_entry(longest + b"x")


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 9))
def test_a_bundle_that_ends_too_early_is_refused(entries: list[bytes], cut: int) -> None:
    with pytest.raises(RecordError, match="does not verify at here"):
        unpack(bundle(entries)[:-cut], "here", len(entries))


def test_the_bundle_of_an_entry() -> None:
    assert bundle_of(0, 1) == Tile(None, 0, 1)
    assert bundle_of(255, 1000) == Tile(None, 0)
    assert bundle_of(999, 1000) == Tile(None, 3, 232)
