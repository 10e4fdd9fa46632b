"""Signed notes (C2SP signed-note, tlog-cosignature): text, signature lines, Ed25519 keys, cosignatures. Pure.

A note is text and at least one line of signature under it. A signature names its key by name and key id; what a
verifier does not know it ignores, and what a key that it knows did not sign it refuses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from egs_kernel.errors import NoteError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NOTE: Final = 1024 * 1024
"""Bytes of a note at most: its signatures may be some of 5 kB (signed-note, "post-quantum")."""
MAX_SIGNATURES: Final = 64
"""Signatures of a note at most; the specification asks for 16."""

_DASH: Final = "— "
_LONE = re.compile("[\ud800-\udfff]")  # half a character: what UTF-8 cannot encode
_KEY_ID = 4
_PUBLIC = 32
_SIGNATURE = 64
_TIMESTAMP = 8
_TIME_END = 2**63


class KeyType(IntEnum):
    """What a key's signatures are over: the byte of signed-note's list of signature types."""

    ED25519 = 0x01  # the note's text
    COSIGNATURE = 0x04  # the text, and when a witness had seen nothing newer of that log: cosignature/v1


class Signature(msgspec.Struct, frozen=True):
    """One line under a note: who signs, and what. `key_id`: four bytes; `value`: as the key's type has it."""

    name: str
    key_id: bytes
    value: bytes

    @classmethod
    def parse(cls, line: str) -> Self:
        """The signature of a line, without its newline.

        Raises:
            NoteError: NOTE_MALFORMED: it is no such line.
        """
        name, separator, encoded = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not separator or not is_name(name):
            raise malformed(f"no signature line: {_shown(line)}")
        content = decode_base64(encoded)
        if len(content) <= _KEY_ID:
            raise malformed(f"a signature of {len(content)} bytes, with its key id")
        return cls(name, content[:_KEY_ID], content[_KEY_ID:])

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {encode_base64(self.key_id + self.value)}"


class Note(msgspec.Struct, frozen=True):
    """A text, which ends in a newline, and the signatures under it. Nothing of it is verified."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The note in `content`.

        Raises:
            NoteError: NOTE_MALFORMED: it is none.
        """
        if len(content) > MAX_NOTE:
            raise malformed(f"a note of {len(content)} bytes; at most {MAX_NOTE} are read")
        try:
            whole = content.decode()
        except UnicodeDecodeError as error:
            raise malformed("a note that is not UTF-8") from error
        if any(character < " " and character != "\n" for character in whole):
            raise malformed("a control character in a note")
        text, separator, under = whole.rpartition("\n\n")
        if not separator or not under.endswith("\n"):
            raise malformed("no signature lines after an empty line")
        lines = under[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise malformed(f"{len(lines)} signatures; at most {MAX_SIGNATURES} are read")
        return cls(text + "\n", tuple(Signature.parse(line) for line in lines))

    def encode(self) -> bytes:
        """The note's bytes.

        Raises:
            NoteError: NOTE_MALFORMED: text or names that no note can have, or no signature.
        """
        content = self.written()
        if Note.parse(content) != self:  # half characters became question marks
            raise malformed("a text or a name that no note can have")
        return content

    def written(self) -> bytes:
        """The same for who knows that text and names are a note's."""
        lines = "".join(f"{signature}\n" for signature in self.signatures)
        return f"{self.text}\n{lines}".encode(errors="replace")


@dataclass(frozen=True)
class Verified:
    """A signature that is good: whose, and of a cosignature the witness's time (Unix seconds)."""

    key: VerifierKey
    signature: Signature
    timestamp: int | None = None


@dataclass(frozen=True, order=True)
class VerifierKey:
    """A public key as a *vkey* names it: key name, type and 32 bytes of Ed25519."""

    name: str
    type: KeyType
    public: bytes

    def __post_init__(self) -> None:
        if not is_name(self.name) or len(self.public) != _PUBLIC:
            raise malformed(f"no verifier key: name {_shown(self.name)}, {len(self.public)} bytes")

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """The key of `NAME+KEYID+BASE64`.

        Raises:
            NoteError: NOTE_MALFORMED: it is no vkey, of a type that is not supported, or its key id is not its own.
        """
        name, _, rest = vkey.partition("+")
        key_id, separator, encoded = rest.partition("+")
        if not separator:
            raise malformed(f"no verifier key (NAME+KEYID+BASE64): {_shown(vkey)}")
        content = decode_base64(encoded)
        if content[:1] not in {bytes([kind]) for kind in KeyType}:
            raise malformed(f"the verifier key {_shown(vkey)} is neither Ed25519 nor cosignature/v1")
        key = cls(name, KeyType(content[0]), content[1:])
        if key_id != key.key_id.hex():
            raise malformed(f"the verifier key {_shown(vkey)} should have the key id {key.key_id.hex()}")
        return key

    @property
    def key_id(self) -> bytes:
        """The four bytes by which signatures name this key, with its name."""
        content = self.name.encode() + b"\n" + bytes([self.type]) + self.public
        return hashlib.sha256(content).digest()[:_KEY_ID]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(bytes([self.type]) + self.public)}"

    def is_named_by(self, signature: Signature) -> bool:
        """Whether a signature says that it is of this key; `verify` tells whether it is."""
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def verify(self, text: str, signature: Signature) -> Verified:
        """Check one signature under a text.

        Raises:
            NoteError: KEY_UNTRUSTED: it names another key; SIGNATURE_INVALID: this key did not sign that.
        """
        if not self.is_named_by(signature):
            raise NoteError(Reason.KEY_UNTRUSTED, f"{signature.name} is not the key {self}")
        value, timestamp, message = signature.value, None, text.encode()
        if self.type is KeyType.COSIGNATURE:
            timestamp = int.from_bytes(value[:_TIMESTAMP])
            message, value = cosigned(text, timestamp), value[_TIMESTAMP:]
        if len(value) != _SIGNATURE or (timestamp or 0) >= _TIME_END:
            raise self._wrong()
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(value, message)
        except InvalidSignature as error:
            raise self._wrong() from error
        return Verified(self, signature, timestamp)

    def _wrong(self) -> NoteError:
        return NoteError(
            Reason.SIGNATURE_INVALID,
            f"the signature that names the key {self.name}+{self.key_id.hex()} is not of this text",
            "Keep the note as evidence: it was changed, or somebody pretends to be that key.",
        )


class Signer:
    """A private key with the name and the type that its signatures have."""

    def __init__(self, name: str, private: Ed25519PrivateKey, type: KeyType = KeyType.ED25519) -> None:  # noqa: A002 - the word of the specification
        """Bind a key to a name.

        Raises:
            NoteError: NOTE_MALFORMED: no key can have that name.
        """
        self._private = private
        self.key = VerifierKey(name, type, private.public_key().public_bytes_raw())
        self._key_id = self.key.key_id

    def sign(self, text: str) -> Signature:
        """Sign a note's text. Of a key of type ED25519.

        Raises:
            NoteError: NOTE_MALFORMED: no note can have that text, or the key is of another type.
        """
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise malformed(f"no text: {_shown(text)}") from error
        return self._signature(KeyType.ED25519, self._private.sign(content))

    def cosign(self, text: str, now: int) -> Signature:
        """Cosign a checkpoint's text at `now` (Unix seconds, above 0). Of a key of type COSIGNATURE."""
        value = now.to_bytes(_TIMESTAMP) + self._private.sign(cosigned(text, now))
        return self._signature(KeyType.COSIGNATURE, value)

    def _signature(self, kind: KeyType, value: bytes) -> Signature:
        if self.key.type is not kind:  # one key for two types would sign what it never saw
            raise malformed(f"the key {self.key} does not make signatures of type {kind.name}")
        return Signature(self.key.name, self._key_id, value)


def open_note(content: bytes, known: Iterable[VerifierKey]) -> tuple[Note, tuple[Verified, ...]]:
    """The note in `content`, and what known keys have signed of it: at least one signature, in the note's order.

    Raises:
        NoteError: NOTE_MALFORMED, SIGNATURE_INVALID (a known key's signature is wrong), KEY_UNTRUSTED (no
            signature is of a known key).
    """
    note = Note.parse(content)
    keys = {(key.name, key.key_id): key for key in known}
    verified = tuple(
        key.verify(note.text, signature)
        for signature in note.signatures
        if (key := keys.get((signature.name, signature.key_id))) is not None
    )
    if not verified:
        names = ", ".join(f"{signature.name}+{signature.key_id.hex()}" for signature in note.signatures)
        raise NoteError(
            Reason.KEY_UNTRUSTED,
            f"no signature is of a known key; there are: {names}",
            "Compare with `egs audit key show` on the host of the log.",
        )
    return note, verified


def cosigned(text: str, timestamp: int) -> bytes:
    """What a cosignature/v1 is over."""
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def is_name(name: str) -> bool:
    """Whether a key can have this name: not empty, no spaces, no plus, nothing that a note cannot hold."""
    return bool(name) and not any(
        character.isspace() or character < " " or character == "+" or _LONE.match(character)
        for character in name
    )


def encode_base64(content: bytes) -> str:
    """Standard base64, with padding."""
    return binascii.b2a_base64(content, newline=False).decode()


def decode_base64(text: str) -> bytes:
    """The bytes of standard base64 in its one form: padded, without newlines, unused bits zero.

    Raises:
        NoteError: NOTE_MALFORMED: it is something else.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise malformed(f"no base64: {_shown(text)}") from error
    if encode_base64(content) != text:
        raise malformed(f"base64 in a form that nobody writes: {_shown(text)}")
    return content


def malformed(problem: str) -> NoteError:
    """The error for what is no note, no checkpoint or no key."""
    return NoteError(
        Reason.NOTE_MALFORMED, problem, "Fetch it again; if it stays so, ask who runs the log or the witness."
    )


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 120 else text[:120] + "…")  # noqa: PLR2004 - what a line shows
