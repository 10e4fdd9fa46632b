"""The composition root: wires the daemon's parts, starts them in order, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sdnotify

from egs_kernel import __version__
from egs_kernel.audit.entries import ConfigurationChange, DaemonStarted, DaemonStopped, Decision
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.audit.record import Record
from egs_kernel.checks.revocation import merged
from egs_kernel.constraints.kernel_messages import KernelMessages, open_messages
from egs_kernel.daemon.activating import Activating
from egs_kernel.daemon.beat import Beat
from egs_kernel.daemon.control import Control
from egs_kernel.daemon.drift import Drift
from egs_kernel.daemon.events import Events
from egs_kernel.daemon.gaps import Gaps
from egs_kernel.daemon.heart import Heart
from egs_kernel.daemon.holds import Holds
from egs_kernel.daemon.host import Host, Settings
from egs_kernel.daemon.journal import Journal
from egs_kernel.daemon.judging import Judge
from egs_kernel.daemon.launches import Launches
from egs_kernel.daemon.lent import lend
from egs_kernel.daemon.memory import give_back
from egs_kernel.daemon.policy import Policy
from egs_kernel.daemon.programs import Surveyor
from egs_kernel.daemon.refusals import FIRST_PAUSE, Refusals
from egs_kernel.daemon.reports import Reports
from egs_kernel.daemon.restraint import Restraint
from egs_kernel.daemon.revocations import known_of, read_revocations
from egs_kernel.daemon.revoking import Revoking
from egs_kernel.daemon.running import Running
from egs_kernel.daemon.sealing import Sealing, become_daemon
from egs_kernel.daemon.server import Server
from egs_kernel.daemon.standing import Standing
from egs_kernel.daemon.trees import Trees
from egs_kernel.daemon.watch import Watcher
from egs_kernel.daemon.witnesses import Witnesses
from egs_kernel.errors import EgsError, HostLacks
from egs_kernel.gate.libraries import apply_library_roots
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.scopes import apply_scopes
from egs_kernel.gate.seal import claim
from egs_kernel.locks import locked, make
from egs_kernel.model import Reason, Verdict
from egs_kernel.ownership import require_private_folder
from egs_kernel.posture import EMPTY_POLICY

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from egs_kernel.audit.entries import Peer
    from egs_kernel.daemon.known import Known
    from egs_kernel.paths import Paths
    from egs_kernel.verify import Artifact

DRAIN_SECONDS: Final = 0.02
METRICS_SECONDS: Final = 5.0
STANDING_SECONDS: Final = 30.0
"""How long READY=1 waits for the standing artifacts; less than TimeoutStartSec= of egsd.service."""

_log = logging.getLogger(__name__)


async def serve(paths: Paths) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises:
        EgsError: it could not start, or it cannot go on.
    """
    claim(paths.pins)
    settings = Settings.load(paths)
    async with contextlib.AsyncExitStack() as stack:
        paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_private_folder(paths.run_dir)
        stack.enter_context(locked(paths.daemon_lock, _running(paths)))
        make(paths.monitor_lock)  # which its monitor could not, once the gate is sealed
        paths.artifacts.mkdir(mode=0o755, exist_ok=True)
        gate = stack.enter_context(contextlib.closing(Gate.open(paths.pins)))
        become_daemon(paths, gate.seal)
        revoked = read_revocations(paths.revocations)
        origin = settings.config.record.origin_of(settings.host_id)
        keys = LogKeys.open(paths.log_keys, origin, time.time)
        record = Record.open(paths.record, keys)
        journal = Journal(record)
        stack.push_async_callback(journal.close)
        known = known_of(paths.revocations, merged([revoked, record.revoked]), record.lists)
        messages = await asyncio.to_thread(_listen)
        policy = Policy(record.policies, record.policy or EMPTY_POLICY)
        stack.callback(policy.close)
        settings = replace(settings, policy_digest=policy.digest)
        daemon = _Daemon(paths, gate, journal, settings, known, policy, keys, messages)
        await daemon.start()
        await daemon.run()


def _running(paths: Paths) -> EgsError:
    return EgsError(
        Reason.DAEMON_RUNNING,
        f"another egsd runs on {paths.run_dir}",
        "Ask it: egs status. EGS_ROOT=DIR runs a second instance.",
    )


def _listen() -> KernelMessages | HostLacks:
    """What tells of refusals by constraints, or why nothing does: they are enforced all the same."""
    try:
        return open_messages()
    except HostLacks as error:
        _log.warning("%s. %s", error.message, error.next_step)
        return error


class _Daemon:
    def __init__(  # noqa: PLR0913, PLR0917 - wires it, once
        self,
        paths: Paths,
        gate: Gate,
        journal: Journal,
        settings: Settings,
        known: Known,
        policy: Policy,
        keys: LogKeys,
        messages: KernelMessages | HostLacks,
    ) -> None:
        apply_library_roots(gate, settings.config.library_roots)
        apply_scopes(gate, settings.config)
        self._paths = paths
        self._gate = gate
        self._journal = journal
        self._host = Host(paths, gate, settings, known, policy)
        self._events = Events(gate, journal, self._find)
        self._surveyor = Surveyor(
            gate.identify, gate.openings.last, lambda: self._host.settings.config.trusted_filesystems
        )
        self._watcher = Watcher(self._changes_lost)
        if isinstance(messages, HostLacks):
            self._host.unseen = messages.message
        else:
            self._host.enforceable |= {"syscalls.log"}
        self._refusals = Refusals(
            None if isinstance(messages, HostLacks) else messages,
            gate=gate,
            journal=journal,
            events=self._events,
            host=self._host,
            clock=time.monotonic,
        )
        self._events.left = self._refusals.ended
        self._standing = Standing(
            paths.artifacts,
            gate=gate,
            host=self._host,
            journal=journal,
            surveyor=self._surveyor,
            watcher=self._watcher,
            drain=self._events.drain,
        )
        self._events.changed_files = self._standing.examine
        policy.revived = self._standing.retry
        judge = Judge(
            host=self._host,
            journal=journal,
            surveyor=self._surveyor,
            standing=self._standing,
            drain=self._events.drain,
        )
        self._trees = Trees(refused=self._refusals.tell, watcher=self._watcher)
        self._launches = Launches(
            gate=gate,
            host=self._host,
            journal=journal,
            judge=judge,
            events=self._events,
            trees=self._trees,
        )
        self._holds = Holds(gate=gate, host=self._host, journal=journal, judge=judge, events=self._events)
        self._events.held = self._holds.take
        self._events.ended = self._holds.ended
        self._standing.examined = self._holds.look_for
        self._running = Running(
            gate=gate,
            host=self._host,
            journal=journal,
            standing=self._standing,
            events=self._events,
            restraint=Restraint(gate, self._events, self._trees),
        )
        self._standing.left = self._running.note
        judge.presented = self._running.note
        self._sealing = Sealing(paths, gate=gate, host=self._host, journal=journal)
        drift = Drift(
            host=self._host, journal=journal, beat=Beat(paths.run_dir), changed=self._standing.rescan
        )
        self._running.told = drift.count
        witnesses = Witnesses(paths, host=self._host, journal=journal, keys=keys, clock=time.time)
        self._reports = Reports(
            paths,
            gate=gate,
            host=self._host,
            journal=journal,
            standing=self._standing,
            events=self._events,
            sealing=self._sealing,
            refusals=self._refusals,
            witnesses=witnesses,
            drift=drift,
        )
        self._gaps = Gaps(gate, journal)
        self._heart = Heart(
            gate=gate, host=self._host, journal=journal, standing=self._standing, gaps=self._gaps
        )
        self._activating = Activating(paths, host=self._host, journal=journal, changed=self._policy_changed)
        control = Control(
            paths,
            host=self._host,
            journal=journal,
            standing=self._standing,
            launches=self._launches,
            holds=self._holds,
            reports=self._reports,
            sealing=self._sealing,
            keys=keys,
            witnesses=witnesses,
            drift=drift,
            lend=partial(lend, gate),
            revoking=Revoking(
                paths,
                host=self._host,
                journal=journal,
                standing=self._standing,
                launches=self._launches,
                running=self._running,
            ),
            activating=self._activating,
            reload=self.reload,
        )
        self._server = Server(paths.socket, control.serve)
        self._systemd = sdnotify.SystemdNotifier()
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading: asyncio.Task[None] | None = None
        self._recalling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Pick up where the last daemon was. Until the first beat the gate refuses, or lives on its grace."""
        started = DaemonStarted(
            version=__version__,
            pid=os.getpid(),
            host_id=self._host.settings.host_id,
            posture=self._host.posture_digest,
        )
        await self._journal.append(self._host.posture_entry(), started, self._host.settings.entry("start"))
        await self._activating.follow("start")
        self._standing.open()
        self._disarm_leftovers()
        live = {task.execution for task in self._gate.governed()}
        recent = await asyncio.to_thread(self._journal.recent)
        self._events.recall(recent, live)
        self._holds.recall(recent)
        self._gaps.recall(recent)
        self._trees.recall(self._host.settings.config)
        await self._journal.flush()
        withdrawn = self._standing.reconcile()
        if withdrawn:
            _log.warning("%d standing grants in the gate belong to no artifact here: withdrawn", withdrawn)
        if not self._host.healthy:
            _log.error("nothing is authorized: %s", "; ".join(self._host.posture.problems))
            self._standing.withdraw_all()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._watcher.fileno(), self._watcher.dispatch)
        if self._refusals.messages is not None:
            loop.add_reader(self._refusals.messages.fileno(), self._refusals.dispatch)
            self._spawn(self._tell_refusals())

    async def run(self) -> None:
        """Serve until a signal, or until something fails that the daemon cannot go on without.

        Raises:
            EgsError: what failed. The gate refuses everything from then on.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_soon, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        self._spawn(self._heart.run())
        self._spawn(self._standing.run())
        self._spawn(self._drain_often())
        self._spawn(self._write_metrics())
        self._server.start()
        try:
            await self._stand()
            await self._sealing.start()
            self._spawn(self._sealing.run())
            self._recalling = asyncio.get_running_loop().create_task(self._running.recall())
            give_back()
            self._systemd.notify("READY=1")
            _log.info("serving on %s, tier %s", self._paths.socket, self._gate.tier.value)
            await asyncio.wait(self._ends(), return_when=asyncio.FIRST_COMPLETED)
            if not self._end.done():
                self._fail()
            await self._stop(self._end.result())
        except BaseException:
            self._gate.stop_beating()  # fail closed at once, not after the grace
            raise
        finally:
            await self._close()

    async def _stand(self) -> None:
        """Wait until the standing artifacts are measured and installed: what starts after egsd relies on them."""
        settled = asyncio.get_running_loop().create_task(self._standing.settled())
        await asyncio.wait(
            {settled, *self._ends()}, timeout=STANDING_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not settled.done():
            _log.warning("ready, while some standing artifacts are still being examined")
        settled.cancel()

    def _ends(self) -> set[asyncio.Future[Any]]:
        """What ends the daemon when it is done."""
        return {self._end, self._journal.failure, *self._tasks}

    async def reload(self, cause: str, peer: Peer | None = None) -> None:
        """Read everything again. What is wrong leaves the old settings in force; both is recorded.

        Raises:
            EgsError: with what is wrong.
        """
        try:
            settings = await asyncio.to_thread(Settings.load, self._paths, self._host.policy.digest)
            apply_library_roots(self._gate, settings.config.library_roots)
            apply_scopes(self._gate, settings.config)
        except EgsError as error:
            refused = ConfigurationChange(action="refused", cause=cause, peer=peer, detail=str(error))
            await self._journal.append(refused)
            error.next_step = f"The old settings stay in force. {error.next_step}"
            raise
        self._host.settings = settings
        durable = self._journal.submit([settings.entry(cause, peer)], essential=True)
        if self._host.refresh_posture():
            self._heart.posture_changed()
        self._standing.rescan()
        await asyncio.shield(durable)
        await self._running.respond()  # a key may have been revoked in the trust folder
        await self._activating.follow(cause, peer)
        _log.info("configuration, trust, policy and artifacts were read again")

    async def _policy_changed(self) -> None:
        """What was authorized under another policy set is authorized no more, from now on."""
        for artifact in tuple(self._standing.all()):
            scope = artifact.statement.predicate.scope
            under_none = scope.policy_digest is None and not self._host.policy.governs(scope.name)
            if not under_none and scope.policy_digest != self._host.policy.digest:
                self._standing.withdraw(artifact.id)
        if self._host.refresh_posture():
            self._heart.posture_changed()
        self._standing.rescan()
        await self._launches.take_back("another policy set was activated")

    def _find(self, artifact_id: str) -> Artifact | None:
        return self._standing.find(artifact_id)

    # -- starting --------------------------------------------------------------------------------

    def _disarm_leftovers(self) -> None:
        """Nobody waits any more for what a daemon that died had armed."""
        for pid in self._gate.armed():
            self._gate.disarm(pid)
            self._journal.submit(
                [
                    Decision(
                        verdict=Verdict.DENY,
                        reason=Reason.LAUNCHER_LOST,
                        scope=self._gate.scope_of(pid) or "",
                        policy_digest=self._host.settings.policy_digest,
                        posture=self._host.posture_digest,
                        detail=f"process {pid} was armed by a daemon that ended; disarmed",
                    )
                ],
                essential=True,
            )
        self._gate.collect()

    # -- running ---------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _drain_often(self) -> None:
        while True:
            self._events.drain()
            await asyncio.sleep(DRAIN_SECONDS)

    async def _tell_refusals(self) -> None:
        while True:
            await asyncio.sleep(FIRST_PAUSE)
            self._refusals.tick()

    async def _write_metrics(self) -> None:
        problem = ""
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            found = await asyncio.to_thread(self._reports.write_metrics)
            if found and found != problem:
                _log.warning("metrics: %s", found)
            problem = found

    def _changes_lost(self) -> None:
        _log.warning("the kernel dropped file change events: everything is examined again")
        self._standing.rescan()

    def _reload_soon(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._reload_and_log())

    async def _reload_and_log(self) -> None:
        try:
            await self.reload("SIGHUP")
        except EgsError as error:
            _log.error("%s\n%s", error, error.next_step)

    # -- stopping --------------------------------------------------------------------------------

    def _stop_soon(self, cause: str) -> None:
        if not self._end.done():
            self._end.set_result(cause)

    def _fail(self) -> None:
        if self._journal.failure.done():
            raise self._journal.failure.result()
        for task in self._tasks:
            if task.done():
                task.result()

    async def _stop(self, cause: str) -> None:
        _log.info("stopping: %s", cause)
        self._systemd.notify("STOPPING=1")
        await self._server.stop()
        await self._launches.take_back("the daemon stops")
        self._events.drain()
        if self._refusals.messages is not None:
            asyncio.get_running_loop().remove_reader(self._refusals.messages.fileno())
        self._refusals.close()
        self._gaps.look()
        await self._journal.append(DaemonStopped(cause=cause))

    async def _close(self) -> None:
        await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._holds.close()
        asyncio.get_running_loop().remove_reader(self._watcher.fileno())
        self._watcher.close()
        self._surveyor.close()
