"""What a proof bundle proves, step by step, with public keys alone. Pure.

 1. Form: a canonical JSON object of this version, with nothing unknown in it.
 2. Checkpoint: a key of the log signed it.
 3. Cosignatures: each witness that was asked for has cosigned it.
 4. Inclusion: each entry is in the log under that checkpoint, at its number.
 5. Entries: each is a canonical entry that names its own number.
 6. Chain: they tell of one execution (or one refused request), and nothing of what let it run is missing.
 7. Posture: the host's state is the one that the decision cites.
 8. Artifact: those who may sign for its scope signed it, and it was valid when it was decided.
 9. Program: what was measured is what the artifact names.
10. Outcome: it ended, was refused, or the bundle says that it had not ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.bundle import Bundle
from egs_kernel.audit.chained import Chain, chain_of, mismatch
from egs_kernel.audit.checkpoint import open_checkpoint
from egs_kernel.audit.lines import decode, is_canonical, posture_digest
from egs_kernel.audit.notes import VerifierKey
from egs_kernel.audit.tlog_proof import TlogProof
from egs_kernel.errors import EgsError, NoteError
from egs_kernel.model import Reason
from egs_kernel.verify import Artifact, authenticate, check_window

if TYPE_CHECKING:
    from collections.abc import Collection

    from egs_kernel.audit.bundle import Item
    from egs_kernel.audit.checkpoint import SignedCheckpoint
    from egs_kernel.audit.entries import Recorded
    from egs_kernel.trust.store import TrustStore


class Step(IntEnum):
    """The steps of the plan above, by their numbers."""

    FORM = 1
    CHECKPOINT = 2
    COSIGNATURES = 3
    INCLUSION = 4
    ENTRIES = 5
    CHAIN = 6
    POSTURE = 7
    ARTIFACT = 8
    PROGRAM = 9
    OUTCOME = 10


STEPS: Final = {
    Step.FORM: "a canonical proof bundle, nothing unknown in it",
    Step.CHECKPOINT: "a key of the log signed the checkpoint",
    Step.COSIGNATURES: "every witness that was asked for cosigned it",
    Step.INCLUSION: "each entry is in the log, at its number",
    Step.ENTRIES: "each is a canonical entry that names its own number",
    Step.CHAIN: "they tell of one execution, and nothing that let it run is missing",
    Step.POSTURE: "the host's state is the one that the decision cites",
    Step.ARTIFACT: "those who may sign for its scope signed the artifact, valid when it was decided",
    Step.PROGRAM: "what was measured is what the artifact names",
    Step.OUTCOME: "how it ended, as far as the log had it",
}
"""What each step establishes, for those who print them."""

Reached = Callable[[Step], None]
"""Called as each step begins, so that a caller can show how far it came."""


def _unobserved(_step: Step) -> None:
    pass


@dataclass(frozen=True)
class Proven:
    """What is proven. `skipped`: steps about what there is none of, such as the artifact of an exec that had none."""

    bundle: Bundle
    chain: Chain
    checkpoint: SignedCheckpoint
    artifact: Artifact | None
    skipped: frozenset[Step]


def verify_bundle(
    content: bytes,
    trust: TrustStore,
    log_keys: Collection[VerifierKey],
    witnesses: Collection[VerifierKey] = (),
    reached: Reached = _unobserved,
) -> Proven:
    """The steps above.

    Args:
        content: the bundle's file.
        trust: who may sign artifacts.
        log_keys: the keys of the log that it has to be from: all of one name, the log's origin.
        witnesses: who must have cosigned.
        reached: called as each step begins.

    Raises:
        EgsError: with the place that is wrong: ProofError, NoteError, RecordError or Refused.
    """
    skipped = set[Step]()
    reached(Step.FORM)
    bundle = Bundle.parse(content)
    reached(Step.CHECKPOINT)
    signed = _checkpoint(bundle, log_keys, witnesses)
    reached(Step.COSIGNATURES)
    _require_witnesses(signed, witnesses)
    if not witnesses:
        skipped.add(Step.COSIGNATURES)
    reached(Step.INCLUSION)
    for item in bundle.records:
        _require_included(item, bundle, log_keys, signed.checkpoint.origin)
    reached(Step.ENTRIES)
    records = [_decoded(item) for item in bundle.records]
    reached(Step.CHAIN)
    chain = chain_of(records, bundle.subject)
    reached(Step.POSTURE)
    if not _require_posture(chain):
        skipped.add(Step.POSTURE)
    reached(Step.ARTIFACT)
    artifact = _artifact(bundle, chain, trust)
    reached(Step.PROGRAM)
    if artifact is None:
        skipped |= {Step.ARTIFACT, Step.PROGRAM}
    else:
        _require_program(artifact, chain)
    reached(Step.OUTCOME)
    if chain.outcome is None:
        skipped.add(Step.OUTCOME)
    return Proven(bundle, chain, signed, artifact, frozenset(skipped))


def _checkpoint(
    bundle: Bundle, log_keys: Collection[VerifierKey], witnesses: Collection[VerifierKey]
) -> SignedCheckpoint:
    named = VerifierKey.parse(bundle.log_key)
    if named not in log_keys:
        raise NoteError(
            Reason.KEY_UNTRUSTED,
            f"the bundle is from the log {named}, whose key was not given",
            "Compare it with what the log's operator publishes (egs audit key show), then: --log-key VKEY",
        )
    return open_checkpoint(bundle.checkpoint.encode(), named.name, log_keys, witnesses)


def _require_witnesses(signed: SignedCheckpoint, witnesses: Collection[VerifierKey]) -> None:
    missing = sorted(str(witness) for witness in set(witnesses) - signed.witnesses)
    if missing:
        raise NoteError(
            Reason.KEY_UNTRUSTED,
            f"the checkpoint is not cosigned by {', '.join(missing)}",
            "Have the bundle exported again when the witness has cosigned.",
        )


def _require_included(item: Item, bundle: Bundle, log_keys: Collection[VerifierKey], origin: str) -> None:
    try:
        proof = TlogProof.parse(item.proof.encode())
        if proof.encode() != item.proof.encode() or proof.checkpoint != bundle.checkpoint.encode():
            raise mismatch(
                f"entry {item.seq}", "its proof has another checkpoint than the bundle, or more lines"
            )
        if proof.index != item.seq:
            raise mismatch(f"entry {item.seq}", f"its proof is of entry {proof.index}")
        proof.verify(item.entry.encode(), origin, log_keys)
    except EgsError as error:
        raise type(error)(error.reason, f"entry {item.seq}: {error.message}", error.next_step) from error


def _decoded(item: Item) -> Recorded:
    line = item.entry.encode()
    recorded = decode(line, f"entry {item.seq} of the bundle")
    if recorded.seq != item.seq or not is_canonical(line):
        raise mismatch(f"entry {item.seq}", "it is not canonical, or calls itself another one")
    return recorded


def _require_posture(chain: Chain) -> bool:
    if chain.decision is None:
        return False
    cited, found = chain.decision.posture, chain.posture
    if found is None or found.digest != cited or posture_digest(found.posture) != cited:
        raise mismatch("the posture", f"the decision cites {cited}, which is not in the bundle")
    return True


def _artifact(bundle: Bundle, chain: Chain, trust: TrustStore) -> Artifact | None:
    """The artifact that authenticates as of the time when it was decided."""
    recorded = chain.envelope
    signers = chain.verification.signers if chain.verification is not None else ()
    if bundle.artifact != recorded or bundle.signers != signers:
        raise mismatch("the artifact", "the bundle has another one, or other signers, than its entries")
    if recorded is None or chain.artifact is None:
        return None
    moment = _time(chain.decided)
    artifact = authenticate(recorded.encode(), trust, moment)
    if artifact.id != chain.artifact.artifact_id:
        raise mismatch("the artifact", f"its id is {artifact.id}, the log says {chain.artifact.artifact_id}")
    if chain.verification is not None and chain.verification.passed:
        check_window(artifact, moment)
    return artifact


def _require_program(artifact: Artifact, chain: Chain) -> None:
    if chain.verification is None or not chain.verification.passed:
        return
    intent = next((one for one in (chain.intent, chain.decision and chain.decision.intent) if one), None)
    signed = artifact.statement.program.digest.sha256
    if intent is None or intent.digest != signed:
        raise mismatch("the program", f"the artifact names {signed}, measured was {intent and intent.digest}")


def _time(recorded: Recorded) -> datetime:
    return datetime.fromisoformat(recorded.time).astimezone(UTC)
