"""Whether entries tell of one execution, or of one request that was refused, and of nothing else. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from egs_kernel.audit.entries import (
    ArtifactChange,
    Code,
    Decision,
    Exec,
    Outcome,
    Part,
    PostureEntry,
    Refusal,
    Request,
    Verification,
)
from egs_kernel.audit.parts import envelope_of
from egs_kernel.errors import ProofError, RecordError
from egs_kernel.model import GrantKind, Reason, TaskIdentity, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.model import ExecEvent, Intent


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The parts of the story.

    `decided`: the entry of the decision, or of the exec when there was none. `envelope`: the artifact's text.
    """

    subject: Recorded
    decided: Recorded
    event: ExecEvent | None
    intent: Intent | None
    verification: Verification | None
    decision: Decision | None
    artifact: ArtifactChange | None
    posture: PostureEntry | None
    outcome: Outcome | None
    envelope: str | None

    @property
    def ran(self) -> bool:
        """Whether the program ran."""
        if self.event is None:
            return False
        if self.event.verdict is Verdict.HOLD:
            return self.decision is not None and self.decision.verdict is Verdict.ALLOW
        return bool(self.event.execution)


def chain_of(records: Sequence[Recorded], subject: int) -> Chain:
    """The chain that these entries are.

    Raises:
        ProofError: EVIDENCE_MISMATCH: an entry does not belong, or one is missing without which it could not have run.
    """
    seqs = [item.seq for item in records]
    if seqs != sorted(set(seqs)):
        raise mismatch("the entries", "they are not in the record's order, each once")
    subjects = [item for item in records if item.seq == subject]
    if len(subjects) != 1:
        raise mismatch(f"entry {subject}", "the subject is not in the bundle")
    found = _Story(subjects[0])
    for item in records:
        found.take(item)
    return found.chain()


class _Story:
    """Takes entries in, and refuses the first one that is of another story."""

    def __init__(self, subject: Recorded) -> None:
        self._subject = subject
        self._event = subject.entry.event if isinstance(subject.entry, Exec) else None
        self._held = self._event is not None and self._event.verdict is Verdict.HOLD
        self._request = (
            str(self._event.execution) if self._event is not None and self._held else _request_of(subject)
        )
        self._intents: list[Intent] = []
        self._verifications: list[Verification] = []
        self._decisions: list[tuple[Recorded, Decision]] = []
        self._artifact: ArtifactChange | None = None
        self._parts: list[Part] = []
        self._posture: PostureEntry | None = None
        self._outcome: Outcome | None = None
        if self._event is None and not isinstance(subject.entry, Decision):
            self._stranger(subject, "neither an exec nor a decision")

    def take(self, item: Recorded) -> None:  # noqa: C901 - one case a type
        match item.entry:
            case Exec():
                if item is not self._subject:
                    self._stranger(item, "a second exec")
            case Request(intent=intent):
                self._require_decided_for(item)
                self._intents.append(intent)
            case Verification() as verification:
                self._require_decided_for(item)
                self._verifications.append(verification)
            case Decision() as decision:
                self._require_decided_for(item)
                self._decisions.append((item, decision))
            case Outcome(event=event) if (
                self._outcome is None and self._event and event.pid == self._event.pid
            ):
                self._require_own(item, event.execution)
                self._outcome = item.entry
            case Code(event=event):
                self._require_own(item, event.execution)
            case Refusal(execution=execution):
                self._require_own(item, execution)
            case Part() as part if self._artifact is None:
                self._parts.append(part)
            case ArtifactChange(envelope=str()) if self._artifact is None:
                self._artifact = item.entry
            case PostureEntry() if self._posture is None:
                self._posture = item.entry
            case _:
                self._stranger(item, "it says nothing about it")

    def chain(self) -> Chain:
        """The story, when it is whole.

        Raises:
            ProofError: EVIDENCE_MISMATCH.
        """
        decided, decision = self._deciding()
        named = decision.artifact_id if decision is not None else None
        of_it = [one for one in self._verifications if one.artifact_id == named]
        chain = Chain(
            subject=self._subject,
            decided=decided,
            event=self._event,
            intent=self._intents[-1] if self._intents else None,
            verification=of_it[-1] if of_it else None,
            decision=decision,
            artifact=self._artifact,
            posture=self._posture,
            outcome=self._outcome,
            envelope=self._envelope(),
        )
        if self._artifact is not None and self._artifact.artifact_id != named:
            raise mismatch("the artifact", "it is not the one that was decided by")
        if len(of_it) < len(self._verifications) and not self._held:
            raise mismatch("the verification", "it is of another artifact")
        if chain.ran and self._event is not None and self._event.enforced:
            self._require_grounds(chain, self._event)
        return chain

    def _envelope(self) -> str | None:
        if self._artifact is None or self._artifact.envelope is None:
            if self._parts:
                raise mismatch("the artifact", "there are parts of one that is not there")
            return None
        try:
            return envelope_of(self._artifact.envelope, self._parts)
        except RecordError as error:
            raise mismatch("the artifact", error.message) from error

    def _deciding(self) -> tuple[Recorded, Decision | None]:
        """The decision that let an exec run, or else the last one; the exec itself when there was none."""
        event = self._event
        allowing = [pair for pair in self._decisions if pair[1].verdict is Verdict.ALLOW]
        if event is None or not allowing:
            return self._decisions[-1] if self._decisions else (self._subject, None)
        item, decision = allowing[-1]
        # A listed child runs by what was decided for another process: the one that it descends from.
        armed = decision.request is not None and event.grant_kind is not GrantKind.CHILD
        if armed and decision.task != TaskIdentity(event.pid, event.start_ticks):
            raise mismatch(f"entry {item.seq}", "it was decided for another process")
        if not self._held and item.seq > self._subject.seq:
            raise mismatch(f"entry {item.seq}", "it was decided after the exec")
        return item, decision

    def _require_decided_for(self, item: Recorded) -> None:
        """What was asked, verified and decided is of one request, or of the exec's standing artifact."""
        request, event = _request_of(item), self._event
        kind = GrantKind.NONE if event is None else event.grant_kind
        stood = kind is GrantKind.STANDING or (kind is GrantKind.CHILD and request is None)
        if event is not None and stood:
            if request is not None or _artifact_id(item) != event.artifact_id:
                self._stranger(item, "it is about another artifact")
            return
        self._request = self._request or request
        if request is None or request != self._request:
            self._stranger(item, "it is of another request")

    def _require_grounds(self, chain: Chain, event: ExecEvent) -> None:
        """What an exec that ran cannot have been without."""
        decision, verification, artifact = chain.decision, chain.verification, chain.artifact
        for what, there in (
            ("decision that allows it", decision is not None and decision.verdict is Verdict.ALLOW),
            ("verification that passed", verification is not None and verification.passed),
            ("artifact", artifact is not None),
        ):
            if not there:
                raise mismatch(f"entry {self._subject.seq}", f"it ran, and the bundle has no {what}")
        if (
            artifact is not None
            and event.grant_kind is not GrantKind.NONE
            and event.artifact_id != artifact.artifact_id
        ):
            raise mismatch("the artifact", "the gate let it pass by another one")

    def _require_own(self, item: Recorded, execution: int) -> None:
        own = self._event is not None and execution == self._event.execution != 0
        if not own or item.seq < self._subject.seq:
            self._stranger(item, "it is of another execution")

    @staticmethod
    def _stranger(item: Recorded, problem: str) -> NoReturn:
        raise mismatch(f"entry {item.seq}", problem)


def mismatch(where: str, problem: str) -> ProofError:
    """The error for a bundle whose parts do not belong together; `where` names the part."""
    return ProofError(
        Reason.EVIDENCE_MISMATCH,
        f"the bundle does not hold together at {where}: {problem}",
        "Keep it as evidence, and have it exported again: egs proof export EXECUTION --out FILE",
    )


def _request_of(item: Recorded) -> str | None:
    return item.entry.request if isinstance(item.entry, Request | Verification | Decision) else None


def _artifact_id(item: Recorded) -> str | None:
    return item.entry.artifact_id if isinstance(item.entry, Verification | Decision) else None
