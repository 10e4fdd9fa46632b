"""What the drift programs tell: real attacks on governed processes, and by them, each seen, and not seen where nobody looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.drift.observations import HostEvent, Lost, ProcessEvent, Queue
from egs_kernel.errors import GateError
from egs_kernel.findings import Finding
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.drift import DriftGate
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks
from tests.drifting import Watched, watched_instance
from tests.harness import COMMAND_SECONDS, Instance

pytestmark = pytest.mark.kernel

OWN = {
    "anonymous": Finding.ANONYMOUS_CODE,
    "protects": Finding.ANONYMOUS_CODE,
    "protects32": Finding.ANONYMOUS_CODE,
    "maps32": Finding.ANONYMOUS_CODE,
    "implies": Finding.ANONYMOUS_CODE,
    "shared": Finding.ANONYMOUS_CODE,
    "maps": Finding.CODE_MAPPED,
    "unshares": Finding.NAMESPACE_CHANGED,
    "enters": Finding.NAMESPACE_CHANGED,
    "born_apart": Finding.NAMESPACE_CHANGED,
    "chroots": Finding.ROOT_CHANGED,
    "pivots": Finding.ROOT_CHANGED,
    "regains": Finding.CREDENTIALS_RAISED,
    "regains_group": Finding.CREDENTIALS_RAISED,
    "keeps_capabilities": Finding.CAPABILITIES_RAISED,
    "executes_memory": Finding.MEMFD_EXECUTED,
    "writes_itself": Finding.MEMORY_WRITTEN,
    "writes_nested": Finding.MEMORY_WRITTEN,
    "is_traced": Finding.TRACED,
}
"""What a program does to itself → what is told of it."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_instance(tmp_path_factory.mktemp("drift")) as system:
        yield system


def words(act: str) -> tuple[str, ...]:
    return (act, "/bin/true") if act == "maps" else (act,)


@pytest.mark.parametrize("act", OWN)
def test_what_a_process_does_is_told(watched: Watched, act: str) -> None:
    watched.told()
    pid = watched.run(*words(act))
    everything = [event for event in watched.told() if isinstance(event, ProcessEvent)]
    found = [event for event in everything if event.suspicion is OWN[act]]
    assert found, (act, everything)
    if act not in ("writes_nested", "born_apart"):
        assert {event.pid for event in found} == {pid}
    assert all(event.start_ticks for event in found)


@pytest.mark.parametrize("act", OWN)
def test_of_a_process_that_is_not_governed_nothing_is_told(watched: Watched, act: str) -> None:
    watched.told()
    watched.run(*words(act), governed=False)
    assert watched.told() == []


def test_what_is_told_says_which_file_and_where(watched: Watched) -> None:
    watched.told()
    pid = watched.run("maps", "/bin/true")
    mapped = [event for event in watched.told_of(pid) if event.suspicion is Finding.CODE_MAPPED]
    file = Path("/bin/true").stat()
    assert [(event.file.inode, event.file.size, event.name) for event in mapped if event.file] == [
        (file.st_ino, file.st_size, "true")
    ]


def test_a_number_of_another_namespace_is_understood(watched: Watched) -> None:
    """The second child of a process in a pid namespace of its own is process 2 there."""
    watched.told()
    pid = watched.run("writes_nested")
    events = [event for event in watched.told() if isinstance(event, ProcessEvent)]
    born = [event.pid for event in events if event.suspicion is Finding.CHILD_UNEXPECTED]
    written = [event for event in events if event.suspicion is Finding.MEMORY_WRITTEN]
    assert len(born) == 2
    assert [(event.pid, event.by) for event in written] == [(born[1], born[0])]
    assert [
        event.name for event in events if event.pid == pid and event.suspicion is Finding.NAMESPACE_CHANGED
    ] == ["pid"]


DONE_TO = {
    "attaches": Finding.TRACED,
    "seizes": Finding.TRACED,
    "attaches32": Finding.TRACED,
    "writes_directly": Finding.MEMORY_WRITTEN,
    "writes_memory": Finding.MEMORY_WRITTEN,
}
"""What somebody outside does to a governed process → what is told."""


@pytest.mark.parametrize("act", DONE_TO)
def test_what_is_done_to_a_process_is_told(watched: Watched, act: str) -> None:
    with watched.victim() as (pid, address):
        target = f"/proc/{pid}/mem" if act == "writes_memory" else str(pid)
        attacker = watched.run(act, target, address, governed=False)
        found = watched.told_of(pid)
    assert [(event.suspicion, event.by) for event in found] == [(DONE_TO[act], attacker)]


@pytest.mark.parametrize("act", DONE_TO)
def test_what_is_done_to_others_is_not_told(watched: Watched, act: str) -> None:
    with watched.victim(governed=False) as (pid, address):
        target = f"/proc/{pid}/mem" if act == "writes_memory" else str(pid)
        watched.run(act, target, address, governed=False)
        assert watched.told() == []


def test_memory_is_watched_by_whatever_name_it_is_opened(watched: Watched, tmp_path: Path) -> None:
    link = tmp_path / "innocent"
    with watched.victim() as (pid, address):
        link.symlink_to(f"/proc/{pid}/mem")
        watched.run("writes_memory", str(link), address, governed=False)
        by_link = watched.told_of(pid)
        watched.run("writes_memory", f"/proc/{pid}/task/{pid}/mem", address, governed=False)
        by_thread = watched.told_of(pid)
    assert [event.suspicion for event in (*by_link, *by_thread)] == [Finding.MEMORY_WRITTEN] * 2


def test_memory_is_watched_by_another_mount_of_proc(watched: Watched, tmp_path: Path) -> None:
    place = tmp_path / "proc"
    place.mkdir()
    with watched.victim() as (pid, address):
        script = (
            f"mount -t proc none {place} && exec {watched.program} writes_memory {place}/{pid}/mem {address}"
        )
        subprocess.run(["unshare", "-m", "sh", "-c", script], check=True)
        assert [event.suspicion for event in watched.told_of(pid)] == [Finding.MEMORY_WRITTEN]


def test_reading_memory_is_not_told(watched: Watched) -> None:
    with watched.victim() as (pid, address):
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(int(address, 16))
            assert memory.read(9) == b"untouched"
        assert watched.told() == []


def test_a_process_that_is_moved_is_told_with_where_to(watched: Watched) -> None:
    with watched.victim() as (pid, _):
        (cgroup_mount() / "cgroup.procs").write_text(f"{pid}\n")
        found = watched.told_of(pid)
    assert [(event.suspicion, event.name, event.by) for event in found] == [
        (Finding.CGROUP_LEFT, "/", os.getpid())
    ]


def test_a_child_is_told_with_its_parent(watched: Watched) -> None:
    watched.told()
    pid = watched.run("born_apart")
    found = [event for event in watched.told() if isinstance(event, ProcessEvent) and event.by == pid]
    assert [(event.suspicion, event.name) for event in found] == [
        (Finding.CHILD_UNEXPECTED, ""),
        (Finding.NAMESPACE_CHANGED, "uts"),
    ]


def test_a_program_that_raises_its_user_is_told_at_its_exec(watched: Watched, tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    raised = tmp_path / "raised"
    raised.write_bytes(Path("/bin/true").read_bytes())
    raised.chmod(0o4755)
    watched.told()

    def enter() -> None:
        watched.instance.cgroup.enter()
        os.setresuid(65534, 65534, 65534)

    process = subprocess.Popen([str(raised)], preexec_fn=enter)
    assert process.wait(COMMAND_SECONDS) == 0
    found = [event for event in watched.told_of(process.pid) if event.suspicion is Finding.CREDENTIALS_RAISED]
    assert [event.number for event in found] == [0]


def test_a_map_that_somebody_changes_is_told(watched: Watched) -> None:
    """By the daemon's own code, in a process that is not the daemon."""
    watched.told()
    code = (
        "from pathlib import Path; from egs_kernel.gate.pins import Gate; "
        f"gate = Gate.open(Path('{watched.instance.paths.pins}')); gate.beat()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(COMMAND_SECONDS) == 0
    [event] = [event for event in watched.told() if isinstance(event, HostEvent)]
    assert (event.suspicion, event.subject) == (Finding.GATE_TAMPERED, "heartbeats")
    assert event.now.startswith(f"map update by process {process.pid} (")


def test_the_daemons_own_changes_are_not_told(watched: Watched) -> None:
    watched.told()
    gate = Gate.open(watched.instance.paths.pins)
    gate.beat()
    gate.close()
    assert watched.told() == []
    own = TaskIdentity(os.getpid(), start_ticks(os.getpid()))
    drift = DriftGate.open(watched.instance.paths.pins)
    drift.trust(TaskIdentity(own.pid, own.start_ticks + 1))
    gate = Gate.open(watched.instance.paths.pins)
    gate.beat()
    gate.close()
    assert drift.counters().told["gate_written"], "a successor of the daemon's number is not the daemon"
    drift.trust(own)
    drift.close()
    watched.told()


def test_a_storm_is_bounded_and_counted(watched: Watched) -> None:
    watched.told()
    list(watched.events.sweep())
    pid = watched.run("storms", "20000")
    seen = [event for event in watched.told_of(pid) if event.suspicion is Finding.ANONYMOUS_CODE]
    [lost] = list(watched.events.sweep())
    assert isinstance(lost, Lost)
    assert 0 < len(seen) < 1000
    assert len(seen) + lost.count >= 20000
    assert list(watched.events.sweep()) == []


def test_a_compiler_at_run_time_is_one_observation_a_second(watched: Watched) -> None:
    """It makes code again and again: the same is told, which a queue counts in one."""
    watched.told()
    pid = watched.run("protects_often", "200")
    told = [event for event in watched.told_of(pid) if event.suspicion is Finding.ANONYMOUS_CODE]
    assert len(told) >= 100
    assert len({event.name for event in told}) <= 2, "of two seconds, at most"
    queue = Queue()
    for event in told:
        queue.put(event)
    assert len(queue) <= 2


def test_a_storm_takes_no_room_from_the_grave(watched: Watched, tmp_path: Path) -> None:
    """Nobody reads while more children are born than there is room for; a tracer is told all the same."""
    watched.told()
    with watched.victim() as (pid, address):
        script = f"i=0; while [ $i -lt 2500 ]; do (:); i=$((i+1)); done; exec {watched.program} attaches {pid} {address}"
        storm = subprocess.Popen(["sh", "-c", script], preexec_fn=watched.instance.cgroup.enter)
        assert storm.wait(COMMAND_SECONDS) == 0
        found = watched.told_of(pid)
    assert Finding.TRACED in {event.suspicion for event in found}
    assert any(isinstance(each, Lost) for each in watched.events.sweep()), "the storm was none"


@pytest.mark.usefixtures("gate")
def test_where_no_drift_programs_are_wanted_none_are_loaded(instance: Instance) -> None:
    with pytest.raises(GateError) as caught:
        DriftGate.open(instance.paths.pins)
    assert caught.value.reason is Reason.GATE_NOT_LOADED
    assert json.loads(instance.paths.gate_manifest.read_text())["drift"] is None
