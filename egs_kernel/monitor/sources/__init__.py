"""Where the monitor's observations come from, beside its own sweeps of processes: one module for each kind of source."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import EgsError, Refused
from egs_kernel.gate.drift import DriftGate
from egs_kernel.model import TaskIdentity
from egs_kernel.monitor.sources.clock import Clock
from egs_kernel.monitor.sources.drift_events import DriftEvents
from egs_kernel.monitor.sources.files import WatchedFiles
from egs_kernel.monitor.sources.integrity import GateIntegrity
from egs_kernel.monitor.sources.kernel import KernelState, Sysctls
from egs_kernel.monitor.sources.network import Network
from egs_kernel.peers import peer_of
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from egs_kernel.drift.observations import Source
    from egs_kernel.drift.rules import Rules
    from egs_kernel.paths import Paths

_log = logging.getLogger(__name__)


def open_sources(
    paths: Paths, rules: Rules, named: Callable[[], Iterable[str]], sealed: Callable[[], bool]
) -> list[Source]:
    """Every source that this host has, open. What it has not is said in the log: the sweeps go on without.

    Args:
        paths: of the instance.
        rules: what is watched.
        named: the paths of the files that artifacts of running executions name.
        sealed: whether the gate is.
    """
    makers: dict[str, Callable[[], Source]] = {
        "the gate's integrity": lambda: GateIntegrity(paths, sealed),
        "drift events": lambda: DriftEvents(DriftGate.open(paths.pins), lambda: daemon_of(paths)),
        "changes of files": lambda: WatchedFiles(named),
        "settings of the kernel": lambda: Sysctls(rules.sysctls),
        "modules and taint": KernelState,
        "steps of the clock": Clock,
        "changes of the network": Network,
    }
    sources = []
    for what, make in makers.items():
        try:
            sources.append(make())
        except EgsError as error:
            _log.warning("not watched: %s. %s %s", what, error, error.next_step)
        except OSError as error:
            _log.warning("not watched: %s. %s", what, error)
    return sources


def daemon_of(paths: Paths) -> TaskIdentity | None:
    """egsd, as the kernel has it: who listens at its socket or, while it starts, holds its lock; None when nobody does."""
    return _listening(paths) or _starting(paths)


def _listening(paths: Paths) -> TaskIdentity | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(paths.socket))
            with peer_of(connection) as peer:
                return peer.task
        except (OSError, Refused):
            return None


def _starting(paths: Paths) -> TaskIdentity | None:
    """Who holds egsd's lock, when it is root's: a daemon writes to the gate before it listens."""
    try:
        lock = paths.daemon_lock.stat()
        place = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
        held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        pids = [int(words[4]) for words in held if words[1] == "FLOCK" and words[5] == place]
        if len(pids) != 1 or Path(f"/proc/{pids[0]}").stat().st_uid != 0:
            return None
        return TaskIdentity(pids[0], start_ticks(pids[0]))
    except OSError:
        return None  # it has ended meanwhile, or was never there
