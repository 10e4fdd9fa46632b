"""From a launch that is decided and attested to its exec: armed, watched, and taken back when nothing comes of it."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from egs_kernel import verify
from egs_kernel.audit.entries import Decision
from egs_kernel.daemon.host import cgroup_number, now
from egs_kernel.daemon.server import wait_readable
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason, Verdict
from egs_kernel.peers import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.constraints.escort import Escort
    from egs_kernel.daemon.decided import Decided
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.trees import Trees
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import ExecEvent
    from egs_kernel.peers import Peer

EXEC_SECONDS: Final = 5.0
"""How long a launcher may take from "go" to its exec."""


class Arming:
    """Arms launches. Everything here belongs to the event loop's thread."""

    def __init__(self, *, gate: Gate, host: Host, journal: Journal, events: Events, trees: Trees) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._events = events
        self._trees = trees
        self._armed: dict[asyncio.Task[ExecEvent | None], tuple[verify.Artifact, asyncio.Future[str]]] = {}

    def arm(self, peer: Peer, decided: Decided, escort: Escort | None) -> asyncio.Task[ExecEvent | None]:
        """Arm it, or have it armed when it is at its exec. The task is done when that is decided, or will not come.

        Tell the launcher to go on then. The escort is closed in any case.

        Raises:
            Refused: it is not to be armed any more.
        """
        loop = asyncio.get_running_loop()
        pidfd = os.dup(peer.pidfd)  # the connection may end before the launcher is at its exec
        executed = self._events.expect(decided.task.pid, decided.task.start_ticks)
        conducted: asyncio.Future[bool] | None = None
        try:
            if escort is not None and escort.follows:
                self._require_still(decided)
                conducted = asyncio.wrap_future(
                    escort.conduct(partial(self._arm_in_loop, loop, pidfd, decided, escort.filters))
                )
            else:
                self._arm(pidfd, decided, None if escort is None else escort.filters)
        except BaseException:
            self._events.forget(decided.task.pid, decided.task.start_ticks)
            os.close(pidfd)
            raise
        stop: asyncio.Future[str] = loop.create_future()
        watcher = loop.create_task(self._watch(decided, executed, stop, pidfd, escort, conducted))
        self._armed[watcher] = decided.artifact, stop
        watcher.add_done_callback(self._armed.pop)
        if escort is not None and conducted is None:
            escort.close()
        return watcher

    async def take_back(self, why: str, chosen: Callable[[verify.Artifact], bool] = lambda _: True) -> None:
        """Disarm what was not used yet, of the chosen artifacts. Returns when that is in the record."""
        watchers = []
        for watcher, (artifact, stop) in self._armed.items():
            if chosen(artifact):
                watchers.append(watcher)
                if not stop.done():
                    stop.set_result(why)
        await asyncio.gather(*watchers, return_exceptions=True)

    async def record_end(self, decided: Decided, error: EgsError) -> None:
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

    def _arm_in_loop(
        self, loop: asyncio.AbstractEventLoop, pidfd: int, decided: Decided, filters: int | None
    ) -> None:
        """Arm it, asked for by the escort's thread."""

        async def arm() -> None:
            await decided.entered
            self._arm(pidfd, decided, filters)

        asyncio.run_coroutine_threadsafe(arm(), loop).result(EXEC_SECONDS)

    def _arm(self, pidfd: int, decided: Decided, filters: int | None) -> None:
        self._require_still(decided)
        tree = decided.entered.result()
        grant = decided.authorization.grant(
            decided.program.measurement,
            decided.trial.named,
            decided.trial.children,
            boot_offset=self._host.clock_offset,
            cgroup_id=cgroup_number(decided.authorization.cgroup) if tree is None else tree.id,
            seccomp_filters=filters,
        )
        if not is_alive(pidfd):
            raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone")
        if tree is not None:
            self._trees.tighten(tree)
        self._gate.arm(grant, decided.task)

    def _require_still(self, decided: Decided) -> None:
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
        facts = self._host.facts(decided.artifact, uses=uses)
        intent = decided.trial.intent or decided.intent
        verify.authorize(decided.artifact, intent, facts, now())

    async def _watch(  # noqa: PLR0913, PLR0917 - everything that can end the wait
        self,
        decided: Decided,
        executed: asyncio.Future[ExecEvent],
        stop: asyncio.Future[str],
        pidfd: int,
        escort: Escort | None,
        conducted: asyncio.Future[bool] | None,
    ) -> ExecEvent | None:
        """Wait until the gate has decided the exec; take the grant back when it does not come, or was refused."""
        task = decided.task
        gone = asyncio.ensure_future(wait_readable(pidfd))
        waited: set[asyncio.Future[Any]] = {executed, gone, stop}
        followed = set() if conducted is None else {conducted}
        await asyncio.wait(waited | followed, timeout=EXEC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if _found_as_signed(conducted):  # the gate's event comes within 20 ms
            await asyncio.wait(waited, timeout=EXEC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        why = _why(stop, gone, conducted)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        if not executed.done():
            self._gate.disarm(task.pid)
            self._events.drain()  # the exec may have been faster than the disarming: then it is in here
        self._events.forget(task.pid, task.start_ticks)
        refusal = await _refusal_of(escort, conducted)
        os.close(pidfd)
        if refusal is not None:
            await self.record_end(decided, refusal)
        if executed.done():
            event, tree = executed.result(), decided.entered.result()
            if event.verdict is Verdict.DENY:  # by what it would execute first: a script
                self._gate.disarm(task.pid)
            elif tree is not None:
                self._trees.executed(tree, event.execution)
            return event
        if refusal is None:
            await self.record_end(decided, Refused(Reason.LAUNCHER_LOST, f"the launcher was lost: {why}"))
        return None


def _why(
    stop: asyncio.Future[str], gone: asyncio.Future[None], conducted: asyncio.Future[bool] | None
) -> str:
    """What ended the wait for an exec that did not come."""
    if stop.done():
        return stop.result()
    if gone.done():
        return "it ended before its exec"
    if conducted is not None and conducted.done():
        return "its exec failed"
    return f"it did not execute within {EXEC_SECONDS:g} seconds"


def _found_as_signed(conducted: asyncio.Future[bool] | None) -> bool:
    return conducted is not None and conducted.done() and conducted.exception() is None and conducted.result()


async def _refusal_of(escort: Escort | None, conducted: asyncio.Future[bool] | None) -> EgsError | None:
    """What the escort found wrong, when it is done."""
    if escort is None or conducted is None:
        return None
    escort.leave()
    try:
        await conducted
    except EgsError as error:
        return error
    finally:
        escort.close()
    return None
