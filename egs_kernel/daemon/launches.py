"""A launch: from the launcher's request to its exec.

The launcher is not trusted. Who asks, in which folder and with which environment, is read from the kernel; what
it installed on itself is read back; and the gate compares the rest at the exec. A use is spent in the record
before anything is armed, and stays spent when the exec does not come about: handing it back would need proof
that it never will.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from egs_kernel import verify
from egs_kernel.audit.entries import Decision, Entry, Peer, Request
from egs_kernel.constraints.attest import attest, seccomp_count
from egs_kernel.constraints.seccomp import compile_filter
from egs_kernel.daemon import protocol
from egs_kernel.daemon.host import cgroup_number, now
from egs_kernel.daemon.intents import (
    declared_intent,
    interpreted_intent,
    measured_intent,
    recorded_intent,
)
from egs_kernel.daemon.scoping import announce, enter_cgroup, target_cgroup
from egs_kernel.daemon.server import wait_readable
from egs_kernel.daemon.verdicts import Trial
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import GrantKind, Intent, ProgramKind, Reason, Tier, Verdict

if TYPE_CHECKING:
    from egs_kernel.config import Config
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host, Settings
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.judging import Judge
    from egs_kernel.daemon.programs import Program
    from egs_kernel.daemon.server import Connection
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import ExecEvent, TaskIdentity

EXEC_SECONDS: Final = 5.0
"""How long an armed launcher may take to execute."""


@dataclass(frozen=True)
class _Decided:
    """A launch that is authorized and in the record, and spent its use; nothing is armed yet."""

    id: str
    task: TaskIdentity
    program: Program
    intent: Intent
    trial: Trial
    artifact: verify.Artifact
    authorization: verify.Authorization
    settings: Settings
    filter: bytes | None
    entered: asyncio.Task[None]


class Launches:
    """Serves launch requests. Everything here belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        gate: Gate,
        host: Host,
        journal: Journal,
        judge: Judge,
        events: Events,
    ) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._judge = judge
        self._events = events
        self._armed: dict[asyncio.Task[ExecEvent | None], tuple[str, asyncio.Future[str]]] = {}

    async def serve(self, connection: Connection, request: protocol.LaunchRequest) -> None:
        """Decide, attest, arm, and let the launcher go.

        Raises:
            EgsError: it is refused; that is in the record by then.
        """
        descriptor = connection.take_descriptor()
        if descriptor is None:
            raise protocol.protocol_error("a launch comes with a descriptor of the program")
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, announce, self._host.settings.config)
        try:
            decided = await self._decide(connection, request, descriptor)
        finally:
            os.close(descriptor)
        try:
            filters = await self._constrain(connection, decided)
            await decided.entered
            watcher = await self._arm(connection, decided, filters)
        except EgsError as error:
            await asyncio.gather(decided.entered, return_exceptions=True)
            await self._record_end(decided, error)
            raise
        if self._gate.tier is Tier.LSM:
            await self._tell_refusal(watcher)

    async def take_back(self, why: str, artifact_id: str | None = None) -> None:
        """Disarm what was not used yet: of one artifact, or all. Returns when that is in the record."""
        chosen = [
            (watcher, stop)
            for watcher, (armed_by, stop) in self._armed.items()
            if artifact_id in (None, armed_by)
        ]
        for _, stop in chosen:
            if not stop.done():
                stop.set_result(why)
        await asyncio.gather(*(watcher for watcher, _ in chosen), return_exceptions=True)

    # -- the decision ----------------------------------------------------------------------------

    async def _decide(
        self, connection: Connection, request: protocol.LaunchRequest, descriptor: int
    ) -> _Decided:
        """Judge, and record request and decision in one append before anybody learns of it."""
        peer = connection.peer
        number = os.urandom(8).hex()
        settings = self._host.settings
        intent = declared_intent(peer, request)
        trial, program, code = Trial(), None, None
        try:
            program = await self._judge.measure(descriptor, peer.uid)
            if program.kind is ProgramKind.SCRIPT:
                program, words = await self._judge.measure_interpreter(descriptor, peer.uid)
                intent = interpreted_intent(intent, words)
            intent = measured_intent(intent, program)
            trial = await self._judge.judge(request.artifact, intent)
            if trial.authorization is not None:
                self._require_free(peer.task, trial.authorization.scope)
                code = _compiled(trial.authorization)
        except EgsError as error:
            trial.error = error
        # No waiting between the verdict and here: what is spent is counted by handing in the entries.
        said = recorded_intent(intent, trial.artifact)
        entries: list[Entry] = [
            Request(
                request=number,
                scope=trial.scope,
                intent=said,
                peer=Peer(peer.task.pid, peer.uid, peer.gid),
                artifact_id=trial.artifact_id,
            ),
            trial.verification(number),
            trial.decision(self._host, GrantKind.ARMED, request=number, task=peer.task),
        ]
        durable = self._journal.submit(entries)
        if (
            trial.error is not None
            or trial.artifact is None
            or trial.authorization is None
            or program is None
        ):
            await asyncio.shield(durable)
            raise trial.error or Refused(Reason.NO_GRANT, "nothing was authorized")
        entered = asyncio.get_running_loop().create_task(
            self._enter(peer.task, settings.config, trial.authorization)
        )
        try:
            await asyncio.shield(durable)
        except BaseException:
            entered.cancel()
            raise
        return _Decided(
            number,
            peer.task,
            program,
            intent,
            trial,
            trial.artifact,
            trial.authorization,
            settings,
            code,
            entered,
        )

    async def _enter(self, task: TaskIdentity, config: Config, authorization: verify.Authorization) -> None:
        """Put the launcher under the scope, and into its cgroup, if it has one."""
        bound = authorization.cgroup
        cgroup = target_cgroup(config, authorization.scope, bound)
        self._gate.govern(task, authorization.scope)  # first: a process of another scope must not be moved
        if cgroup is not None:
            enter = partial(enter_cgroup, task, cgroup, exactly=bound is not None)
            await asyncio.get_running_loop().run_in_executor(None, enter)

    def _require_free(self, task: TaskIdentity, scope: str) -> None:
        """A process of another scope cannot be launched into this one; asked before a use is spent."""
        present = self._gate.scope_of(task.pid)
        if present not in (None, scope):
            raise Refused(
                Reason.SCOPE_MISMATCH,
                f"the launcher is governed by scope {present}, the artifact is for scope {scope}",
                f"Start it outside of scope {present}, or use an artifact for that scope.",
            )

    # -- constraints -----------------------------------------------------------------------------

    async def _constrain(self, connection: Connection, decided: _Decided) -> int | None:
        """Have the launcher install the filter, and read it back; how many filters it has then."""
        if decided.filter is None:
            return None
        pid = decided.task.pid
        expected = seccomp_count(pid) + 1
        await connection.send(protocol.InstallFilter(filter=decided.filter))
        if not isinstance(await connection.receive(), protocol.ReadyRequest):
            raise protocol.protocol_error("after a filter the launcher says ready, and nothing else")
        loop = asyncio.get_running_loop()
        attested = await loop.run_in_executor(None, attest, pid, decided.filter, expected)
        if attested != decided.task or not connection.peer.alive():
            raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone, and another process bears its pid")
        return expected

    # -- arming ----------------------------------------------------------------------------------

    async def _arm(
        self, connection: Connection, decided: _Decided, filters: int | None
    ) -> asyncio.Task[ExecEvent | None]:
        """Arm it and let it go; the task is done when its exec is decided, or will not come."""
        self._require_still(decided)
        task = decided.task
        grant = decided.authorization.grant(
            decided.program.measurement,
            decided.trial.named,
            boot_offset=self._host.clock_offset,
            cgroup_id=cgroup_number(decided.authorization.cgroup),
            seccomp_filters=filters,
        )
        if not connection.peer.alive():
            raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone")
        executed = self._events.expect(task.pid, task.start_ticks)
        self._gate.arm(grant, task)
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[str] = loop.create_future()
        watcher = loop.create_task(self._watch(decided, executed, stop, os.dup(connection.peer.pidfd)))
        self._armed[watcher] = decided.artifact.id, stop
        watcher.add_done_callback(self._armed.pop)
        await connection.send(protocol.Go())
        return watcher

    async def _tell_refusal(self, watcher: asyncio.Task[ExecEvent | None]) -> None:
        """Say why to a launcher whose exec fails; one that executed something else by then does not listen.

        Raises:
            Refused: for that reason.
        """
        event = await asyncio.shield(watcher)
        if event is not None and event.verdict is Verdict.DENY:
            raise Refused(
                event.reason,
                "the gate refused the exec",
                f"Look at what it was: egs audit query --type exec --pid {event.pid}",
            )

    def _require_still(self, decided: _Decided) -> None:
        """What was decided before the waiting must hold after it."""
        if decided.settings is not self._host.settings:
            raise Refused(
                Reason.POLICY_MISMATCH,
                "configuration, trust or policy were read again meanwhile",
                "Try again.",
            )
        uses = self._journal.uses()
        if decided.authorization.uses_left is not None:
            uses[decided.artifact.id] -= 1  # its own, which is counted already
        facts = self._host.facts(decided.artifact, uses=uses, revoked=self._journal.revoked())
        intent = decided.trial.intent or decided.intent
        verify.authorize(decided.artifact, intent, facts, now())

    async def _watch(
        self,
        decided: _Decided,
        executed: asyncio.Future[ExecEvent],
        stop: asyncio.Future[str],
        pidfd: int,
    ) -> ExecEvent | None:
        """Wait until the gate has decided the exec; take the grant back when it does not come, or was refused."""
        task = decided.task
        gone = asyncio.ensure_future(wait_readable(pidfd))
        waited: set[asyncio.Future[Any]] = {executed, gone, stop}
        await asyncio.wait(waited, timeout=EXEC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        why = f"it did not execute within {EXEC_SECONDS:g} seconds"
        if stop.done():
            why = stop.result()
        elif gone.done():
            why = "it ended before its exec"
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        os.close(pidfd)
        if not executed.done():
            self._gate.disarm(task.pid)
            self._events.drain()  # the exec may have been faster than the disarming: then it is in here
        self._events.forget(task.pid, task.start_ticks)
        if executed.done():
            event = executed.result()
            if event.verdict is Verdict.DENY:  # by what it would execute first: a script
                self._gate.disarm(task.pid)
            return event
        await self._record_end(decided, Refused(Reason.LAUNCHER_LOST, f"the launcher was lost: {why}"))
        return None

    async def _record_end(self, decided: _Decided, error: EgsError) -> None:
        """An authorized launch did not come about."""
        decision = Decision(
            verdict=Verdict.DENY,
            reason=error.reason,
            scope=decided.authorization.scope,
            policy_digest=self._host.settings.policy_digest,
            posture=self._host.posture_digest,
            request=decided.id,
            artifact_id=decided.artifact.id,
            task=decided.task,
            detail=error.message,
        )
        await asyncio.shield(self._journal.submit([decision], essential=True))


def _compiled(authorization: verify.Authorization) -> bytes | None:
    constraints = authorization.constraints
    return (
        None if constraints is None or constraints.syscalls is None else compile_filter(constraints.syscalls)
    )
