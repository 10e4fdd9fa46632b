"""Signed notes, verifier keys and cosignatures: the specifications' own examples, and what must be refused."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.notes import (
    MAX_NOTE,
    MAX_SIGNATURES,
    KeyType,
    Note,
    Signature,
    Signer,
    VerifierKey,
    decode_base64,
    encode_base64,
    is_name,
    open_note,
)
from egs_kernel.errors import NoteError
from egs_kernel.model import Reason

# signed-note.md, "Example".
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
""".encode()

# golang.org/x/mod/sumdb/note, ExampleOpen and ExampleSign: private key, public key and note.
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER = """If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
""".encode()

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=12
)
names = names.filter(lambda name: "+" not in name)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n"), max_size=40
)
signatures = st.builds(
    Signature, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80)
)
notes = st.builds(
    Note, texts.map(lambda text: f"{text}\n"), st.lists(signatures, min_size=1, max_size=3).map(tuple)
)


def signer(name: str = "example.com/log", seed: int = 1, kind: KeyType = KeyType.ED25519) -> Signer:
    return Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), kind)


def refusal(content: bytes, *keys: VerifierKey) -> Reason:
    with pytest.raises(NoteError) as caught:
        open_note(content, keys)
    return caught.value.reason


def test_the_specification_s_note_verifies() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)
    note, verified = open_note(EXAMPLE, [key])
    assert note.text == "This is an example message.\n"
    assert [(item.key, item.timestamp) for item in verified] == [(key, None)]
    assert str(key) == EXAMPLE_KEY
    assert note.encode() == EXAMPLE


def test_go_s_note_is_signed_to_the_byte() -> None:
    peter = Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(PETER_SEED))
    assert str(peter.key) == PETER_KEY
    text = PETER.decode().rpartition("\n\n")[0] + "\n"
    assert Note(text, (peter.sign(text),)).encode() == PETER


def test_a_key_id_is_the_one_of_the_specification() -> None:
    key = signer().key
    said = hashlib.sha256(b"example.com/log\n\x01" + key.public).digest()[:4]
    assert key.key_id == said
    assert VerifierKey(key.name, KeyType.COSIGNATURE, key.public).key_id != said


@given(notes)
def test_a_note_is_what_it_was_written_as(note: Note) -> None:
    assert Note.parse(note.encode()) == note


@given(st.binary() | notes.map(Note.encode).flatmap(lambda good: st.permutations(good).map(bytes)))
def test_whatever_is_parsed_has_one_form(content: bytes) -> None:
    with suppress(NoteError):
        assert Note.parse(content).encode() == content


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(position: int, change: int) -> None:
    changed = bytearray(EXAMPLE)
    changed[position] ^= change
    assert refusal(bytes(changed), VerifierKey.parse(EXAMPLE_KEY)) in {
        Reason.NOTE_MALFORMED,
        Reason.SIGNATURE_INVALID,
        Reason.KEY_UNTRUSTED,  # the name or the key id
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"text\n",
        b"text\n\n",
        b"text\n\n\n",
        EXAMPLE[:-1],
        EXAMPLE + b"\n",
        EXAMPLE.replace(b"\n\n", b"\n"),
        EXAMPLE.replace("—".encode(), b"-"),
        EXAMPLE.replace("— ".encode(), "—".encode()),
        EXAMPLE.replace(b" Uw2Q", b"  Uw2Q"),
        EXAMPLE.replace(b"foo Uw", "foo\u00a0Uw".encode()),
        EXAMPLE.replace(b"/foo", b"+foo"),
        EXAMPLE.replace(b"/foo", "/f\u2003oo".encode()),
        EXAMPLE.replace(b"/foo", b"/f\too"),
        EXAMPLE.replace(b"message", b"mess\rage"),
        EXAMPLE.replace(b"message", b"mess\xffage"),
        EXAMPLE.replace(b"QM=\n", b"QM\n"),
        EXAMPLE.replace(b"QM=\n", b"QN=\n"),  # the same bytes, in a form that nobody writes
        EXAMPLE.replace(b"QM=\n", b"QM=\r\n"),
        EXAMPLE.replace(b"QM=\n", b"QM= \n"),
        "text\n\n— name AAAAAA==\n".encode(),  # a key id, and no signature
        "text\n\n— name \n".encode(),
        "text\n\n—  AAAAAAA=\n".encode(),
        "text\n\nline\n— name AAAAAAA=\n".encode(),
        EXAMPLE[:-1] + b" more\n",
        b"x" * MAX_NOTE + EXAMPLE,
        EXAMPLE + "— name AAAAAAA=\n".encode() * MAX_SIGNATURES,
    ],
)
def test_what_is_no_note_is_refused(content: bytes) -> None:
    assert refusal(content, VerifierKey.parse(EXAMPLE_KEY)) is Reason.NOTE_MALFORMED


def test_the_text_may_have_empty_lines() -> None:
    text = "one\n\n— looks like one\n\n\n"
    log = signer()
    note, _ = open_note(Note(text, (log.sign(text),)).encode(), [log.key])
    assert note.text == text


@pytest.mark.parametrize("text", ["", "no newline", "a\x01b\n", "half \ud800\n"])
def test_no_note_is_written_that_nobody_can_read(text: str) -> None:
    with pytest.raises(NoteError) as caught:
        Note(text, (Signature("name", b"1234", b"5"),)).encode()
    assert caught.value.reason is Reason.NOTE_MALFORMED
    with pytest.raises(NoteError):
        Note("text\n", ()).encode()


def test_unknown_signatures_are_ignored_and_a_known_key_s_must_be_good() -> None:
    log, other = signer(), signer("example.com/other", 2)
    text = "text\n"
    stranger = Signature("example.com/stranger", b"abcd", b"anything")
    same_name = Signature(log.key.name, b"abcd", b"anything")
    same_id = Signature("example.com/stranger", log.key.key_id, b"anything")
    good = Note(text, (stranger, same_name, same_id, log.sign(text), other.sign(text))).encode()
    assert [item.key for item in open_note(good, [log.key])[1]] == [log.key]
    assert [item.key for item in open_note(good, [log.key, other.key])[1]] == [log.key, other.key]

    wrong = Note(text, (log.sign(text), other.sign("other text\n"))).encode()
    assert [item.key for item in open_note(wrong, [log.key])[1]] == [log.key]
    assert refusal(wrong, log.key, other.key) is Reason.SIGNATURE_INVALID
    # A second signature of one key is verified as well: the first does not vouch for it.
    twice = Note(text, (log.sign(text), log.sign("other\n"))).encode()
    assert refusal(twice, log.key) is Reason.SIGNATURE_INVALID
    assert refusal(good) is Reason.KEY_UNTRUSTED
    assert refusal(good, signer(seed=3).key) is Reason.KEY_UNTRUSTED


def test_a_cosignature_says_when() -> None:
    witness = signer("example.com/w1", 4, KeyType.COSIGNATURE)
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    line = witness.cosign(text, 1679315147)
    assert line.value[:8] == (1679315147).to_bytes(8)
    (verified,) = open_note(Note(text, (line,)).encode(), [witness.key])[1]
    assert (verified.key, verified.timestamp) == (witness.key, 1679315147)
    # tlog-cosignature.md, "Ed25519 signed message".
    message = b"cosignature/v1\ntime 1679315147\n" + text.encode()
    Ed25519PrivateKey.from_private_bytes(bytes([4]) * 32).public_key().verify(line.value[8:], message)

    for value in (
        (1679315148).to_bytes(8) + line.value[8:],
        line.value[8:],
        line.value + b"\0",
        line.value[:7],
    ):
        changed = Note(text, (Signature(line.name, line.key_id, value),)).encode()
        assert refusal(changed, witness.key) is Reason.SIGNATURE_INVALID
    late = witness.cosign(text, 2**63)
    assert refusal(Note(text, (late,)).encode(), witness.key) is Reason.SIGNATURE_INVALID


def test_a_key_signs_only_what_its_type_says() -> None:
    with pytest.raises(NoteError):
        signer().cosign("text\n", 1)
    with pytest.raises(NoteError):
        signer(kind=KeyType.COSIGNATURE).sign("text\n")
    # A log key's signature is no cosignature though both are Ed25519 of the same key.
    log, witness = signer(), signer(kind=KeyType.COSIGNATURE)
    assert refusal(Note("text\n", (log.sign("text\n"),)).encode(), witness.key) is Reason.KEY_UNTRUSTED


def test_a_signature_of_another_key_is_not_taken_for_ours() -> None:
    with pytest.raises(NoteError) as caught:
        signer().key.verify("text\n", signer(seed=2).sign("text\n"))
    assert caught.value.reason is Reason.KEY_UNTRUSTED


@given(names, st.sampled_from(KeyType), st.binary(min_size=32, max_size=32))
def test_a_vkey_is_what_it_was_written_as(name: str, kind: KeyType, public: bytes) -> None:
    key = VerifierKey(name, kind, public)
    assert VerifierKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+530d903a",
        EXAMPLE_KEY.replace("530d903a", "530d903b"),
        EXAMPLE_KEY.replace("530d903a", "530D903A"),
        EXAMPLE_KEY.replace("530d903a", "0530d903a"),
        EXAMPLE_KEY.replace("foo", "bar"),
        EXAMPLE_KEY[:-1],
        EXAMPLE_KEY + "=",
        EXAMPLE_KEY.partition("+")[2],
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "name+00000000+" + encode_base64(b"\x02" + bytes(32)),
        "name+00000000+" + encode_base64(b"\x01" + bytes(31)),
        "name+00000000+",
    ],
)
def test_what_is_no_vkey_is_refused(vkey: str) -> None:
    with pytest.raises(NoteError) as caught:
        VerifierKey.parse(vkey)
    assert caught.value.reason is Reason.NOTE_MALFORMED


@pytest.mark.parametrize("name", ["", " ", "a b", "a+b", "a\u00a0b", "a\u2028b", "a\nb", "a\x00b", "\ud800"])
def test_names_that_no_key_has(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(NoteError):
        signer(name)


@given(st.binary())
def test_base64_has_one_form(content: bytes) -> None:
    assert decode_base64(encode_base64(content)) == content


@pytest.mark.parametrize("text", ["AA", "AA=", "AB==", "AA==\n", " AA==", "A-==", "Ä", "AA==AA=="])
def test_base64_of_other_forms_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        decode_base64(text)
