"""Attacker's goal: kill the daemon at the moment when something is authorized but not recorded, or the reverse.

Claim T-12 of docs/threat-model.md. tests/kernel/test_daemon.py has the grace and what a restarted daemon picks up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Final

import pytest

from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import Decision, Exec
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.gate.pins import Gate
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.adversarial.arena import EVIDENCE, compile_word, read_to_end
from tests.harness import BIN
from tests.refusals import REFUSED
from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

TRIES: Final = 24
SWEPT: Final = 1.7
"""Launches long: the tries' moments lie between a launch's beginning and well after its end."""


def wait_until(moment: int) -> None:
    """Not a sleep: the moment is the parameter of the test."""
    while time.monotonic_ns() < moment:
        os.sched_yield()


def launch_takes(system: Running) -> int:
    """Nanoseconds of a launch on this machine, of a program that the test then leaves alone."""
    program = compile_word("idle", system.folder / "idle")
    artifact = system.issue(program, name="idle.json")
    began = time.monotonic_ns()
    assert system.run("--artifact", str(artifact), str(program)).returncode == 0
    return time.monotonic_ns() - began


def test_killed_at_every_moment_of_a_launch(system: Running) -> None:
    """Before the request, while it decides, when it is armed, after the exec: the record never lags behind."""
    good = compile_word("good", system.folder / "good")
    evil = compile_word("evil", system.folder / "evil")
    artifact = system.issue(good)
    step = int(SWEPT * launch_takes(system) / TRIES)
    launched: dict[int, tuple[bytes, int]] = {}
    for number in range(TRIES):
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)

        def evidence(writing: int = writing) -> None:
            os.dup2(writing, EVIDENCE)

        process = subprocess.Popen(
            [str(BIN / "egs"), "run", "--artifact", str(artifact), str(good)],
            env=system.instance.environment,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=evidence,
        )
        wait_until(time.monotonic_ns() + number * step)
        system.stop(signal.SIGKILL)
        assert system.inside(str(evil)) == REFUSED.code
        os.close(writing)
        launched[process.pid] = read_to_end(reading), process.wait(30)
        os.close(reading)
        system.start()

    verify(system.instance.paths.record, read_keys(system.instance.paths.log_keys).verifiers)
    ran = {pid for pid, (wrote, _) in launched.items() if wrote == b"good"}
    assert 0 < len(ran) < TRIES, "every launch was over, or none came to its exec: nothing was swept"
    allowed = {
        decision.task.pid
        for decision in system.entries(Decision)
        if decision.task is not None and decision.grant_kind is GrantKind.ARMED
    }
    executed = {
        entry.event.pid: entry.event for entry in system.entries(Exec) if entry.event.filename == str(good)
    }
    assert ran <= allowed, "something ran that no durable decision allows"
    assert ran == {pid for pid, event in executed.items() if event.verdict is Verdict.ALLOW}
    assert all(code == 0 for pid, (_, code) in launched.items() if pid in ran)
    refused = [entry.event for entry in system.entries(Exec) if entry.event.filename == str(evil)]
    assert {(event.verdict, event.reason) for event in refused} == {(REFUSED.verdict, Reason.NO_GRANT)}
    assert len(refused) == TRIES
    gate = Gate.open(system.instance.paths.pins)
    assert not gate.armed()
    gate.close()
