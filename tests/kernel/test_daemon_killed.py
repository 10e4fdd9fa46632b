"""The daemon is killed again and again, at any moment, while programs are launched and executed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading

import pytest

from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import Decision, Exec
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.harness import BIN, COMMAND_SECONDS
from tests.refusals import refusal, start
from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

ROUNDS = 12
LAUNCHES = 4
USES = 20


def test_no_execution_without_record_and_no_use_too_many(running: Running) -> None:
    """Every program that ran is in the record exactly once, and none ran more often than was signed."""
    launched, standing = running.copy("/bin/echo", "launched"), running.copy("/bin/echo", "standing")
    launch = running.issue(launched, "--max-uses", str(USES), name="launch.json")
    standing_id = running.add(running.issue(standing, "--max-uses", str(USES), name="standing.json"))
    outputs = []
    moments = random.Random(1)  # the same moments in every run  # noqa: S311 - not a secret
    for _ in range(ROUNDS):
        killer = threading.Timer(moments.uniform(0, 0.06), os.kill, (running.pid, signal.SIGKILL))
        killer.start()
        processes = [
            subprocess.Popen(
                [str(BIN / "egs"), "run", "--artifact", str(launch), str(launched), "x"],
                env=running.instance.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(LAUNCHES)
        ]
        processes.append(
            start(
                [standing, "x"],
                running.instance.cgroup.enter,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        outputs += [process.communicate(timeout=COMMAND_SECONDS)[0] for process in processes]
        killer.join()
        assert running.daemon is not None
        running.daemon.wait(20)
        running.start()
    running.stop()

    ran = sum(output == b"x\n" for output in outputs)
    allowed = [entry.event for entry in running.entries(Exec) if entry.event.verdict is Verdict.ALLOW]
    assert len(allowed) == len({event.execution for event in allowed}) == ran
    by_launch = [event for event in allowed if event.grant_kind is GrantKind.ARMED]
    by_standing = [event for event in allowed if event.artifact_id == standing_id]
    assert len(by_launch) + len(by_standing) == ran
    assert 0 < len(by_standing) <= USES
    decided = [entry for entry in running.entries(Decision) if entry.grant_kind is GrantKind.ARMED]
    assert len(by_launch) <= len(decided) <= USES
    tasks = {(entry.task.pid, entry.task.start_ticks) for entry in decided if entry.task is not None}
    assert {(event.pid, event.start_ticks) for event in by_launch} <= tasks
    events = [entry.event for entry in running.entries(Exec)]
    refused = {(event.verdict, event.reason) for event in events} - {(Verdict.ALLOW, Reason.AUTHORIZED)}
    reasons = (Reason.NO_GRANT, Reason.USES_EXHAUSTED, Reason.DAEMON_STALE)
    assert refused <= {(refusal(reason).verdict, reason) for reason in reasons}
    verify(running.instance.paths.record, read_keys(running.instance.paths.log_keys).verifiers)
