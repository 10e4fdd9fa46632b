"""Ending, suspending and quarantining a tree by the gate's table: the right processes, and no other one."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import pytest

from egs_kernel.daemon.events import Events
from egs_kernel.daemon.journal import Journal
from egs_kernel.daemon.restraint import Done, Restraint
from egs_kernel.daemon.trees import Trees
from egs_kernel.daemon.watch import Watcher
from egs_kernel.findings import Response
from egs_kernel.gate.views import GovernedTask
from egs_kernel.model import TaskIdentity
from egs_kernel.processes import start_ticks
from tests.recording import open_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from egs_kernel.gate.pins import Gate

pytestmark = pytest.mark.kernel


@pytest.fixture
def sleeping(gate: Gate) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts a process that the gate takes for one of an execution."""
    started: list[subprocess.Popen[bytes]] = []

    def start(execution: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline()  # its exec is over, and nobody governed it
        gate.govern(TaskIdentity(process.pid, start_ticks(process.pid)), "test")
        gate.assume(process.pid, execution=execution)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    gate.holds.detach_guards()


def restrained(gate: Gate, folder: Path, act: Callable[[Restraint], object]) -> object:
    """What comes of something that is done in a daemon's loop."""

    async def run() -> object:
        journal = Journal(open_record(folder / "record"))
        watcher = Watcher(lambda: None)
        trees = Trees(refused=lambda _entries: None, watcher=watcher)
        restraint = Restraint(gate, Events(gate, journal, lambda _artifact_id: None), trees)
        done = act(restraint)
        result = await done if asyncio.iscoroutine(done) else done
        watcher.close()
        await journal.close()
        return result

    return asyncio.run(run())


def test_an_execution_ends_and_another_one_does_not(
    gate: Gate, sleeping: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    one, two, other = sleeping(77), sleeping(77), sleeping(88)
    done = restrained(gate, tmp_path, lambda restraint: restraint.apply(Response.TERMINATE, 77))
    assert done == Done(verified=True, processes=2)
    assert (one.wait(), two.wait()) == (-9, -9)
    assert other.poll() is None


def test_who_bears_the_number_of_one_that_has_ended_is_not_hit(
    gate: Gate, sleeping: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The gate's answer is older than the descriptor: by then the number is another execution's, or nobody's."""
    bearer = sleeping(88)
    stranger = subprocess.Popen(["/bin/sleep", "100"])
    try:
        before = [
            GovernedTask(pid=bearer.pid, scope="test", execution=77, inherited=False),
            GovernedTask(pid=stranger.pid, scope="test", execution=77, inherited=False),
        ]

        def descriptors(restraint: Restraint) -> list[int]:
            with restraint._descriptors(before) as found:
                return [task.pid for task, _ in found]

        assert restrained(gate, tmp_path, descriptors) == []
        assert bearer.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_what_is_suspended_is_marked_and_what_is_quarantined_too(
    gate: Gate, sleeping: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    suspended, quarantined = sleeping(77), sleeping(88)
    done = restrained(gate, tmp_path / "a", lambda restraint: restraint.apply(Response.SUSPEND, 77))
    assert done == Done(verified=True, processes=1)
    done = restrained(gate, tmp_path / "b", lambda restraint: restraint.apply(Response.QUARANTINE, 88))
    assert done == Done(verified=True, processes=1)
    marks = {task.pid: task.suspended for task in gate.governed()}
    assert marks == {suspended.pid: True, quarantined.pid: False}
    assert quarantined.poll() is None
