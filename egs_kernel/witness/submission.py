"""What is sent to a witness and what it answers: old size, consistency proof, checkpoint; cosignature lines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import msgspec

from egs_kernel.audit.checkpoint import parse_hash, parse_size
from egs_kernel.audit.notes import MAX_NOTE, Signature, encode_base64, malformed

if TYPE_CHECKING:
    from collections.abc import Iterable

ADD_CHECKPOINT: Final = "/add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
"""The content type of a 409, whose body is the size of the last checkpoint that was cosigned."""
MAX_PROOF: Final = 63
MAX_SUBMISSION: Final = MAX_NOTE + 64 * 64
"""Bytes of a request at most: a note, and what stands before it."""
_OLD: Final = "old "


class Submission(msgspec.Struct, frozen=True):
    """A request to cosign: the size of the checkpoint that was cosigned last, the proof from there, the new one."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The request in a body.

        Raises:
            NoteError: NOTE_MALFORMED: it is none.
        """
        head, separator, checkpoint = content.partition(b"\n\n")
        if not separator or not head.isascii():
            raise malformed("no submission: an old size, hashes, an empty line, a checkpoint")
        first, *lines = head.decode("ascii").split("\n")
        if not first.startswith(_OLD) or len(lines) > MAX_PROOF:
            raise malformed(f"no submission: it begins with an old size and at most {MAX_PROOF} hashes")
        proof = tuple(parse_hash(line) for line in lines)
        return cls(parse_size(first.removeprefix(_OLD)), proof, checkpoint)

    def encode(self) -> bytes:
        """The request's body."""
        hashes = "".join(f"{encode_base64(item)}\n" for item in self.proof)
        return f"{_OLD}{self.old}\n{hashes}\n".encode() + self.checkpoint


def encode_lines(signatures: Iterable[Signature]) -> bytes:
    """Signature lines, as a witness answers them."""
    return "".join(f"{signature}\n" for signature in signatures).encode()


def parse_lines(content: bytes) -> tuple[Signature, ...]:
    """The signature lines of a witness's answer; nothing of them is verified.

    Raises:
        NoteError: NOTE_MALFORMED: it is no such answer.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise malformed("an answer that is not UTF-8") from error
    if not text.endswith("\n"):
        raise malformed("an answer without a signature line")
    return tuple(Signature.parse(line) for line in text.removesuffix("\n").split("\n"))
