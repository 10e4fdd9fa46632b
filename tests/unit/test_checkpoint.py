"""Checkpoints: the specification's form, what is signed, and what must be refused."""

from __future__ import annotations

import hashlib
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.checkpoint import (
    Checkpoint,
    open_checkpoint,
    parse_size,
    with_signatures,
)
from egs_kernel.audit.notes import KeyType, Note, Signature, Signer, VerifierKey
from egs_kernel.errors import NoteError
from egs_kernel.model import Reason

# tlog-checkpoint.md.
SOFA = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
EMPTY = hashlib.sha256(b"").digest()
ORIGIN = "egs-kernel/ebcd0ef6667e45e0a15a9fa6fdfbfd72/record"

lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
checkpoints = st.builds(
    Checkpoint,
    lines,
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(lines, max_size=3).map(tuple),
)


def signer(name: str = ORIGIN, seed: int = 1, kind: KeyType = KeyType.ED25519) -> Signer:
    return Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), kind)


def test_the_specification_s_checkpoint() -> None:
    checkpoint = Checkpoint.parse(SOFA)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e1d90c808014aa89b")
    assert checkpoint.text == SOFA


@given(checkpoints)
def test_a_checkpoint_is_what_it_was_written_as(checkpoint: Checkpoint) -> None:
    assert Checkpoint.parse(checkpoint.text) == checkpoint
    log = signer()
    opened = open_checkpoint(checkpoint.sign(log), checkpoint.origin, [log.key])
    assert opened.checkpoint == checkpoint


@given(st.text())
def test_whatever_is_parsed_has_one_form(text: str) -> None:
    with suppress(NoteError):
        assert Checkpoint.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        SOFA[:-1],
        "\n" + SOFA,
        SOFA + "\n",
        SOFA.replace("20852163", "020852163"),
        SOFA.replace("20852163", "-1"),
        SOFA.replace("20852163", "+1"),
        SOFA.replace("20852163", "1_0"),
        SOFA.replace("20852163", "\u0661"),
        SOFA.replace("20852163", str(2**63)),
        SOFA.replace("20852163", "9" * 5000),
        SOFA.replace("20852163\n", ""),
        SOFA.replace("q2I=", "q2I"),
        SOFA.replace("q2I=", "q2J="),
        SOFA.replace("CsUY", ""),
        SOFA + "extension\n\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError) as caught:
        Checkpoint.parse(text)
    assert caught.value.reason is Reason.NOTE_MALFORMED


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 0, EMPTY),
        Checkpoint("two\nlines", 0, EMPTY),
        Checkpoint(ORIGIN, -1, EMPTY),
        Checkpoint(ORIGIN, 2**63, EMPTY),
        Checkpoint(ORIGIN, 0, EMPTY[:31]),
        Checkpoint(ORIGIN, 0, EMPTY, ("",)),
        Checkpoint("half\ud800", 0, EMPTY),
    ],
)
def test_nothing_is_signed_that_is_no_checkpoint(checkpoint: Checkpoint) -> None:
    with pytest.raises(NoteError):
        checkpoint.sign(signer())


def test_a_checkpoint_needs_a_signer() -> None:
    with pytest.raises(NoteError):
        Checkpoint(ORIGIN, 0, EMPTY).sign()


def test_it_must_be_of_that_log_and_signed_by_it() -> None:
    log, witness = signer(), signer("example.com/w1", 2, KeyType.COSIGNATURE)
    checkpoint = Checkpoint(ORIGIN, 7, EMPTY)
    signed = checkpoint.sign(log)
    assert open_checkpoint(signed, ORIGIN, [log.key]).checkpoint == checkpoint
    for origin, keys in ((ORIGIN + "2", [log.key]), (ORIGIN, [signer(seed=5).key]), (ORIGIN, [])):
        with pytest.raises(NoteError) as caught:
            open_checkpoint(signed, origin, keys)
        assert caught.value.reason is Reason.KEY_UNTRUSTED
    # A witness alone does not make a checkpoint the log's.
    alone = Note(checkpoint.text, (witness.cosign(checkpoint.text, 9),)).encode()
    with pytest.raises(NoteError) as caught:
        open_checkpoint(alone, ORIGIN, [log.key], [witness.key])
    assert caught.value.reason is Reason.KEY_UNTRUSTED


def test_two_keys_sign_while_one_takes_over_and_either_verifies() -> None:
    old, new = signer(seed=1), signer(seed=2)
    signed = Checkpoint(ORIGIN, 7, EMPTY).sign(old, new)
    for keys in ([old.key], [new.key], [old.key, new.key]):
        assert {item.key for item in open_checkpoint(signed, ORIGIN, keys).signatures} == set(keys)


def test_cosignatures_are_added_and_renewed() -> None:
    log, witness = signer(), signer("example.com/w1", 2, KeyType.COSIGNATURE)
    checkpoint = Checkpoint(ORIGIN, 7, EMPTY)
    signed = checkpoint.sign(log)
    assert open_checkpoint(signed, ORIGIN, [log.key], [witness.key]).witnesses == frozenset()
    once = with_signatures(signed, [witness.cosign(checkpoint.text, 9)])
    twice = with_signatures(once, [witness.cosign(checkpoint.text, 10)])
    opened = open_checkpoint(twice, ORIGIN, [log.key], [witness.key])
    assert [item.timestamp for item in opened.cosignatures] == [10]
    assert opened.witnesses == {witness.key}
    assert len(opened.note.signatures) == 2
    # Who does not know the witness verifies all the same; who knows it sees a wrong one.
    assert open_checkpoint(twice, ORIGIN, [log.key]).cosignatures == ()
    wrong = with_signatures(signed, [Signature(witness.key.name, witness.key.key_id, bytes(72))])
    assert open_checkpoint(wrong, ORIGIN, [log.key]).checkpoint == checkpoint
    with pytest.raises(NoteError) as caught:
        open_checkpoint(wrong, ORIGIN, [log.key], [witness.key])
    assert caught.value.reason is Reason.SIGNATURE_INVALID


def test_sizes() -> None:
    assert [parse_size(text) for text in ("0", "1", str(2**63 - 1))] == [0, 1, 2**63 - 1]


def by_openssl(folder: Path, checkpoint: bytes, key: VerifierKey) -> int:
    """The exit code of the program in docs/log.md."""
    text = (Path(__file__).parents[2] / "docs/log.md").read_text()
    (program,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / "checkpoint").write_bytes(checkpoint)
    command = ["sh", "-c", program, "verify-checkpoint.sh", str(folder / "checkpoint"), str(key)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_openssl_verifies_a_checkpoint_as_the_document_says(tmp_path: Path) -> None:
    old, new = signer(seed=1), signer(seed=2)
    witness = signer("example.com/w1", 3, KeyType.COSIGNATURE)
    checkpoint = Checkpoint(ORIGIN, 7, EMPTY)
    signed = with_signatures(checkpoint.sign(old, new), [witness.cosign(checkpoint.text, 9)])
    assert by_openssl(tmp_path, signed, old.key) == 0
    assert by_openssl(tmp_path, signed, new.key) == 0
    assert by_openssl(tmp_path, signed.replace(b"\n7\n", b"\n8\n"), old.key) == 1
    assert by_openssl(tmp_path, signed, signer(seed=4).key) == 1
    stolen = Signature(ORIGIN, old.key.key_id, new.sign(checkpoint.text).value)
    assert by_openssl(tmp_path, Note(checkpoint.text, (stolen,)).encode(), old.key) == 1
