"""A log's checkpoint (C2SP tlog-checkpoint): origin, size and root hash, signed as a note. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import msgspec

from egs_kernel.audit.notes import Note, Signature, decode_base64, encode_base64, malformed, open_note
from egs_kernel.errors import NoteError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.notes import Signer, Verified, VerifierKey

CHECKPOINT: Final = "checkpoint"
"""The file, and the last part of the address, that a log publishes it by."""
ROOT_BYTES: Final = 32
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIZE_END = 2**63


class Checkpoint(msgspec.Struct, frozen=True):
    """A tree head: whose log, how many leaves, the root over them.

    `extensions`: further lines, of other logs; ours writes none. They are part of what is signed.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint in a note's text.

        Raises:
            NoteError: NOTE_MALFORMED: it is none.
        """
        origin, *rest = text.removesuffix("\n").split("\n")
        if not text.endswith("\n") or len(rest) < 2 or not all((origin, *rest)):  # noqa: PLR2004 - size and root
            raise malformed("no checkpoint: at least three lines, none of them empty")
        return cls(origin, parse_size(rest[0]), parse_hash(rest[1]), tuple(rest[2:]))

    @property
    def text(self) -> str:
        """The text that is signed."""
        further = "".join(f"{line}\n" for line in self.extensions) if self.extensions else ""
        return f"{self.origin}\n{self.size}\n{encode_base64(self.root)}\n{further}"

    def sign(self, *signers: Signer) -> bytes:
        """The published form, signed by each key.

        Raises:
            NoteError: NOTE_MALFORMED: an origin, size or root that no checkpoint can have, or no signer.
        """
        text = self.text
        usual = self._is_plain and bool(signers) and all(each.key.name == self.origin for each in signers)
        if not usual and Checkpoint.parse(text) != self:
            raise malformed(f"no checkpoint: {self!r}")
        note = Note(text, tuple(signer.sign(text) for signer in signers))
        # Every append comes by here: what is a note by its parts is not parsed again.
        return note.written() if usual else note.encode()

    @property
    def _is_plain(self) -> bool:
        """Whether size and root are a checkpoint's, and there is nothing else. A key's name is good as an origin."""
        return 0 <= self.size < _SIZE_END and len(self.root) == ROOT_BYTES and not self.extensions


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint that its log has signed, and who cosigned it. `note` has the unknown signatures, too."""

    checkpoint: Checkpoint
    note: Note
    signatures: tuple[Verified, ...]
    cosignatures: tuple[Verified, ...]

    @property
    def witnesses(self) -> frozenset[VerifierKey]:
        """The witnesses whose cosignature it carries."""
        return frozenset(cosignature.key for cosignature in self.cosignatures)


def open_checkpoint(
    content: bytes, origin: str, log_keys: Iterable[VerifierKey], witnesses: Iterable[VerifierKey] = ()
) -> SignedCheckpoint:
    """The checkpoint of the log `origin` in a signed note.

    Args:
        content: the note, as it was fetched.
        origin: whose checkpoint it has to be.
        log_keys: the log's keys; one of them must have signed.
        witnesses: cosigners whose signatures are verified when they are there; how many there must be is for the
            caller to say.

    Raises:
        NoteError: NOTE_MALFORMED; KEY_UNTRUSTED (no signature of the log's keys, or another log's checkpoint);
            SIGNATURE_INVALID (a known key's signature is wrong).
    """
    log, others = frozenset(log_keys), frozenset(witnesses)
    note, verified = open_note(content, log | others)
    checkpoint = Checkpoint.parse(note.text)
    signatures = tuple(item for item in verified if item.key in log)
    if checkpoint.origin != origin or not signatures:
        raise NoteError(
            Reason.KEY_UNTRUSTED,
            f"a checkpoint of the log {checkpoint.origin}, not signed as the log {origin}",
            "Name the log's own checkpoint, and its own key: `egs audit key show` prints both.",
        )
    return SignedCheckpoint(
        checkpoint, note, signatures, tuple(item for item in verified if item.key in others)
    )


def with_signatures(content: bytes, added: Iterable[Signature]) -> bytes:
    """A checkpoint with further signatures; one of a key that has signed already takes the older one's place.

    Raises:
        NoteError: NOTE_MALFORMED: `content` is no note.
    """
    note = Note.parse(content)
    fresh = {(signature.name, signature.key_id): signature for signature in added}
    kept = (item for item in note.signatures if (item.name, item.key_id) not in fresh)
    return Note(note.text, (*kept, *fresh.values())).encode()


def parse_size(text: str) -> int:
    """A tree size in its one decimal form.

    Raises:
        NoteError: NOTE_MALFORMED: it is none, or 2^63 and more.
    """
    if _SIZE.fullmatch(text) is None or int(text) >= _SIZE_END:
        raise malformed(f"no tree size: {text[:40]!a}")
    return int(text)


def parse_hash(text: str) -> bytes:
    """A SHA-256 in base64.

    Raises:
        NoteError: NOTE_MALFORMED: it is none.
    """
    content = decode_base64(text)
    if len(content) != ROOT_BYTES:
        raise malformed(f"a hash of {len(content)} bytes")
    return content
