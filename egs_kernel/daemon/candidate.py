"""One file of the folder of standing artifacts, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import SubjectRole
from egs_kernel.audit.entries import ArtifactChange
from egs_kernel.daemon.protocol import ArtifactStatus
from egs_kernel.daemon.watch import watch_files
from egs_kernel.model import GrantKind, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from egs_kernel import verify
    from egs_kernel.audit.entries import Entry
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.verdicts import Trial
    from egs_kernel.daemon.watch import Listener, Watcher
    from egs_kernel.model import Measurement

_STATES = {Reason.LAUNCH_REQUIRED: "launch", Reason.REVOKED: "revoked"}


@dataclass(eq=False)
class Candidate:
    """A file of the folder. `grant_id` is what it has in the gate, `program` its program as measured, `origin` where it came from.

    `generation` counts what may have changed the outcome since: an examination that finds it changed starts over.
    """

    file: str
    content: bytes
    trial: Trial
    generation: int = 0
    program: Measurement | None = None
    grant_id: int | None = None
    watches: list[tuple[int, Listener]] = field(default_factory=list)
    origin: str = ""
    _recorded: tuple[object, ...] = ()

    @property
    def artifact(self) -> verify.Artifact | None:
        """The artifact, when the file holds one that authenticates."""
        return self.trial.artifact

    @property
    def state(self) -> str:
        """standing, waiting (for its examination), launch (needs `egs run`), revoked or refused."""
        if self.grant_id is not None:
            return "standing"
        return "waiting" if self.trial.error is None else _STATES.get(self.trial.reason, "refused")

    def status(self, uses: Mapping[str, int]) -> ArtifactStatus:
        """For those who ask. `uses`: spent, by artifact id."""
        error = self.trial.error
        reason, message = ("", "") if error is None else (error.reason.code, error.message)
        if self.artifact is None:
            return ArtifactStatus(
                file=self.file, id="", scope="", program="", state=self.state, reason=reason, message=message
            )
        predicate = self.artifact.statement.predicate
        return ArtifactStatus(
            file=self.file,
            id=self.artifact.id,
            scope=predicate.scope.name,
            program=self.artifact.statement.program.name,
            state=self.state,
            reason=reason,
            message=message,
            not_before=predicate.not_before,
            not_after=predicate.not_after,
            uses=uses.get(self.artifact.id, 0),
            max_uses=predicate.uses,
        )

    def watch(self, watcher: Watcher, touched: Callable[[], None]) -> None:
        """Watch the program, scripts and libraries that the artifact names, instead of what was watched before."""
        if self.artifact is None:
            return
        subjects = self.artifact.statement.subject
        paths = [Path(subject.name) for subject in subjects if subject.role is not SubjectRole.CHILD]
        fresh = watch_files(watcher, paths, touched)
        self.unwatch(watcher)
        self.watches = fresh

    def unwatch(self, watcher: Watcher) -> None:
        """Watch nothing any more."""
        for watch, listener in self.watches:
            watcher.remove(watch, listener)
        self.watches = []

    def news(self, source: str, host: Host) -> list[Entry]:
        """The entries that record this examination; none when the last one came to the same."""
        trial = self.trial
        digest = trial.intent.digest if trial.intent is not None else ""
        identity = None if self.program is None else self.program.identity
        outcome = (trial.artifact_id, trial.reason, digest, identity, host.posture_digest)
        if outcome == self._recorded:
            return []
        known = self._recorded[:1] == (trial.artifact_id,)
        self._recorded = outcome
        entries: list[Entry] = []
        if trial.artifact_id is not None and not known:
            envelope = self.content.decode()
            entries.append(
                ArtifactChange(
                    action="added",
                    artifact_id=trial.artifact_id,
                    source=source,
                    detail=self.origin,
                    envelope=envelope,
                )
            )
        entries.append(trial.verification())
        entries.append(trial.decision(host, GrantKind.STANDING, intent=trial.intent))
        return entries
