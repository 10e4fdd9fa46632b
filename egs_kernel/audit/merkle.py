"""The tree over the record's entries (RFC 6962, section 2.1): hashes, growing it, proofs and their verification. Pure.

A node is named by its level and index: it is the root of the complete subtree over the leaves from
`index * 2**level` up to `(index + 1) * 2**level`. Leaves are nodes of level 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Self

from egs_kernel.errors import ProofError
from egs_kernel.model import Reason

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root over no leaves."""

Nodes = Callable[[int, int], bytes]
"""The hash of the node (level, index)."""

_sha256 = hashlib.sha256
_LEAF: Final = hashlib.sha256(b"\0")
"""What the hash of every leaf begins with; a copy of it needs none of the entry."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf: of its entry's bytes."""
    return _sha256(b"\0" + entry).digest()


def leaf_hashes(entries: Iterable[bytes]) -> list[bytes]:
    """The hash of each leaf: an append takes it of every entry."""
    found = []
    begin = _LEAF.copy
    for entry in entries:
        leaf = begin()
        leaf.update(entry)
        found.append(leaf.digest())
    return found


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two nodes."""
    return _sha256(b"\1" + left + right).digest()


class Frontier:
    """A tree that grows, as the roots of its complete subtrees, the largest first: one for each bit of its size."""

    def __init__(self, size: int = 0, roots: Iterable[bytes] = ()) -> None:
        self.size = size
        self._roots = list(roots)
        if len(self._roots) != size.bit_count():
            raise ValueError(f"{len(self._roots)} roots are not those of {size} leaves")

    @classmethod
    def of(cls, size: int, nodes: Nodes) -> Self:
        """The frontier of a tree of `size` leaves whose nodes can be asked for."""
        return cls(size, (nodes(level, index) for level, index in subtrees(0, size)))

    def copy(self) -> Frontier:
        """One that grows on its own."""
        return Frontier(self.size, self._roots)

    def extend(self, leaves: Iterable[bytes], step: int = 1) -> list[tuple[int, int, bytes]]:
        """Add leaves, by their hashes.

        Returns:
            The nodes above the leaves that they complete, as far as their level is a multiple of `step`:
            (level / step, index, hash).
        """
        completed = []
        size, roots, last = self.size, self._roots, (1 << step) - 1
        for leaf in leaves:
            found, rest = leaf, size
            while rest & 1:
                found = _sha256(b"\1" + roots.pop() + found).digest()
                rest >>= 1
                # asked at every `1 << step`-th leaf only: this loop is what an append costs
                if size & last == last and (level := _levels(size, rest)) % step == 0:
                    completed.append((level // step, rest, found))
            roots.append(found)
            size += 1
        self.size = size
        return completed

    def root(self) -> bytes:
        """The root over all leaves."""
        return _fold(self._roots)


def subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees, largest first, that make up the leaves from `start` up to `end`.

    `start` must be such a subtree's start at every step, as 0 and the splits of RFC 6962 are.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def root(size: int, nodes: Nodes) -> bytes:
    """The root of the tree of `size` leaves."""
    return _range_root(0, size, nodes)


def inclusion_proof(index: int, size: int, nodes: Nodes) -> tuple[bytes, ...]:
    """The proof that leaf `index` is in the tree of `size` leaves: the hashes from the leaf's sibling up.

    Raises:
        ProofError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise _no_proof(f"there is no leaf {index} in a tree of {size}")
    proof = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_range_root(middle, end, nodes))
            end = middle
        else:
            proof.append(_range_root(start, middle, nodes))
            start = middle
    return tuple(reversed(proof))


def consistency_proof(old: int, size: int, nodes: Nodes) -> tuple[bytes, ...]:
    """The proof that the tree of `size` leaves begins with the tree of `old` leaves.

    Raises:
        ProofError: there is no such proof: `old` is beyond `size`, or below 0.
    """
    if not 0 <= old <= size:
        raise _no_proof(f"a tree of {size} leaves does not begin with one of {old}")
    if old in {0, size}:
        return ()
    proof = []
    start, end = 0, size
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_range_root(middle, end, nodes))
            end = middle
        else:
            proof.append(_range_root(start, middle, nodes))
            start = middle
    if start:  # else the verifier has that root: it is the old tree's own
        proof.append(_range_root(start, end, nodes))
    return tuple(reversed(proof))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf (its hash) is number `index` in the tree with `size` leaves and this root.

    Raises:
        ProofError: PROOF_INVALID: the proof does not show that.
    """
    if not 0 <= index < size:
        raise _no_proof(f"there is no leaf {index} in a tree of {size}")
    _require_hashes((leaf, *proof, root))
    inner = (index ^ (size - 1)).bit_length()
    border = (index >> inner).bit_count()
    if len(proof) != inner + border:
        raise _no_proof(f"{len(proof)} hashes where leaf {index} of {size} needs {inner + border}")
    found = _climb(leaf, index, proof[:inner])
    for sibling in proof[inner:]:
        found = node_hash(sibling, found)
    if found != root:
        raise _no_proof(f"leaf {index} is not in the tree of {size} leaves with the root {root.hex()}")


def verify_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `size` leaves begins with the tree of `old` leaves.

    Raises:
        ProofError: PROOF_INVALID: the proof does not show that.
    """
    _require_hashes((old_root, root, *proof))
    if not 0 <= old <= size:
        raise _no_proof(f"a tree of {size} leaves does not begin with one of {old}")
    if old in {0, size}:
        expected = EMPTY_ROOT if old == 0 else root
        if proof or old_root != expected or (size == 0 and root != EMPTY_ROOT):
            raise _inconsistent(old, size)
        return
    # The old tree's rightmost complete subtree, the node from which both roots are rebuilt.
    level = (old & -old).bit_length() - 1
    index, last = (old - 1) >> level, (size - 1) >> level
    rest = list(proof)
    seed = old_root if old == 1 << level else _next(rest)
    inner = (index ^ last).bit_length()
    border = (index >> inner).bit_count()
    if len(rest) != inner + border:
        raise _no_proof(f"{len(proof)} hashes are no proof from {old} to {size} leaves")
    old_found = _climb(seed, index, rest[:inner], rightmost=True)
    found = _climb(seed, index, rest[:inner])
    for sibling in rest[inner:]:
        old_found, found = node_hash(sibling, old_found), node_hash(sibling, found)
    if old_found != old_root or found != root:
        raise _inconsistent(old, size)


def _levels(leaf: int, index: int) -> int:
    """How far above leaf `leaf` the node with number `index` is, on the way up through odd numbers."""
    return (leaf ^ (leaf + 1)).bit_length() - (index ^ (index + 1)).bit_length()


def _split(count: int) -> int:
    """The largest power of two below `count` (2 or more): where RFC 6962 divides a tree."""
    return 1 << ((count - 1).bit_length() - 1)


def _fold(roots: Sequence[bytes]) -> bytes:
    if not roots:
        return EMPTY_ROOT
    found = roots[-1]
    for left in reversed(roots[:-1]):
        found = node_hash(left, found)
    return found


def _range_root(start: int, end: int, nodes: Nodes) -> bytes:
    return _fold([nodes(level, index) for level, index in subtrees(start, end)])


def _climb(found: bytes, index: int, siblings: Sequence[bytes], *, rightmost: bool = False) -> bytes:
    """The node above `found` after as many levels as siblings; `rightmost`: of a tree that ends with `found`."""
    for level, sibling in enumerate(siblings):
        if index >> level & 1:
            found = node_hash(sibling, found)
        elif not rightmost:
            found = node_hash(found, sibling)
    return found


def _next(rest: list[bytes]) -> bytes:
    if not rest:
        raise _no_proof("an empty proof where there has to be one")
    return rest.pop(0)


def _require_hashes(found: Iterable[bytes]) -> None:
    if any(len(item) != HASH_BYTES for item in found):
        raise _no_proof(f"a hash that has not {HASH_BYTES} bytes")


def _inconsistent(old: int, size: int) -> ProofError:
    return _no_proof(f"the tree of {size} leaves does not begin with that tree of {old}")


def _no_proof(problem: str) -> ProofError:
    return ProofError(
        Reason.PROOF_INVALID,
        problem,
        "Keep proof and checkpoint as evidence: one of them was changed, or the log shows different trees to different people.",
    )
