"""The composition root of the monitor: events as they come, sweeps in slices between them, one thread for all of it."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sdnotify

from egs_kernel.audit.entries import WatchChange
from egs_kernel.audit.lines import timestamp
from egs_kernel.config import load_config
from egs_kernel.daemon import protocol
from egs_kernel.daemon.beat import Beat
from egs_kernel.daemon.client import ask
from egs_kernel.drift.baselines import Baselines
from egs_kernel.drift.compare import Context, Found
from egs_kernel.drift.observations import Queue
from egs_kernel.errors import EgsError
from egs_kernel.findings import Finding
from egs_kernel.locks import locked
from egs_kernel.model import Reason
from egs_kernel.monitor.files import Digests, Trust
from egs_kernel.monitor.hands import MonitorGate, is_sealed
from egs_kernel.monitor.processes import Reader
from egs_kernel.monitor.report import Reporter
from egs_kernel.monitor.respond import Responder
from egs_kernel.monitor.setting import load_rules
from egs_kernel.monitor.sockets import Sockets
from egs_kernel.monitor.sources import open_sources
from egs_kernel.monitor.sources.files import WatchedFiles
from egs_kernel.monitor.sweep import Sweep
from egs_kernel.monitor.tail import Tail
from egs_kernel.monitor.watch import Watch, boot_now
from egs_kernel.ownership import require_private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.drift.observations import Source
    from egs_kernel.drift.rules import Rules
    from egs_kernel.model import ExecEvent
    from egs_kernel.monitor.hands import Hands
    from egs_kernel.paths import Paths

_AT_ONCE: Final = 256
"""Observations that are compared before descriptors are looked at again."""
_EXEC_WAIT: Final = 0.1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LAST_WORDS: Final = 3.0
_DEADLINE_LONGEST: Final = 3600.0

_log = logging.getLogger(__name__)


def serve(paths: Paths, *, once: bool = False) -> None:
    """Watch until SIGTERM or SIGINT.

    Args:
        paths: of the instance.
        once: sweep once, have everything recorded, and end.

    Raises:
        EgsError: it could not start, or cannot go on.
    """
    with contextlib.ExitStack() as stack:
        paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_private_folder(paths.run_dir)
        stack.enter_context(locked(paths.monitor_lock, _running(paths)))
        gate = stack.enter_context(contextlib.closing(MonitorGate(paths)))
        rules = load_rules(paths)
        monitor = Monitor(paths, gate, rules, look=gate.look)
        stack.callback(monitor.close)
        monitor.start()
        if once:
            monitor.sweep_now()
        else:
            monitor.run()
        monitor.stop()


def _running(paths: Paths) -> EgsError:
    return EgsError(
        Reason.DAEMON_RUNNING,
        f"another egs-monitor watches {paths.run_dir}",
        "Leave it to that one: systemctl status egs-monitor",
    )


class Monitor:
    """Wires the parts; everything but handing reports over is done by the thread that calls `run`."""

    def __init__(
        self, paths: Paths, gate: Hands, rules: Rules, *, look: Callable[[], None] = lambda: None
    ) -> None:
        self._paths = paths
        self._gate = gate
        self._rules = rules
        self._beat = Beat(paths.run_dir)
        self._reporter = Reporter(self._send)
        self._tail = Tail(paths.record)
        self._baselines = Baselines()
        self._fresh: list[ExecEvent] = []
        trust, digests, sockets = Trust(), Digests(), Sockets()
        reader = Reader(gate.identify, digests, trust, sockets.of)
        self._watch = Watch(
            gate=gate,
            baselines=self._baselines,
            context=self._context(),
            reader=reader,
            digests=digests,
            responder=Responder(gate, self._baselines, self._catch_up),
            reporter=self._reporter,
            catch_up=self._catch_up,
        )
        self._sources: list[Source] = open_sources(
            paths, rules, self._watch.named_files, partial(is_sealed, paths)
        )
        self._queue = Queue()
        self._sweep = Sweep(
            gate=gate,
            baselines=self._baselines,
            watch=self._watch,
            reader=reader,
            refresh=(look, trust.refresh, sockets.refresh),
        )
        self._ending = False

    def close(self) -> None:
        """Let go of every descriptor."""
        for source in self._sources:
            source.close()
        self._tail.close()

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the baselines from the record, say for how long nobody watched, and look at everything once.

        Raises:
            EgsError: the record cannot be read.
        """
        live = frozenset(task.execution for task in self._gate.governed())
        for count, recorded in enumerate(self._tail.read()):
            self._baselines.take(recorded)
            if count % 16_384 == 0:
                self._baselines.forget(live)
        self._baselines.begin_boot(_BOOT_ID.read_text().strip())  # where egsd has not started since
        self._baselines.forget(live)
        self._watch.context = self._context()
        self._watch.begin()
        self._reporter.start()
        since, until = self._beat.last(self._baselines.watched), _now()
        self._reporter.put(
            WatchChange(
                action="started",
                pid=os.getpid(),
                boot_id=self._baselines.boot_id,
                since=since,
                until=until if since else "",
            )
        )
        if since or live - {0}:
            words = f"from {since} to {until}" if since else f"in this boot, before {until}"
            found = Found(
                finding=Finding.UNWATCHED, detail=f"nobody watched {words}", source="monitor", time=boot_now()
            )
            self._watch.tell(found)
        self._watch.answer_again(self._baselines.unanswered())

    def run(self) -> None:
        """Until a signal.

        Raises:
            EgsError: the record cannot be read any more.
        """
        with selectors.DefaultSelector() as ready, _woken_by_signals(self._end) as wakeup:
            ready.register(wakeup, selectors.EVENT_READ, None)
            ready.register(self._tail, selectors.EVENT_READ, self._tail)
            for source in self._sources:
                if source.fileno() >= 0:
                    ready.register(source, selectors.EVENT_READ, source)
            sdnotify.SystemdNotifier().notify("READY=1")
            _log.info("watching %s, a sweep every %d s", self._paths.pins, self._rules.interval)
            next_sweep, deadline = 0.0, time.monotonic()
            while not self._ending:
                now = time.monotonic()
                if now >= next_sweep and not self._sweep.under_way:
                    self._begin_sweep()
                    next_sweep = now + self._rules.interval
                if now >= deadline:
                    self._watch.check_authorizations("timer")
                    deadline = now + self._until_deadline()
                busy = self._sweep.under_way or bool(self._queue) or bool(self._fresh)
                wait = 0.0 if busy else max(0.0, min(next_sweep, deadline) - now)
                if self._watch.waits:
                    wait = min(wait, _EXEC_WAIT)
                for key, _ in ready.select(wait):
                    self._read(key.data)
                if self._baselines_changed():
                    deadline = 0.0
                deadline = min(deadline, time.monotonic() + self._look_at_fresh())
                self._observe()
                self._sweep.go_on()
                self._watch.look_again()

    def sweep_now(self) -> None:
        """One whole sweep.

        Raises:
            EgsError: the record cannot be read any more.
        """
        self._catch_up()
        self._look_at_fresh()
        for source in self._sources:
            for observation in source.read():
                self._queue.put(observation)
        self._begin_sweep()
        while self._sweep.under_way:
            self._sweep.go_on()
        while self._queue:
            self._observe()
        while self._watch.waits:
            self._watch.look_again()
            time.sleep(_EXEC_WAIT)

    def stop(self) -> None:
        """Say the last words."""
        self._reporter.put(
            WatchChange(action="stopped", pid=os.getpid(), boot_id=self._baselines.boot_id, detail="told to")
        )
        self._reporter.stop(_LAST_WORDS)

    # -- inside ----------------------------------------------------------------------------------

    def _end(self) -> None:
        self._ending = True

    def _begin_sweep(self) -> None:
        self._sweep.begin()
        for source in self._sources:
            for observation in source.sweep():
                self._queue.put(observation)

    def _read(self, data: object) -> None:
        if data is self._tail:
            self._catch_up()
        for source in self._sources:
            if data is source:
                for observation in source.read():
                    self._queue.put(observation)

    def _catch_up(self) -> None:
        for recorded in self._tail.read():
            event = self._watch.take(recorded)
            if event is not None:
                self._fresh.append(event)

    def _baselines_changed(self) -> bool:
        """Whether what is authorized is to be looked at again; with another configuration, rules and scopes are read anew."""
        if not self._watch.reconfigured:
            return self._baselines.take_changed()
        self._watch.reconfigured = False
        self._gate.refresh_scopes()
        try:
            self._rules = load_rules(self._paths)
            self._watch.context = self._context()
        except EgsError as error:
            _log.error("the rules before stay in force: %s. %s", error, error.next_step)
        return True

    def _look_at_fresh(self) -> float:
        """Look at what has just begun; the seconds until an authorization of it ends."""
        fresh, self._fresh = self._fresh, []
        for event in fresh:
            self._watch.look_first(event)
            self._follow(event.execution)
        return self._until_deadline([event.execution for event in fresh])

    def _follow(self, execution: int) -> None:
        """Watch the files that its artifact names, without waiting for the next sweep."""
        said = self._baselines.artifact_of(execution)
        for source in self._sources:
            if said is not None and isinstance(source, WatchedFiles):
                source.follow(said.paths)

    def _observe(self) -> None:
        for _ in range(_AT_ONCE):
            observation = self._queue.take(boot_now())
            if observation is None:
                return
            self._watch.observe(observation)

    def _until_deadline(self, executions: list[int] | None = None) -> float:
        expires = self._watch.next_deadline(executions)
        return (
            _DEADLINE_LONGEST
            if expires is None
            else min(_DEADLINE_LONGEST, max(0.0, expires - time.time()) + 0.01)
        )

    def _context(self) -> Context:
        config = load_config(self._paths.config)
        return Context(
            baselines=self._baselines,
            rules=self._rules,
            library_roots=config.library_roots,
            cgroups={scope.name: scope.cgroup for scope in config.scopes if scope.cgroup is not None},
        )

    def _send(self, request: protocol.DriftRequest) -> None:
        ask(self._paths, request, protocol.Done)


@contextlib.contextmanager
def _woken_by_signals(end: object) -> Iterator[int]:
    """A descriptor that is readable when a signal came that ends the monitor."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: end())  # type: ignore[operator]  # it is `_end`
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def _now() -> str:
    return timestamp(time.time_ns())
