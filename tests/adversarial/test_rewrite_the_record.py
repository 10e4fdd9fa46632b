"""T-26, O-13: root of the host has the log's key, and writes the record anew, cuts it, or shows two of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.checkpoint import open_checkpoint
from egs_kernel.audit.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from egs_kernel.audit.published import Published
from egs_kernel.audit.tiles import nodes_of
from egs_kernel.audit.witnesses import Witness
from egs_kernel.errors import ProofError
from egs_kernel.witness.submit import Outcome, Submitter
from tests.unit.test_witness import CONFIG
from tests.unit.trees import Tree, publish
from tests.witnessing import serving, verifier, witness_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.notes import VerifierKey


@pytest.fixture
def home() -> Iterator[Path]:
    """The witness's, on what would be another host."""
    with witness_home(CONFIG) as found:
        yield found


@pytest.fixture
def honest() -> Tree:
    """The record: among 300 entries is one that somebody would rather not have there."""
    tree = Tree()
    tree.grow(300)
    tree.entries[123] = b"what root did"
    return tree


def rewritten(honest: Tree) -> Tree:
    """Another record under the same key, as plausible as the first."""
    return Tree(
        honest.origin, [b"nothing" if entry == b"what root did" else entry for entry in honest.entries]
    )


def submitted(folder: Path, tree: Tree, submitter: Submitter) -> Outcome:
    """What the witness says to a record, once it is written where the record was."""
    publish(folder, tree)
    return submitter.submit(tree.signed())


def shown(outcome: Outcome, tree: Tree, key: VerifierKey) -> int:
    """The size that the witness has cosigned: signed by the log, too, so that nobody can deny it."""
    assert outcome.checkpoint is not None
    found = open_checkpoint(outcome.checkpoint, tree.origin, [tree.key.key], [key])
    assert set(found.witnesses) == {key}
    return found.checkpoint.size


def test_a_record_that_is_written_anew_is_not_cosigned(home: Path, tmp_path: Path, honest: Tree) -> None:
    key = verifier(home)
    with serving(home) as address:
        submitter = Submitter(Witness(f"http://{address[0]}:{address[1]}", key), Published(tmp_path))
        assert submitted(tmp_path, honest, submitter).problem == ""
        other = rewritten(honest)
        for more in (0, 1, 500):  # at the same size, right after it, much later
            other.grow(more, "later")
            outcome = submitted(tmp_path, other, submitter)
            assert outcome.refused
            assert shown(outcome, honest, key) == 300
        # What the witness has is enough to convict: the log signed both.
        assert outcome.checkpoint is not None
        seen = open_checkpoint(outcome.checkpoint, honest.origin, [honest.key.key], [key]).checkpoint
        now = open_checkpoint(other.signed(), other.origin, [other.key.key]).checkpoint
        with pytest.raises(ProofError):
            verify_consistency(seen.size, seen.root, now.size, now.root, other.proof(seen.size))
        # And the witness still cosigns the record that it knows.
        honest.grow(9)
        assert submitted(tmp_path, honest, submitter).problem == ""


def test_a_record_that_is_cut_is_not_cosigned(home: Path, tmp_path: Path, honest: Tree) -> None:
    key = verifier(home)
    with serving(home) as address:
        submitter = Submitter(Witness(f"http://{address[0]}:{address[1]}", key), Published(tmp_path))
        assert submitted(tmp_path, honest, submitter).problem == ""
        cut = Tree(honest.origin, honest.entries[:123])
        for again in (submitter, Submitter(submitter.witness, Published(tmp_path))):
            outcome = submitted(tmp_path, cut, again)
            assert outcome.refused
            assert shown(outcome, honest, key) == 300


def test_the_witness_s_submitter_cannot_be_talked_out_of_it(home: Path, tmp_path: Path, honest: Tree) -> None:
    """A witness that says nothing, or another one in its place, gives no cosignature that would be taken for its."""
    key = verifier(home)
    with serving(home) as address:
        submitter = Submitter(Witness(f"http://{address[0]}:{address[1]}", key), Published(tmp_path))
        outcome = submitted(tmp_path, honest, submitter)
        assert shown(outcome, honest, key) == 300
    assert submitted(tmp_path, honest, submitter).checkpoint is None


def test_o13_who_has_no_witness_s_word_is_shown_whatever_root_likes(tmp_path: Path, honest: Tree) -> None:
    """The genuine key signs the record that was written anew: by itself it verifies."""
    other = rewritten(honest)
    for number, tree in enumerate((honest, other)):
        folder = tmp_path / str(number)
        folder.mkdir()
        publish(folder, tree)
        files = Published(folder)
        found = open_checkpoint(files.checkpoint(), honest.origin, [honest.key.key]).checkpoint
        nodes = nodes_of(files.tile, found.size)
        proof = inclusion_proof(123, found.size, nodes)
        verify_inclusion(leaf_hash(tree.entries[123]), 123, found.size, proof, found.root)
    # Who has kept an earlier checkpoint is not.
    early = honest.checkpoint(200)
    proof = consistency_proof(200, 300, nodes)
    with pytest.raises(ProofError):
        verify_consistency(200, early.root, 300, found.root, proof)
