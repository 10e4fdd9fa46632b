"""Where the kernel can skip the end of a process (Linux 7.0), as on this one when it is said to.

The skip itself takes a preempted gate; here the gate is detached from the exit instead, which comes to the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.config import load_config
from egs_kernel.gate import loader, parts, selftest_guards
from egs_kernel.gate.pins import Gate
from egs_kernel.model import ExitEvent
from tests.harness import PATIENCE, Instance

pytestmark = pytest.mark.kernel

SECONDS = 10 * PATIENCE
THREADS = "import os, threading as t; t.Thread(target=lambda: os.execv('/bin/true', ['true'])).start(); t.Event().wait()"


@pytest.fixture
def blind(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate in a scope that observes, whose program at the exit is never asked."""
    for module in (loader, parts, selftest_guards):
        monkeypatch.setattr(module, "can_skip", lambda: True)
    instance.configure(mode="observe")
    loader.load_gate(instance.paths, load_config(instance.paths.config))
    gate = Gate.open(instance.paths.pins)
    gate.beat()
    (instance.paths.pins / "link_gate_exit").unlink()
    yield gate
    gate.close()


def ends(gate: Gate, count: int) -> list[ExitEvent]:
    """The next `count` ends of executions; fewer when they do not come."""
    found: list[ExitEvent] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < deadline:
        gate.drain(lambda event: found.append(event) if isinstance(event, ExitEvent) else None)
        os.sched_yield()
    return found


def run(instance: Instance, *command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=False, preexec_fn=instance.cgroup.enter)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("/bin/true",), 0),
        (("/bin/sh", "-c", "exit 7"), 7 << 8),
        (("/bin/sh", "-c", "kill -KILL $$"), int(signal.SIGKILL)),
    ],
    ids=["done", "with a code", "by a signal"],
)
def test_the_end_is_told_a_moment_later(
    command: tuple[str, ...], status: int, instance: Instance, blind: Gate
) -> None:
    run(instance, *command)
    assert [event.status for event in ends(blind, 1)] == [status]
    assert blind.governed() == []


def test_every_process_of_many_is_forgotten(instance: Instance, blind: Gate) -> None:
    run(instance, "/bin/sh", "-c", "for i in $(seq 100); do /bin/true & done; wait")
    assert len(ends(blind, 102)) == 102  # and sh, and seq
    assert blind.governed() == []


def test_a_thread_that_executes_is_no_end(instance: Instance, blind: Gate) -> None:
    """The first thread goes then, but its number lives on."""
    run(instance, str(Path("/usr/bin/python3").resolve()), "-c", THREADS)
    run(instance, "/bin/true")
    assert len({event.pid for event in ends(blind, 2)}) == 2
    assert blind.governed() == []


def test_without_the_guard_it_is_governed_for_good(instance: Instance, blind: Gate) -> None:
    (instance.paths.pins / "link_guard_exit").unlink()
    run(instance, "/bin/true")
    assert len(blind.governed()) == 1
