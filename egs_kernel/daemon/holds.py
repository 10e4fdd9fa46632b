"""Execs that are held: an artifact lets each of them go, or a person, or its time limit ends it.

An approval is an artifact, verified like any other against exactly what is held; there is no other way to let one go. It
comes from the daemon's folder, where one may appear while the exec waits, or with `approve`, from a person or a program
that has one. While no daemon runs, what is held stays stopped; the next daemon finds it in the gate's table.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel import verify
from egs_kernel.audit.entries import Decision, Exec, Request
from egs_kernel.daemon import protocol
from egs_kernel.daemon.held import Hold, gone, held_intent, require_conditions, require_no_launch
from egs_kernel.daemon.host import cgroup_number, now
from egs_kernel.daemon.intents import measured_intent, recorded_intent
from egs_kernel.errors import EgsError, Refused, UsageError
from egs_kernel.model import GrantKind, Reason, TaskIdentity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.entries import Entry, EntryType, Peer
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host, Settings
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.judging import Judge
    from egs_kernel.daemon.verdicts import Trial
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import ExecEvent, ExitEvent, Grant, Intent

_AT_ONCE: Final = 16
"""How many are looked at at once; the others wait, stopped as they are."""
_PAGE: Final = protocol.MAX_FRAME // 2
"""Bytes of a list after which another answer begins. A single one, with 128 KiB of arguments, fits into what is left."""


class Holds:
    """What the gate holds, and what becomes of it. Everything here belongs to the event loop's thread."""

    def __init__(self, *, gate: Gate, host: Host, journal: Journal, judge: Judge, events: Events) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._judge = judge
        self._events = events
        self._held: dict[int, Hold] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    # -- what comes and goes ---------------------------------------------------------------------

    def recall(self, entries: Iterable[EntryType]) -> None:
        """After a restart: take up what the gate holds, by what the record says of it; kill what it says nothing of."""
        events = [entry.event for entry in entries if isinstance(entry, Exec)]
        known = {event.execution: event for event in events if event.verdict is Verdict.HOLD}
        for task in self._gate.holds.held():
            if task.execution in self._held:
                continue
            event = known.get(task.execution)
            if event is not None:
                self.take(event)
            else:
                self._gate.holds.end(task.pid, task.execution)
                self._record_end(
                    str(task.execution),
                    None,
                    self._gate.scope_of(task.pid) or "",
                    Refused(Reason.HOLD_LOST, f"the record does not say what process {task.pid} executed"),
                )

    def take(self, event: ExecEvent) -> None:
        """The gate holds one more."""
        hold = Hold(event, event.time + self._seconds(event.scope) * 1_000_000_000)
        self._held[event.execution] = hold
        self._wait(hold)
        self._look(hold)

    def ended(self, event: ExitEvent) -> None:
        """A process ended that may have been held."""
        hold = self._held.get(event.execution)
        if hold is not None:
            self._close(hold)
            why = f"the held process ended by itself (wait status {event.status}): it was killed, or let go by somebody else"
            self._record_end(hold.id, hold.task, hold.event.scope, Refused(Reason.HOLD_LOST, why))

    def look_for(self, artifact: verify.Artifact) -> None:
        """An artifact came into the folder, or stands differently than before: somebody may have waited for it."""
        digest = artifact.statement.program.digest.sha256
        for hold in self._held.values():
            if hold.intent is None or hold.intent.digest == digest:
                self._look(hold)

    async def close(self) -> None:
        """Look no further; what is held stays stopped."""
        looking = [hold.looking for hold in self._held.values() if hold.looking is not None]
        for hold in self._held.values():
            self._forget_timers(hold)
        await asyncio.gather(*looking, return_exceptions=True)

    def _seconds(self, scope: str) -> int:
        """How long an exec in this scope waits; not at all when the scope is gone."""
        scopes = self._host.settings.config.scopes
        return next((known.hold_seconds for known in scopes if known.name == scope), 0)

    # -- what people ask -------------------------------------------------------------------------

    def page(self, after: str = "") -> protocol.HoldsAnswer:
        """What is held, the oldest first, as much as fits into one answer."""
        start = int(after) if after.isdecimal() else 0
        waiting = sorted(execution for execution in self._held if execution > start)
        found: list[protocol.HoldStatus] = []
        size = 0
        for execution in waiting:
            if size > _PAGE:
                break
            status = self._held[execution].status(self._host.clock_offset)
            size += len(msgspec.json.encode(status))
            found.append(status)
        return protocol.HoldsAnswer(holds=tuple(found), more=len(found) < len(waiting))

    async def approve(self, hold_id: str, artifact: bytes, peer: Peer) -> protocol.Done:
        """Let it go by this artifact. This is also where an authority's answer belongs.

        Raises:
            EgsError: the artifact does not authorize what is held; that is in the record, and it stays held.
        """
        hold = self._find(hold_id)
        artifact_id = await self._consider(hold, artifact, peer)
        return protocol.Done(message=f"authorizes process {hold.event.pid}, which runs", id=artifact_id)

    async def deny(self, hold_id: str, why: str, peer: Peer) -> protocol.Done:
        """Kill it.

        Raises:
            UsageError: nothing with this id is held.
            RecordError: it is killed, but that could not be recorded.
        """
        hold = self._find(hold_id)
        said = f"user {peer.uid} (process {peer.pid})" + (f": {why}" if why else "")
        await self._end(hold, Refused(Reason.HOLD_DENIED, f"denied by {said}"))
        return protocol.Done(message=f"process {hold.event.pid} is killed", id="")

    def _find(self, hold_id: str) -> Hold:
        hold = self._held.get(int(hold_id)) if hold_id.isdecimal() else None
        if hold is None:
            raise UsageError(Reason.NOT_FOUND, f"nothing with the id {hold_id!r} is held", "Run: egs holds")
        return hold

    # -- looking for an authorization ------------------------------------------------------------

    def _look(self, hold: Hold) -> None:
        """Look whether an artifact of the folder authorizes it, soon, and once more if that is under way."""
        hold.look_again = True
        if hold.looking is None:
            hold.looking = asyncio.get_running_loop().create_task(self._look_until_done(hold))

    async def _look_until_done(self, hold: Hold) -> None:
        while hold.look_again and self._is_held(hold):
            hold.look_again = False
            async with self._room:
                try:
                    await self._consider(hold)
                except EgsError as error:
                    hold.problem = error
        hold.looking = None

    async def _consider(self, hold: Hold, content: bytes | None = None, peer: Peer | None = None) -> str:
        """Put somebody's artifact, or those of the folder, on trial; let it go if one authorizes it; that one's id."""
        async with hold.turn:
            settings = self._host.settings
            intent = await self._intent(hold)
            trial = await self._judge.judge(content, intent, partial(self._require_usable, hold))
            # No waiting between the verdict and here: what is spent is counted by handing in the entries.
            if trial.error is None or peer is not None:
                await self._journal.append(*self._entries(hold, intent, trial, peer))
            if trial.error is not None or trial.artifact is None or trial.authorization is None:
                raise trial.error or Refused(Reason.NO_GRANT, "nothing was authorized")
            try:
                self._require_still(hold, trial, trial.artifact, settings)
                self._let_go(hold, self._grant(hold, trial))
            except EgsError as error:
                self._record_end(hold.id, hold.task, hold.event.scope, error, trial.artifact.id)
                raise
            return trial.artifact.id

    def _entries(self, hold: Hold, intent: Intent, trial: Trial, peer: Peer | None) -> list[Entry]:
        """The entries of one trial: who asked, when somebody did, and what came of it."""
        asked: list[Entry] = []
        if peer is not None:
            said = recorded_intent(intent, trial.artifact)
            scope = hold.event.scope
            asked.append(
                Request(request=hold.id, scope=scope, intent=said, peer=peer, artifact_id=trial.artifact_id)
            )
        return [
            *asked,
            trial.verification(hold.id),
            trial.decision(self._host, GrantKind.ARMED, request=hold.id, task=hold.task),
        ]

    async def _intent(self, hold: Hold) -> Intent:
        """What is held, measured now. The first time it is recorded as a request."""
        descriptor = self._open_program(hold)
        try:
            program = await self._judge.measure(descriptor, hold.event.uid)
        finally:
            os.close(descriptor)
        if program.measurement.identity != hold.event.file:
            raise _changed(hold)
        hold.program = program.measurement
        intent = measured_intent(await asyncio.to_thread(held_intent, hold.event), program)
        self._require_held(hold)  # what was read of the process was of this one
        if hold.intent is None:
            said = recorded_intent(intent, None)
            self._journal.submit([Request(request=hold.id, scope=hold.event.scope, intent=said)])
        hold.intent = msgspec.structs.replace(intent, environment=None)
        return intent

    def _grant(self, hold: Hold, trial: Trial) -> Grant:
        """What the gate would have needed to let it pass."""
        if hold.program is None or trial.authorization is None:
            raise Refused(Reason.NO_GRANT, "nothing was authorized")
        return trial.authorization.grant(
            hold.program,
            trial.named,
            trial.children,
            boot_offset=self._host.clock_offset,
            cgroup_id=cgroup_number(trial.authorization.cgroup),
            seccomp_filters=None,
        )

    def _require_usable(self, hold: Hold, trial: Trial) -> None:
        """What the verifier authorizes must be what the gate would have let pass, and still be what is held."""
        if trial.authorization is not None:
            require_no_launch(trial.authorization.constraints)
            require_conditions(self._grant(hold, trial), hold.event)
        self._require_unchanged(hold)

    def _require_still(self, hold: Hold, trial: Trial, artifact: verify.Artifact, settings: Settings) -> None:
        """What was decided before the waiting must hold after it."""
        if settings is not self._host.settings:
            raise Refused(
                Reason.POLICY_MISMATCH,
                "configuration, trust or policy were read again meanwhile",
                "Try again.",
            )
        uses = self._journal.uses()
        if artifact.statement.predicate.uses is not None:
            uses[artifact.id] -= 1  # its own, which is counted already
        if trial.intent is not None:
            facts = self._host.facts(artifact, uses=uses)
            verify.authorize(artifact, trial.intent, facts, now())
        self._require_unchanged(hold)

    def _require_unchanged(self, hold: Hold) -> None:
        descriptor = self._open_program(hold)
        try:
            identity = self._gate.identify(descriptor)
        finally:
            os.close(descriptor)
        self._require_held(hold)
        if identity != hold.event.file:
            raise _changed(hold)

    def _open_program(self, hold: Hold) -> int:
        try:
            return os.open(f"/proc/{hold.event.pid}/exe", os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise gone(hold.event) from error

    def _require_held(self, hold: Hold) -> None:
        if not self._is_held(hold) or not self._gate.holds.is_held(hold.event.pid, hold.event.execution):
            raise gone(hold.event)

    def _is_held(self, hold: Hold) -> bool:
        return self._held.get(hold.event.execution) is hold

    # -- the ends --------------------------------------------------------------------------------

    def _let_go(self, hold: Hold, grant: Grant) -> None:
        event = hold.event
        self._gate.name(grant)
        if not self._gate.holds.let_go(event.pid, event.execution, grant):
            raise gone(event)
        self._close(hold)
        self._events.executions.authorized(event.execution, grant.artifact_id)

    def _end(self, hold: Hold, error: EgsError) -> asyncio.Future[None]:
        """Kill it; the future is done when that is in the record."""
        self._close(hold)
        self._gate.holds.end(hold.event.pid, hold.event.execution)
        return self._record_end(hold.id, hold.task, hold.event.scope, error, verdict=Verdict.KILL)

    def _wait(self, hold: Hold) -> None:
        left = (hold.until - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
        hold.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._expire, hold)

    def _expire(self, hold: Hold) -> None:
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) < hold.until:
            self._wait(hold)  # the loop's clock is another one
            return
        problem = f" The last look: {hold.problem.message}" if hold.problem is not None else ""
        seconds = (hold.until - hold.event.time) / 1e9
        self._end(
            hold, Refused(Reason.HOLD_EXPIRED, f"nobody authorized it within {seconds:g} seconds.{problem}")
        )

    def _close(self, hold: Hold) -> None:
        del self._held[hold.event.execution]
        if hold.timer is not None:
            hold.timer.cancel()

    @staticmethod
    def _forget_timers(hold: Hold) -> None:
        if hold.timer is not None:
            hold.timer.cancel()
        if hold.looking is not None:
            hold.looking.cancel()

    def _record_end(  # noqa: PLR0913, PLR0917 - the fields of one entry
        self,
        request: str,
        task: TaskIdentity | None,
        scope: str,
        error: EgsError,
        artifact_id: str | None = None,
        verdict: Verdict = Verdict.DENY,
    ) -> asyncio.Future[None]:
        decision = Decision(
            verdict=verdict,
            reason=error.reason,
            scope=scope,
            policy_digest=self._host.settings.policy_digest,
            posture=self._host.posture_digest,
            request=request,
            artifact_id=artifact_id,
            task=task,
            detail=error.message,
        )
        return self._journal.submit([decision], essential=True)


def _changed(hold: Hold) -> Refused:
    return Refused(
        Reason.FILE_CHANGED,
        f"the program of process {hold.event.pid} was changed or touched since its exec",
        "Deny it (egs holds deny), and have it started again.",
    )
