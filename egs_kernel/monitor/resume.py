"""`egs drift resume`: somebody who is root lets a suspended tree go on; without the monitor, which follows by the record."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from egs_kernel.audit.entries import FindingEntry, Peer, ResponseEntry
from egs_kernel.daemon import protocol
from egs_kernel.daemon.client import ask
from egs_kernel.drift.baselines import Baselines
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.monitor.hands import MonitorGate
from egs_kernel.monitor.respond import Responder
from egs_kernel.monitor.tail import Tail

if TYPE_CHECKING:
    from egs_kernel.monitor.respond import Outcome
    from egs_kernel.paths import Paths


def resume(paths: Paths, execution: int) -> Outcome:
    """Let it go on, and have that recorded.

    Raises:
        EgsError: nobody of it is suspended, the gate cannot be opened, or egsd does not record it.
    """
    if os.geteuid() != 0:
        raise EgsError(Reason.NOT_PERMITTED, "only root lets a suspended program go on", "Run as root.")
    baselines = Baselines()
    number = 0
    with contextlib.closing(MonitorGate(paths)) as gate, contextlib.closing(Tail(paths.record)) as tail:

        def catch_up() -> None:
            nonlocal number
            for recorded in tail.read():
                baselines.take(recorded)
                if isinstance(recorded.entry, FindingEntry) and recorded.entry.execution == execution:
                    number = recorded.entry.number

        catch_up()
        known = baselines.executions.get(execution)
        if known is None or execution not in baselines.suspended:
            raise EgsError(
                Reason.NOT_FOUND, f"execution {execution} is not suspended", "Run: egs drift history"
            )
        outcome = Responder(gate, baselines, catch_up).resume(execution)
    entry = ResponseEntry(
        number=number,
        response="resume",
        verified=outcome.verified,
        processes=outcome.processes,
        microseconds=0,
        detail=outcome.detail,
        execution=execution,
        scope=known.event.scope,
        artifact_id=known.artifact_id or None,
        peer=Peer(os.getpid(), os.getuid(), os.getgid()),
    )
    ask(paths, protocol.DriftRequest(reports=(entry,)), protocol.Done)
    return outcome
