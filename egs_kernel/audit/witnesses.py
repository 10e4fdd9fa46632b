"""The witnesses of this host's log, and what a checkpoint that one of them cosigned says about the record. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from egs_kernel.audit.checkpoint import SignedCheckpoint, open_checkpoint
from egs_kernel.audit.merkle import consistency_proof, verify_consistency
from egs_kernel.audit.notes import KeyType, VerifierKey
from egs_kernel.audit.tiles import nodes_of
from egs_kernel.errors import NoteError, ProofError, RecordError, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.tiles import ReadTile
    from egs_kernel.config import WitnessConfig


class Divergence(Enum):
    """How a record differs from what its witness has seen of it."""

    ROLLED_BACK = "rolled_back"  # the witness has seen more entries than there are
    FORKED = "forked"  # it has seen other entries
    REFUSED = "refused"  # it says that a checkpoint does not continue the last one, and shows nothing


@dataclass(frozen=True)
class Witness:
    """A witness that cosigns this log: the address before `/add-checkpoint`, and its key."""

    url: str
    key: VerifierKey


def witnesses_of(config: Iterable[WitnessConfig]) -> tuple[Witness, ...]:
    """The configured witnesses.

    Raises:
        UsageError: CONFIG_INVALID: a key is none, or not of the type that cosigns.
    """
    return tuple(Witness(one.url.rstrip("/"), _key(one.key)) for one in config)


@dataclass(frozen=True)
class OwnLog:
    """This host's log: its origin, every key that it ever had, its published checkpoint, its tiles.

    `size`: its entries now, which may be more than are published.
    """

    origin: str
    keys: tuple[VerifierKey, ...]
    size: int
    published: bytes
    read: ReadTile


def compare(content: bytes, log: OwnLog, witness: VerifierKey) -> tuple[SignedCheckpoint, Divergence | None]:
    """Whether a checkpoint that a witness cosigned is one of this record.

    Args:
        content: the checkpoint, signed by this log and cosigned by the witness: nobody else can make one.
        log: this host's.
        witness: who has to have cosigned.

    Returns:
        The checkpoint, and how the record differs; None: what is published continues it.

    Raises:
        NoteError: it is no checkpoint of this log, or the witness did not cosign it.
        OSError, EgsError: the record cannot be read, or has not published as much yet.
    """
    signed = open_checkpoint(content, log.origin, log.keys, [witness])
    if not signed.cosignatures:
        raise NoteError(Reason.KEY_UNTRUSTED, f"{witness.name} did not cosign that checkpoint")
    seen = signed.checkpoint
    if seen.size > log.size:
        return signed, Divergence.ROLLED_BACK
    now = open_checkpoint(log.published, log.origin, log.keys).checkpoint
    if seen.size > now.size:
        raise RecordError(
            Reason.RECORD_UNAVAILABLE,
            f"{seen.size} entries are cosigned, and {now.size} are published",
            "Ask again: the daemon publishes what it has within seconds.",
        )
    try:  # out of the tiles of now: those of before may still lie there
        proof = consistency_proof(seen.size, now.size, nodes_of(log.read, now.size))
        verify_consistency(seen.size, seen.root, now.size, now.root, proof)
    except ProofError:
        return signed, Divergence.FORKED
    return signed, None


def _key(text: str) -> VerifierKey:
    try:
        key = VerifierKey.parse(text)
    except NoteError as error:
        raise _invalid(error.message) from error
    if key.type is not KeyType.COSIGNATURE:
        raise _invalid(f"the key {text} is a log's, not a witness's")
    return key


def _invalid(problem: str) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID,
        f"witness: {problem}",
        "Use what `egs witness key` prints on the witness's host.",
    )
