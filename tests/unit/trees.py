"""A log in memory, for tests: leaves, its key, its checkpoints and proofs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from egs_kernel.audit.checkpoint import Checkpoint
from egs_kernel.audit.merkle import consistency_proof, leaf_hash, node_hash, root
from egs_kernel.audit.notes import KeyType, Signer
from egs_kernel.audit.tiles import WIDTH, tiles_between

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.audit.tiles import Tile


def signer(name: str, seed: int = 1, kind: KeyType = KeyType.ED25519) -> Signer:
    """A key that is the same each time."""
    return Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), kind)


@dataclass
class Tree:
    """A log of entries that can be forked: `Tree(origin, entries)`."""

    origin: str = "egs-kernel/host-1/record"
    entries: list[bytes] = field(default_factory=list)
    seed: int = 1

    @property
    def key(self) -> Signer:
        """What signs its checkpoints."""
        return signer(self.origin, self.seed)

    def grow(self, count: int, mark: str = "entry") -> None:
        """Append entries."""
        self.entries += [f"{mark} {len(self.entries) + n}".encode() for n in range(count)]

    def node(self, level: int, index: int) -> bytes:
        """As `merkle.Nodes`."""
        if level == 0:
            return leaf_hash(self.entries[index])
        return node_hash(self.node(level - 1, 2 * index), self.node(level - 1, 2 * index + 1))

    def checkpoint(self, size: int | None = None) -> Checkpoint:
        """The tree head at a size."""
        size = len(self.entries) if size is None else size
        return Checkpoint(self.origin, size, root(size, self.node))

    def signed(self, size: int | None = None) -> bytes:
        """The same, signed."""
        return self.checkpoint(size).sign(self.key)

    def proof(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
        """That the tree of `size` begins with that of `old`."""
        return consistency_proof(old, len(self.entries) if size is None else size, self.node)


def publish(folder: Path, tree: Tree, since: int = 0) -> None:
    """Write a log's static files, as tlog-tiles has them: what the tree has that it had not at the size `since`."""
    for tile in tiles_between(since, len(tree.entries)):
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(tree, tile))
    (folder / "checkpoint").write_bytes(tree.signed())


def content_of(tree: Tree, tile: Tile) -> bytes:
    """What a tile or bundle of the tree holds."""
    items = range(tile.index * WIDTH, tile.index * WIDTH + tile.width)
    if tile.level is None:
        return b"".join(len(entry).to_bytes(2) + entry for entry in (tree.entries[item] for item in items))
    return b"".join(tree.node(8 * tile.level, item) for item in items)
