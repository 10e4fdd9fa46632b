"""A proof bundle: one file with what proves an execution, or its refusal, to somebody who has public keys alone.

It is an RFC 8785 canonical JSON object, so it has one form. `verify_bundle` (proven.py) says what is proven. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from egs_kernel.artifact.canonical import decode_canonical, encode
from egs_kernel.audit.entries import ArtifactChange, Part, PostureEntry, Verification
from egs_kernel.audit.lines import decode
from egs_kernel.audit.parts import REFERENCE, envelope_of
from egs_kernel.audit.tlog_proof import TlogProof
from egs_kernel.errors import EgsError, ProofError, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.audit.lineage import Link
    from egs_kernel.audit.merkle import Nodes
    from egs_kernel.audit.notes import VerifierKey

VERSION: Final = 1
MAX_BUNDLE: Final = 64 * 1024 * 1024


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the record, as its bytes are there, and the proof (C2SP tlog-proof) that it is entry `seq`."""

    seq: int
    entry: str
    proof: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a proof bundle holds. Nothing of it is verified.

    `subject` is the number of the entry that is proven: an exec, or the decision about a request that came to none.
    `artifact` is the DSSE envelope, `log_key` and `signers` name the keys that somebody needs, `checkpoint` is the log's
    signed note with its cosignatures.
    """

    v: int
    subject: int
    records: tuple[Item, ...]
    artifact: str | None
    log_key: str
    signers: tuple[str, ...]
    checkpoint: str

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The bundle in a file.

        Raises:
            ProofError: BUNDLE_MALFORMED: it is none.
        """
        if len(content) > MAX_BUNDLE:
            raise malformed(f"it has {len(content)} bytes; at most {MAX_BUNDLE} are read")
        try:
            bundle = msgspec.convert(decode_canonical(content.removesuffix(b"\n")), cls)
        except (msgspec.ValidationError, Refused) as error:
            raise malformed(str(error)) from error
        if bundle.v != VERSION:
            raise malformed(f"it is of version {bundle.v}, known is {VERSION}")
        return bundle

    def encode(self) -> bytes:
        """The file's content."""
        return encode(msgspec.to_builtins(self)) + b"\n"


class SignedLog(Protocol):
    """A log, as it is under one signed checkpoint."""

    @property
    def size(self) -> int:
        """Entries under the checkpoint."""

    @property
    def checkpoint(self) -> bytes:
        """The signed note."""

    @property
    def nodes(self) -> Nodes:
        """The nodes of its tree."""

    def line(self, seq: int) -> bytes:
        """The bytes of an entry."""


def build_bundle(link: Link, posture: Recorded | None, log: SignedLog, log_key: VerifierKey) -> Bundle:
    """The bundle that proves a link of a lineage.

    Args:
        link: the exec, or the request that came to none, with its entries.
        posture: the entry that its decision cites.
        log: where they are.
        log_key: the key that signed its checkpoint.

    Raises:
        EgsError: NOT_FOUND: the checkpoint does not cover these entries yet.
    """
    size, checkpoint = log.size, log.checkpoint
    parts = _parts_before(link.artifact, log)
    seqs = sorted(
        {item.seq for item in (*link.entries, *parts)} | ({posture.seq} if posture is not None else set())
    )
    if seqs[-1] >= size:
        raise EgsError(
            Reason.NOT_FOUND,
            f"the log's checkpoint covers {size} entries, and not entry {seqs[-1]}",
            "Try again in a moment: the daemon publishes what is durable.",
        )
    found = link.verification.entry if link.verification is not None else None
    return Bundle(
        v=VERSION,
        subject=link.subject.seq,
        records=tuple(
            Item(
                seq, log.line(seq).decode(), TlogProof.of(seq, size, log.nodes, checkpoint).encode().decode()
            )
            for seq in seqs
        ),
        artifact=_envelope(link.artifact, parts),
        log_key=str(log_key),
        signers=found.signers if isinstance(found, Verification) else (),
        checkpoint=checkpoint.decode(),
    )


def _parts_before(artifact: Recorded | None, log: SignedLog) -> list[Recorded]:
    """The parts of its envelope, when it was too long for one entry: they stand right before it."""
    if artifact is None or not isinstance(artifact.entry, ArtifactChange):
        return []
    if not (artifact.entry.envelope or "").startswith(REFERENCE):
        return []
    last = decode(log.line(artifact.seq - 1))
    count = last.entry.count if isinstance(last.entry, Part) else 0
    return [decode(log.line(seq)) for seq in range(artifact.seq - count, artifact.seq)]


def _envelope(artifact: Recorded | None, parts: list[Recorded]) -> str | None:
    if artifact is None or not isinstance(artifact.entry, ArtifactChange) or artifact.entry.envelope is None:
        return None
    return envelope_of(
        artifact.entry.envelope, [item.entry for item in parts if isinstance(item.entry, Part)]
    )


def cited_posture(digest: str | None, postures: Iterable[Recorded]) -> Recorded | None:
    """The first of these entries that holds the posture with this digest."""
    return next(
        (item for item in postures if isinstance(item.entry, PostureEntry) and item.entry.digest == digest),
        None,
    )


def malformed(problem: str) -> ProofError:
    """The error for what is no bundle."""
    return ProofError(
        Reason.BUNDLE_MALFORMED,
        f"this is no proof bundle: {problem}",
        "Have it exported again: egs proof export EXECUTION --out FILE",
    )
