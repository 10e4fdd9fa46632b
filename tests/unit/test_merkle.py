"""The tree against a naive one of RFC 6962's own definitions, and proofs that must not verify when anything differs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from egs_kernel.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    subtrees,
    verify_consistency,
    verify_inclusion,
)
from egs_kernel.errors import ProofError
from egs_kernel.model import Reason

SIZES = st.integers(1, 300)
LEAVES = [leaf_hash(str(number).encode()) for number in range(300)]


def naive(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1, over hashes of leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive(leaves[:split]) + naive(leaves[split:])).digest()


def node(level: int, index: int) -> bytes:
    return naive(LEAVES[index << level : (index + 1) << level])


def grown(size: int) -> Frontier:
    frontier = Frontier()
    frontier.extend(LEAVES[:size])
    return frontier


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)


def test_the_hashes_of_rfc_6962() -> None:
    # the vectors of its reference implementation (merkletree tests: eight inputs)
    inputs = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    frontier = Frontier()
    frontier.extend(leaf_hash(bytes.fromhex(item)) for item in inputs)
    assert frontier.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert Frontier().root() == EMPTY_ROOT == naive([])
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert node_hash(b"N1", b"N2") == hashlib.sha256(b"\x01N1N2").digest()


@given(st.integers(0, 300))
def test_a_tree_that_grew_has_the_root_of_a_naive_one(size: int) -> None:
    frontier = grown(size)
    assert frontier.root() == naive(LEAVES[:size]) == root(size, node)
    assert Frontier.of(size, node).root() == frontier.root()
    assert frontier.size == size


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 9))
def test_a_tree_that_grows_returns_the_nodes_that_it_completes(old: int, more: int, step: int) -> None:
    frontier = grown(old)
    before = frontier.copy()
    size = min(old + more, 300)
    found = frontier.extend(LEAVES[old:size], step)
    wanted = [
        (level, index, node(level * step, index))
        for level in range(1, 10)
        for index in range(old >> level * step, size >> level * step)
    ]
    assert sorted(found) == wanted
    assert [item for item in found if item[0] == 1] == [item for item in wanted if item[0] == 1]  # in order
    assert before.root() == naive(LEAVES[:old])  # a copy is not touched


@given(st.integers(0, 300))
def test_subtrees_are_complete_adjacent_and_of_falling_size(size: int) -> None:
    found = list(subtrees(0, size))
    at = 0
    for level, index in found:
        assert index << level == at
        at += 1 << level
    assert at == size
    assert [level for level, _index in found] == sorted({level for level, _index in found}, reverse=True)


@given(SIZES, st.data())
def test_inclusion_proofs_verify_and_nothing_else_does(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, node)
    right = naive(LEAVES[:size])
    verify_inclusion(LEAVES[index], index, size, proof, right)

    bit = data.draw(st.integers(0, 255))
    wrong: list[tuple[bytes, int, int, tuple[bytes, ...], bytes]] = [
        (flipped(LEAVES[index], bit), index, size, proof, right),
        (LEAVES[index], index, size, proof, flipped(right, bit)),
        (LEAVES[index], index, size, (*proof, LEAVES[0]), right),
        (LEAVES[index], size, size, proof, right),
        (LEAVES[index], -1, size, proof, right),
        (LEAVES[index], index, index, proof, right),
    ]
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        wrong.append((LEAVES[index], other, size, proof, right))
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong.append((LEAVES[index], index, size, proof[:at] + proof[at + 1 :], right))
        changed = (*proof[:at], flipped(proof[at], bit), *proof[at + 1 :])
        wrong.append((LEAVES[index], index, size, changed, right))
        wrong.append((LEAVES[index], index, size, (*proof[:at], proof[at][:-1], *proof[at + 1 :]), right))
    for case in wrong:
        with pytest.raises(ProofError) as caught:
            verify_inclusion(*case)
        assert caught.value.reason is Reason.PROOF_INVALID


@given(st.integers(0, 300), st.integers(0, 300), st.data())
def test_consistency_proofs_verify_and_nothing_else_does(old: int, size: int, data: st.DataObject) -> None:
    assume(old <= size)
    proof = consistency_proof(old, size, node)
    before, after = naive(LEAVES[:old]), naive(LEAVES[:size])
    verify_consistency(old, before, size, after, proof)

    bit = data.draw(st.integers(0, 255))
    wrong: list[tuple[int, bytes, int, bytes, tuple[bytes, ...]]] = [
        (old, flipped(before, bit), size, after, proof),
        (old, before, size, after, (*proof, LEAVES[0])),
        (size + 1, before, size, after, proof),
        (-1, before, size, after, proof),
    ]
    if old or not size:  # nothing is said about a tree that begins with no leaves
        wrong.append((old, before, size, flipped(after, bit), proof))
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong.append((old, before, size, after, proof[:at] + proof[at + 1 :]))
        wrong.append((old, before, size, after, (*proof[:at], flipped(proof[at], bit), *proof[at + 1 :])))
    other = data.draw(st.integers(1, 300))
    if other not in {old, size} and other < size:
        wrong.append((other, before, size, after, proof))
    for case in wrong:
        with pytest.raises(ProofError):
            verify_consistency(*case)


def test_proofs_of_what_is_not_there_are_refused() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ProofError):
            inclusion_proof(index, size, node)
    for old, size in ((6, 5), (-1, 5)):
        with pytest.raises(ProofError):
            consistency_proof(old, size, node)


def test_a_frontier_needs_one_root_for_each_bit() -> None:
    with pytest.raises(ValueError, match="roots"):
        Frontier(3, [LEAVES[0]])
