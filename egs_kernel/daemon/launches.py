"""A launch: from the launcher's request to its exec.

The launcher is not trusted. Who asks, in which folder and with which environment, is read from the kernel; what
it installed on itself is read back; and the gate compares the rest at the exec. A use is spent in the record
before anything is armed, and stays spent when the exec does not come about: handing it back would need proof
that it never will.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.audit.entries import Entry, Peer, Request
from egs_kernel.constraints.attest import Plan
from egs_kernel.constraints.confinement import Confinement
from egs_kernel.constraints.escort import Escort
from egs_kernel.constraints.plan import plan as plan_of
from egs_kernel.daemon import protocol
from egs_kernel.daemon.arming import Arming
from egs_kernel.daemon.decided import Decided
from egs_kernel.daemon.host import now
from egs_kernel.daemon.intents import (
    declared_intent,
    interpreted_intent,
    measured_intent,
    recorded_intent,
)
from egs_kernel.daemon.scoping import Moves, target_cgroup
from egs_kernel.daemon.trees import growing
from egs_kernel.daemon.verdicts import Trial
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import GrantKind, ProgramKind, Reason, Tier, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel import verify
    from egs_kernel.config import Config
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.judging import Judge
    from egs_kernel.daemon.programs import Program
    from egs_kernel.daemon.server import Connection
    from egs_kernel.daemon.trees import Growing, Tree, Trees
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import ExecEvent, TaskIdentity
    from egs_kernel.peers import Peer as Connected


_log = logging.getLogger(__name__)


class Launches:
    """Serves launch requests. Everything here belongs to the event loop's thread."""

    def __init__(  # noqa: PLR0913 - what it is made of, by name
        self,
        *,
        gate: Gate,
        host: Host,
        journal: Journal,
        judge: Judge,
        events: Events,
        trees: Trees,
    ) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._judge = judge
        self._trees = trees
        self._moves = Moves()
        self._arming = Arming(gate=gate, host=host, journal=journal, events=events, trees=trees)

    async def serve(self, connection: Connection, request: protocol.LaunchRequest) -> None:
        """Decide, attest, arm, and let the launcher go.

        Raises:
            EgsError: it is refused; that is in the record by then.
        """
        descriptor = connection.take_descriptor()
        if descriptor is None:
            raise protocol.protocol_error("a launch comes with a descriptor of the program")
        self._moves.announce(self._host.settings.config)
        try:
            decided = await self._decide(connection, request, descriptor)
            try:
                watcher = await self._arm(connection, decided)
            except EgsError as error:
                await asyncio.gather(decided.entered, return_exceptions=True)
                await self._arming.record_end(decided, error)
                raise
        finally:
            os.close(descriptor)
        if self._gate.tier is Tier.LSM:
            await self._tell_refusal(watcher)

    async def take_back(self, why: str, chosen: Callable[[verify.Artifact], bool] = lambda _: True) -> None:
        """Disarm what was not used yet, of the chosen artifacts. Returns when that is in the record."""
        await self._arming.take_back(why, chosen)

    # -- the decision ----------------------------------------------------------------------------

    async def _decide(
        self, connection: Connection, request: protocol.LaunchRequest, descriptor: int
    ) -> Decided:
        """Judge, and record request and decision in one append before anybody learns of it."""
        peer = connection.peer
        number = os.urandom(8).hex()
        settings = self._host.settings
        intent = declared_intent(peer, request)
        svid = request.svid
        trial, program, plan, own = Trial(), None, Plan(), None
        try:
            if svid is not None:
                workload = await asyncio.to_thread(self._host.workloads.identify, svid, now())
                intent = msgspec.structs.replace(intent, spiffe_id=workload)
            program = await self._judge.measure(descriptor, peer.uid)
            if program.kind is ProgramKind.SCRIPT:
                program, words = await self._judge.measure_interpreter(descriptor, peer.uid)
                intent = interpreted_intent(intent, words)
            intent = measured_intent(intent, program)
            trial = await self._judge.judge(request.artifact, intent)
            if trial.authorization is not None and trial.artifact is not None:
                self._require_free(peer.task, trial.authorization.scope)
                plan = plan_of(trial.artifact.statement.predicate)
                own = growing(settings.config, trial.authorization, number)
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
        may_enter = asyncio.Event()
        entered = asyncio.get_running_loop().create_task(
            self._enter(peer.task, settings.config, trial.authorization, own, may_enter)
        )
        escort = _escort(peer, plan, trial.artifact, program, descriptor)
        if escort is None:
            may_enter.set()
        try:
            await asyncio.shield(durable)
        except BaseException:
            entered.cancel()
            if escort is not None:
                escort.close()
            raise
        return Decided(
            number,
            peer.task,
            program,
            intent,
            trial,
            trial.artifact,
            trial.authorization,
            settings,
            plan,
            escort,
            entered,
            may_enter,
        )

    async def _enter(
        self,
        task: TaskIdentity,
        config: Config,
        authorization: verify.Authorization,
        own: Growing | None,
        may_enter: asyncio.Event,
    ) -> Tree | None:
        """Put the launcher under the scope; when it may, into its cgroup, or one of its own."""
        bound = authorization.cgroup
        cgroup = target_cgroup(config, authorization.scope, bound)
        self._gate.govern(task, authorization.scope)  # first: a process of another scope must not be moved
        await may_enter.wait()
        if own is not None:
            return await self._enter_own(task, own)
        if cgroup is not None:
            enter = partial(self._moves.enter, task, cgroup, exactly=bound is not None)
            await asyncio.get_running_loop().run_in_executor(None, enter)
        return None

    async def _enter_own(self, task: TaskIdentity, own: Growing) -> Tree:
        loop = asyncio.get_running_loop()
        tree = await loop.run_in_executor(None, own.make)
        try:
            await loop.run_in_executor(None, partial(self._moves.enter, task, tree.path, exactly=True))
        finally:
            self._trees.adopt(tree)
        return tree

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

    async def _confine(self, connection: Connection, decided: Decided, escort: Escort) -> None:
        """Have the launcher do its steps, do the rest to it, see that all holds. It stays stopped, held by the escort."""
        plan = decided.plan
        if plan.reach.ruleset is not None and plan.reach.ruleset.degraded:
            _log.warning(
                "launch %s: its artifact consents to %s unrestricted, which this kernel cannot restrict",
                decided.id,
                " and ".join(plan.reach.ruleset.degraded),
            )
        descriptors = await asyncio.wrap_future(escort.isolate())
        if plan.steps or descriptors:
            await connection.send(protocol.Constrain(steps=plan.steps), descriptors)
            decided.may_enter.set()
            if not isinstance(await connection.receive(), protocol.ReadyRequest):
                raise protocol.protocol_error("after its steps the launcher says ready, and nothing else")
        _require_same(connection, decided, await asyncio.wrap_future(escort.attest()))

    async def _arm(self, connection: Connection, decided: Decided) -> asyncio.Task[ExecEvent | None]:
        """Attest it, arm it and let it go; the task is done when its exec is decided, or will not come."""
        escort = decided.escort
        try:
            if escort is not None:
                await self._confine(connection, decided, escort)
            decided.may_enter.set()
            governed = self._gate.scope_of(decided.task.pid) is not None
            goes_on = governed and escort is not None and escort.follows and not decided.entered.done()
            if not goes_on:  # else it is armed at its exec, and there that is waited for
                await decided.entered
            watcher = self._arming.arm(connection.peer, decided, escort)
        except BaseException:
            decided.may_enter.set()
            if escort is not None:
                escort.close()
            raise
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


def _escort(
    peer: Connected, plan: Plan, artifact: verify.Artifact, program: Program, descriptor: int
) -> Escort | None:
    """What sees to the constraints. Its thread, and what does nothing to the launcher, begin while the disk is waited for."""
    if plan.empty:
        return None
    if plan.reach.unlimited:
        return Escort(peer.task.pid, plan)
    named = [program.path, *(subject.name for subject in artifact.statement.subject[1:])]
    return Escort(peer.task.pid, plan, Confinement(peer.task, peer.uid, plan.reach, descriptor, named))


def _require_same(connection: Connection, decided: Decided, attested: TaskIdentity) -> None:
    if attested != decided.task or not connection.peer.alive():
        raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone, and another process bears its pid")
