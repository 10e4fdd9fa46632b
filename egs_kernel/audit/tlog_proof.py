"""A proof that an entry is in the log, as one text that can be verified offline (C2SP tlog-proof). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import msgspec

from egs_kernel.audit.checkpoint import open_checkpoint, parse_hash, parse_size
from egs_kernel.audit.merkle import inclusion_proof, leaf_hash, verify_inclusion
from egs_kernel.audit.notes import encode_base64, malformed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.checkpoint import SignedCheckpoint
    from egs_kernel.audit.merkle import Nodes
    from egs_kernel.audit.notes import VerifierKey

FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
_EXTRA: Final = "extra "
_INDEX: Final = "index "
_MAX_HASHES: Final = 63


class TlogProof(msgspec.Struct, frozen=True):
    """An entry's number, the hashes from its sibling up, and the signed checkpoint, verbatim. Nothing of it is verified."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    @classmethod
    def of(cls, index: int, size: int, nodes: Nodes, checkpoint: bytes) -> Self:
        """The proof of entry `index` in the tree of `size` leaves that `checkpoint` signs.

        Raises:
            ProofError: there is no such entry.
        """
        return cls(index, inclusion_proof(index, size, nodes), checkpoint)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The proof in a text.

        Raises:
            NoteError: NOTE_MALFORMED: it is none.
        """
        head, separator, checkpoint = content.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise malformed("a proof has only ASCII before its checkpoint") from error
        if lines[0] != FIRST_LINE or not separator:
            raise malformed(f"no proof: it does not begin with {FIRST_LINE}, or has no checkpoint")
        rest = lines[2:] if len(lines) > 1 and lines[1].startswith(_EXTRA) else lines[1:]
        if not rest or not rest[0].startswith(_INDEX) or len(rest) > 1 + _MAX_HASHES:
            raise malformed("no proof: an index, and at most 63 hashes after it")
        return cls(
            parse_size(rest[0].removeprefix(_INDEX)), tuple(parse_hash(line) for line in rest[1:]), checkpoint
        )

    def encode(self) -> bytes:
        """The text; `.tlog-proof` is what its file's name ends in."""
        hashes = "".join(f"{encode_base64(item)}\n" for item in self.hashes)
        return f"{FIRST_LINE}\n{_INDEX}{self.index}\n{hashes}\n".encode() + self.checkpoint

    def verify(
        self,
        entry: bytes,
        origin: str,
        log_keys: Iterable[VerifierKey],
        witnesses: Iterable[VerifierKey] = (),
    ) -> SignedCheckpoint:
        """Check that the log `origin` has `entry` where this proof says, under a checkpoint that one of its keys signed.

        Raises:
            NoteError: the checkpoint is not theirs.
            ProofError: the entry is not there.
        """
        signed = open_checkpoint(self.checkpoint, origin, log_keys, witnesses)
        tree = signed.checkpoint
        verify_inclusion(leaf_hash(entry), self.index, tree.size, self.hashes, tree.root)
        return signed
