"""From a verification to the entries that record it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel import verify
from egs_kernel.audit.entries import Decision, Step, Verification
from egs_kernel.errors import EgsError
from egs_kernel.model import GrantKind, Reason, TaskIdentity, Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.daemon.host import Host
    from egs_kernel.model import HostFacts, Intent, Measurement
    from egs_kernel.trust.store import TrustStore


class Trial:
    """One artifact on trial: which steps of the verifier's plan it passed, and what stopped it.

    Attributes:
        artifact: set once it authenticated.
        intent: what was to be executed, once it was measured.
        named: what the scripts and libraries of the artifact were measured as.
        children: what the programs were measured as that it may start, if it lists them.
        authorization: set when it authorizes that.
        error: set when it does not.
    """

    def __init__(self, artifact: verify.Artifact | None = None) -> None:
        self.artifact = artifact
        self.intent: Intent | None = None
        self.named: tuple[Measurement, ...] = ()
        self.children: tuple[Measurement, ...] = ()
        self.authorization: verify.Authorization | None = None
        self.error: EgsError | None = None
        self._reached: list[verify.Step] = []
        self._permitted = ""

    def authenticate(self, content: bytes, trust: TrustStore, now: datetime) -> None:
        """Steps 1 to 4 of the verifier."""
        try:
            self.artifact = verify.authenticate(content, trust, now, reached=self._reached.append)
        except EgsError as error:
            self.error = error

    def authorize(self, intent: Intent, facts: HostFacts, now: datetime, permit: verify.Permit) -> None:
        """Steps 5 to 15, when the others were passed. `permit` asks policy."""
        if self.artifact is None:
            return
        self.intent = intent
        self._reached = [step for step in self._reached if step <= verify.Step.KEYS]

        def ask(artifact: verify.Artifact, asked: Intent) -> str:
            self._permitted = permit(artifact, asked)
            return self._permitted

        try:
            self.authorization = verify.authorize(
                self.artifact, intent, facts, now, reached=self._reached.append, permit=ask
            )
        except EgsError as error:
            self.error = error

    @property
    def progress(self) -> int:
        """How many steps began: of several refused artifacts, the one that came furthest was meant."""
        return len(self._reached)

    @property
    def reason(self) -> Reason:
        """Why."""
        return Reason.AUTHORIZED if self.error is None else self.error.reason

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps as the record has them."""
        said = {verify.Step.POLICY: self._permitted}
        steps = [Step(step.name.lower(), passed=True, detail=said.get(step, "")) for step in self._reached]
        if self.error is not None and steps:
            steps[-1] = Step(steps[-1].name, passed=False, detail=self.error.message)
        return tuple(steps)

    @property
    def artifact_id(self) -> str | None:
        """The artifact's id, when it has a valid one."""
        return None if self.artifact is None else self.artifact.id

    @property
    def scope(self) -> str:
        """The scope that it is for, when it is known."""
        return "" if self.artifact is None else self.artifact.statement.predicate.scope.name

    def verification(self, request: str | None = None) -> Verification:
        """The entry with every step."""
        return Verification(
            request=request,
            artifact_id=self.artifact_id,
            passed=self.error is None,
            reason=self.reason,
            steps=self.steps,
            signers=() if self.artifact is None else self.artifact.signers,
        )

    def decision(
        self,
        host: Host,
        kind: GrantKind,
        *,
        request: str | None = None,
        task: TaskIdentity | None = None,
        intent: Intent | None = None,
    ) -> Decision:
        """The entry with the verdict. An armed launch spends its use here, before it is armed."""
        allowed = self.error is None
        return Decision(
            verdict=Verdict.ALLOW if allowed else Verdict.DENY,
            reason=self.reason,
            scope=self.scope,
            policy_digest=host.settings.policy_digest,
            posture=host.posture_digest,
            request=request,
            artifact_id=self.artifact_id,
            grant_kind=kind if allowed else GrantKind.NONE,
            task=task,
            intent=intent,
            detail="" if self.error is None else self.error.message,
            use_until=self._use_until() if allowed and kind is GrantKind.ARMED else None,
        )

    def _use_until(self) -> str | None:
        return None if self.artifact is None else use_until(self.artifact)


def use_until(artifact: verify.Artifact) -> str | None:
    """Until when a use of this artifact counts; None when its uses are not limited."""
    predicate = artifact.statement.predicate
    return None if predicate.uses is None else predicate.not_after
