"""Goal: change a governed process, or the gate, so that no drift event tells of it (T-36, T-37, O-21)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.drift.observations import HostEvent, ProcessEvent
from egs_kernel.findings import Finding
from egs_kernel.gate.drift import DriftGate
from egs_kernel.gate.pins import Gate
from egs_kernel.model import TaskIdentity
from egs_kernel.processes import start_ticks
from tests.drifting import Watched, watched_instance
from tests.harness import COMMAND_SECONDS, compile_program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

NO_RINGS: Final = (errno.ENOSYS, errno.EPERM)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_instance(tmp_path_factory.mktemp("drift")) as system:
        yield system


def other_thread(pid: int) -> int:
    return next(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid)


@pytest.mark.parametrize("act", ["writes_directly", "seizes"])
def test_by_the_number_of_another_thread(watched: Watched, act: str) -> None:
    """Both calls take any thread's, and the gate's table has processes."""
    code = "import threading,time,sys; threading.Thread(target=time.sleep, args=(60,)).start(); print(id(b'x'*999)+64); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=watched.instance.cgroup.enter,
    ) as victim:
        assert victim.stdout is not None
        address = victim.stdout.readline().strip()
        watched.told()
        attacker = watched.run(act, str(other_thread(victim.pid)), address, governed=False)
        found = watched.told_of(victim.pid)
        victim.kill()
    assert [event.by for event in found] == [attacker]


def test_in_a_storm_of_ones_own(watched: Watched) -> None:
    """What comes too often is counted by kind: the flood of one hides no other."""
    watched.told()
    pid = watched.run("storms", "5000")
    script = f"{watched.program} storms 5000; exec {watched.program} unshares"
    storm = subprocess.Popen(["sh", "-c", script], preexec_fn=watched.instance.cgroup.enter)
    assert storm.wait(COMMAND_SECONDS) == 0
    told = [event for event in watched.told() if isinstance(event, ProcessEvent)]
    assert {event.pid for event in told if event.suspicion is Finding.NAMESPACE_CHANGED} == {storm.pid}
    assert {event.pid for event in told if event.suspicion is Finding.ANONYMOUS_CODE} > {pid}


def test_as_one_who_may_write_to_the_gate(watched: Watched) -> None:
    """Who enters itself in the list of those whose changes are not told is told for that."""
    watched.told()
    code = (
        "import os; from pathlib import Path; from egs_kernel.gate.drift import DriftGate; "
        "from egs_kernel.gate.pins import Gate; from egs_kernel.model import TaskIdentity; "
        "from egs_kernel.processes import start_ticks; "
        f"pins = Path('{watched.instance.paths.pins}'); me = os.getpid(); "
        "DriftGate.open(pins).trust(TaskIdentity(me, start_ticks(me))); Gate.open(pins).beat()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(COMMAND_SECONDS) == 0
    told = [event for event in watched.told() if isinstance(event, HostEvent)]
    assert [event.subject for event in told] == ["drift/drift_writers"]
    assert f"by process {process.pid} " in told[0].now
    drift = DriftGate.open(watched.instance.paths.pins)
    assert list(drift.writers()) == [os.getpid()], "and it is taken from the list"
    drift.close()


def test_through_memory_that_was_opened_before_the_exec(watched: Watched) -> None:
    """Nobody needs to be told of that: it is the memory of what ran before, whose end the exec was."""
    code = "import os,sys; print('up', flush=True); sys.stdin.readline(); os.execv(sys.argv[1], [sys.argv[1], 'waits'])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(watched.program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=watched.instance.cgroup.enter,
    ) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        assert victim.stdout.readline() == "up\n"
        memory = os.open(f"/proc/{victim.pid}/mem", os.O_RDWR)
        victim.stdin.write("go\n")
        victim.stdin.flush()
        address = int(victim.stdout.readline(), 16)
        assert os.pwrite(memory, b"rewritten", address) == 0, "nothing is there any more"
        os.close(memory)
        victim.kill()


def test_o21_a_process_that_was_only_moved_in(watched: Watched) -> None:
    """Open, as O-7 is: it has executed nothing under the gate, and nothing was authorized that it could drift from."""
    with watched.victim(governed=False) as (pid, address):
        watched.instance.cgroup.procs.write_text(f"{pid}\n")
        watched.told()
        watched.run("writes_directly", str(pid), address, governed=False)
        assert watched.told() == []


def test_o21_by_a_ring(watched: Watched, tmp_path: Path) -> None:
    """Open: io_uring opens the memory and writes it, and there is no call that an event could tell of."""
    rings = compile_program("rings", tmp_path)
    with watched.victim() as (pid, address):
        done = subprocess.run([str(rings), f"/proc/{pid}/mem", address], check=False, timeout=COMMAND_SECONDS)
        if done.returncode in NO_RINGS:
            pytest.skip("this kernel has no io_uring for us")
        assert done.returncode == 0
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(int(address, 16))
            assert memory.read(9) == b"rewritten"
        assert watched.told() == []
        watched.run("writes_memory", f"/proc/{pid}/mem", address, governed=False)
        assert [event.suspicion for event in watched.told_of(pid)] == [Finding.MEMORY_WRITTEN], (
            "by calls it is"
        )


def test_o21_a_daemon_that_was_taken_over(watched: Watched) -> None:
    """Open: the changes of egsd itself are not told, whoever makes them in its place."""
    own = TaskIdentity(os.getpid(), start_ticks(os.getpid()))
    drift = DriftGate.open(watched.instance.paths.pins)
    drift.trust(own)
    watched.told()
    gate = Gate.open(watched.instance.paths.pins)
    gate.stop_beating()
    gate.close()
    drift.close()
    assert watched.told() == []
