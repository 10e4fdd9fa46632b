"""Which artifact authorizes what somebody wants to execute now: a launch, or an exec that is held."""

from __future__ import annotations

import asyncio
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import ArtifactChange
from egs_kernel.daemon.host import now
from egs_kernel.daemon.permits import permit
from egs_kernel.daemon.programs import digests_of
from egs_kernel.daemon.verdicts import Trial
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel import verify
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.programs import Program, Surveyor
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.model import Intent

_RECORDED: Final = 4096
"""Ids of artifacts that are remembered as recorded; recording one twice does no harm."""


class Judge:
    """Measures programs, and puts artifacts on trial. Belongs to the event loop's thread.

    Args:
        host: what the verifier is told.
        journal: which uses are spent.
        surveyor: measures programs.
        standing: the artifacts of the daemon's folder.
        drain: takes in what the gate has to say, so that uses are counted.
    """

    def __init__(
        self,
        *,
        host: Host,
        journal: Journal,
        surveyor: Surveyor,
        standing: Standing,
        drain: Callable[[], None],
    ) -> None:
        self._host = host
        self._journal = journal
        self._surveyor = surveyor
        self._standing = standing
        self._drain = drain
        self._recorded: set[str] = set()
        self.presented: Callable[[verify.Artifact], None] = lambda _artifact: None
        self._turns: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()

    async def measure(self, descriptor: int, uid: int) -> Program:
        """Measure a program. One at a time for a user: who has large files hashed keeps nobody waiting but themselves."""
        turn = self._turns.setdefault(uid, asyncio.Lock())
        async with turn:
            return await self._surveyor.program_of(descriptor)

    async def measure_interpreter(self, descriptor: int, uid: int) -> tuple[Program, tuple[str, ...]]:
        """As `measure`, of what the kernel executes for a script, and what it puts before the script's name."""
        turn = self._turns.setdefault(uid, asyncio.Lock())
        async with turn:
            return await self._surveyor.interpreter_of(descriptor)

    async def judge(
        self, content: bytes | None, intent: Intent, require: Callable[[Trial], None] = lambda _trial: None
    ) -> Trial:
        """The trial of this artifact, or of the best one in the folder.

        `require` raises EgsError for what the verifier authorizes and the caller cannot use.

        No waiting lies between its verdict and its return: whoever hands in the decision at once spends a use that
        nobody else has.
        """
        if content is not None:
            trial = Trial()
            trial.authenticate(content, self._host.settings.trust, now())
            if trial.artifact_id is not None:
                self._record(trial.artifact_id, content)
            await self._try(trial, intent, require)
            if trial.error is None and trial.artifact is not None:
                self.presented(trial.artifact)
            return trial
        best = Trial()
        best.error = Refused(
            Reason.NO_GRANT,
            f"no artifact in the daemon's folder is for {intent.program} as it is now",
            "Name one (egs run --artifact FILE), or add one: egs artifacts add FILE",
        )
        for artifact in self._standing.artifacts(intent.digest):
            trial = Trial(artifact)
            await self._try(trial, intent, require)
            if trial.error is None:
                return trial
            if trial.progress > best.progress:
                best = trial
        return best

    def _record(self, artifact_id: str, content: bytes) -> None:
        """Who verifies a decision later needs the artifact that it was made by: it is recorded when it first comes."""
        if artifact_id in self._recorded:
            return
        change = ArtifactChange(action="presented", artifact_id=artifact_id, envelope=content.decode())
        durable = self._journal.submit([change])
        durable.add_done_callback(partial(self._note_recorded, artifact_id))

    def _note_recorded(self, artifact_id: str, durable: asyncio.Future[None]) -> None:
        if durable.cancelled() or durable.exception() is not None:
            return  # so was everything that was decided by it: next time
        if len(self._recorded) >= _RECORDED:
            self._recorded.clear()
        self._recorded.add(artifact_id)

    async def _try(self, trial: Trial, intent: Intent, require: Callable[[Trial], None]) -> None:
        artifact = trial.artifact
        if artifact is None:
            return
        measured = await self._surveyor.subjects_of(artifact.statement)
        trial.named = tuple(measured.values())
        try:
            trial.children = await self._surveyor.children_of(artifact.statement)
        except EgsError as error:
            trial.error = error
            return
        intent = msgspec.structs.replace(intent, measured=digests_of(measured))
        self._authorize(trial, artifact, intent)
        if trial.error is None:
            try:
                require(trial)
            except EgsError as error:
                trial.error = error
        if trial.error is None and artifact.statement.predicate.uses is not None:
            # Its standing grant counts for itself. It must not do so while we spend what it may have left.
            self._standing.withdraw(artifact.id)
            self._drain()
            self._authorize(trial, artifact, intent)

    def _authorize(self, trial: Trial, artifact: verify.Artifact, intent: Intent) -> None:
        facts = self._host.facts(artifact, uses=self._journal.uses())
        trial.authorize(intent, facts, now(), partial(permit, self._host))
