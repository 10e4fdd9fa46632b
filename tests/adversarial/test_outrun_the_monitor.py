"""T-41: what drifts tries to get away: it forks faster than it can be ended, is let go on, executes something else, floods."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import ArtifactChange, Exec, FindingEntry
from egs_kernel.findings import Finding
from egs_kernel.gate.cgroups import cgroup_mount, cgroup_of, move, processes_below
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Tier
from egs_kernel.monitor.told import MOST
from tests.monitoring import Monitor, Obedient
from tests.refusals import TIER
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.entries import ResponseEntry

pytestmark = pytest.mark.kernel

LIBC: Final = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_CONT, PTRACE_O_TRACEEXIT, WALL = 0x4206, 7, 1 << 6, 0x40000000
DRIFT: Final = "kept.append(mmap.mmap(-1,4096,prot=7))"
SPAWN: Final = (
    r"exec('def spawn(path):\n try: return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path,[path],{}),0)[1])"
    r"\n except PermissionError: return -9\n',globals())"
)
"""How a program ended: killed by the gate at its exec, or refused before."""
STORM: Final = """
exec("def storm():\\n while True:\\n  if os.fork(): os._exit(0)\\n")
""".strip()
"""Each process makes the next one and ends: whoever goes through a list of them finds nobody."""


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these."""
    with running_on_disk() as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor."""
    started = Monitor(system)
    started.start()
    yield started
    started.stop()


def drifted(
    system: Running, monitor: Monitor, response: str, before: str = "pass"
) -> tuple[Obedient, ResponseEntry]:
    """A program that has drifted, and what was done about it."""
    name = f"to-{response}-{len(before)}"
    program = Obedient(system, name, constraints=f'[drift.on]\nanonymous_code = "{response}"\n')
    pid = program.start()
    monitor.begun(pid)
    program.tell(before)
    program.say(DRIFT)
    return program, monitor.response(monitor.finding(Finding.ANONYMOUS_CODE, pid))


def exit_of(program: Obedient) -> int:
    assert program.process is not None
    return program.process.wait(SECONDS)


def test_it_is_ended_with_everything_that_it_started(system: Running, monitor: Monitor) -> None:
    program, done = drifted(
        system,
        monitor,
        "terminate",
        "[os.fork() or time.sleep(600) for _ in range(20)] if os.fork()==0 else 0",
    )
    assert done.verified
    assert done.processes >= 22
    assert exit_of(program) == -signal.SIGKILL
    assert list(processes_below(system.instance.cgroup.folder)) == []
    program.stop()


def test_a_storm_of_forks_is_ended(system: Running, monitor: Monitor) -> None:
    """Three chains of processes, none of which lives long enough to be found by its number."""
    program, done = drifted(system, monitor, "terminate", f"{STORM};[os.fork() or storm() for _ in range(3)]")
    assert done.verified, done
    assert exit_of(program) == -signal.SIGKILL
    assert list(processes_below(system.instance.cgroup.folder)) == []
    assert done.detail == ""
    program.stop()


def test_what_is_held_on_its_way_out_is_told(system: Running, monitor: Monitor) -> None:
    """Killed, it stops once more, for who traces it (PTRACE_O_TRACEEXIT): it runs no more, and it is not gone. Nobody else waits for it."""
    bystander = Obedient(system, "passes-by")
    bystander.start()
    program = Obedient(system, "is-held", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    pid = program.start()
    monitor.begun(pid)
    assert LIBC.ptrace(PTRACE_SEIZE, pid, None, PTRACE_O_TRACEEXIT) == 0
    program.say(DRIFT)
    os.waitpid(pid, WALL)
    bystander.tell("pass")
    done = monitor.response(monitor.finding(Finding.ANONYMOUS_CODE, pid))
    assert (done.verified, done.processes) == (False, 1)
    assert done.detail == f"reached, and still there: process {pid} in state t"
    LIBC.ptrace(PTRACE_CONT, pid, None, None)
    assert exit_of(program) == -signal.SIGKILL
    program.stop()
    bystander.stop()


def test_what_is_suspended_is_nobodys_to_continue(system: Running, monitor: Monitor) -> None:
    """It stands; who sends it SIGCONT ends it, as it dies on its way to its first instruction."""
    program, done = drifted(system, monitor, "suspend")
    assert program.process is not None
    assert done.verified
    stat = Path(f"/proc/{program.process.pid}/stat").read_text()
    assert stat.rpartition(")")[2].split()[0] == "T"
    if TIER is Tier.LSM:  # the signal is refused, and it stands on
        with pytest.raises(PermissionError):
            os.kill(program.process.pid, signal.SIGCONT)
    else:
        os.kill(program.process.pid, signal.SIGCONT)
        assert exit_of(program) == -signal.SIGKILL
    program.stop()


def test_what_waits_for_its_child_and_takes_no_signal_is_suspended_with_it(
    system: Running, monitor: Monitor
) -> None:
    """Who has called vfork(2) does not stop until the child executes something: here that waits for a pipe's other end."""
    pipe = system.folder / "nobody-writes"
    os.mkfifo(pipe)
    program = Obedient(system, "waits", constraints='[drift.on]\nprogram_deleted = "suspend"\n')
    pid = program.start()
    monitor.begun(pid)
    opens = f"[(os.POSIX_SPAWN_OPEN,0,{str(pipe)!r},os.O_RDONLY,0)]"
    program.say(f"os.posix_spawn('/bin/true',['true'],{{}},file_actions={opens})")
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not children.read_text() or "\nState:\tD" not in Path(f"/proc/{pid}/status").read_text():
        os.sched_yield()
    program.program.unlink()
    done = monitor.response(monitor.finding(Finding.PROGRAM_DELETED, pid))
    with closing(Gate.open(system.instance.paths.pins)) as gate:
        tree = [task for task in gate.governed() if task.execution == done.execution]
    for task in tree:
        os.kill(task.pid, signal.SIGKILL)
    program.stop()
    assert (done.verified, done.processes) == (True, 2), done.detail
    assert [task.suspended for task in tree] == [True, True]


def test_what_is_suspended_goes_on_when_root_says_so(system: Running, monitor: Monitor) -> None:
    program, done = drifted(system, monitor, "suspend", "0")
    assert done.verified
    system.instance.egs("drift", "resume", str(done.execution))
    program._expect("done")
    program.tell("pass")
    program.stop()


def test_what_is_quarantined_executes_nothing(system: Running, monitor: Monitor) -> None:
    """It goes on, and what it executes is refused, though it is authorized; so for what it forked before, and forks then."""
    true = system.copy("/bin/true", "true-for-all")
    system.add(system.issue(true, name="true.json"))
    waits = f"r,w=os.pipe();c=os.fork() or (os.read(r,1),os._exit(-spawn({str(true)!r})))"
    program, done = drifted(system, monitor, "quarantine", f"{SPAWN};assert spawn({str(true)!r})==0;{waits}")
    assert (done.verified, done.processes) == (True, 2)
    program._expect("done")
    program.tell(f"assert spawn({str(true)!r})==-9")
    program.tell("os.write(w,b'x');assert os.waitstatus_to_exitcode(os.waitpid(c,0)[1])==9")
    program.tell(f"d=os.fork() or os._exit(-spawn({str(true)!r}))")
    program.tell("assert os.waitstatus_to_exitcode(os.waitpid(d,0)[1])==9")
    refused = system.wait_for(
        Exec, lambda entry: entry.event.filename == str(true) and entry.event.verdict.name != "ALLOW"
    )
    assert refused.event.reason.code == "child_refused"
    assert system.inside(str(true)) == 0, "others are not hit"
    program.stop()


def test_a_number_that_became_another_process_is_not_hit(system: Running, monitor: Monitor) -> None:
    """It drifts and ends at once; another program of the scope takes its number, as nearly as that can be had."""
    bystander = Obedient(system, "bystander")
    pid = bystander.start()
    monitor.begun(pid)
    program = Obedient(system, "ends-at-once", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    for _ in range(5):
        program.start()
        program.say(f"{DRIFT};os._exit(3)")
        assert exit_of(program) in {3, -signal.SIGKILL}
        program.stop()
    bystander.tell("pass")
    bystander.stop()


@pytest.mark.skipif(TIER is Tier.LSM, reason="on tier lsm the gate refuses such code")
def test_a_flood_is_counted_and_hits_nobody_else(system: Running, monitor: Monitor) -> None:
    """Hundreds of distinct findings about one execution: some are told, the rest is counted; what is graver is answered; another program goes on."""
    bystander = Obedient(system, "stands-by", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    other = bystander.start()
    monitor.begun(other)
    program = Obedient(system, "floods", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    pid = program.start()
    monitor.begun(pid)
    folder = system.folder / "many"
    folder.mkdir()
    program.tell(
        f"[(open('{folder}/%d'%n,'wb').write(bytes(4096)),"
        f"kept.append(mmap.mmap(os.open('{folder}/%d'%n,os.O_RDONLY),4096,flags=2,prot=5))) for n in range(300)]"
    )
    monitor.finding(Finding.CODE_MAPPED, pid)
    told = [entry for entry in system.entries(FindingEntry) if entry.pid == pid]
    assert 0 < len(told) <= MOST
    counted = system.wait_for(FindingEntry, lambda entry: entry.finding is Finding.EVENTS_LOST)
    assert (counted.source, counted.count > 0) == ("monitor", True)
    program.say(DRIFT)
    assert exit_of(program) == -signal.SIGKILL, "no flood of what is only told hides it"
    bystander.tell("pass")
    bystander.stop()
    program.stop()


def test_a_monitor_that_is_killed_before_it_responds_is_followed_by_one_that_does(
    system: Running, monitor: Monitor
) -> None:
    """It is stopped (and killed) as the finding is made; the next one compares with the record, and responds."""
    program = Obedient(system, "waits-for-it", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    pid = program.start()
    monitor.begun(pid)
    os.kill(monitor.pid, signal.SIGSTOP)
    program.tell(DRIFT)
    monitor.stop(signal.SIGKILL)
    assert program.process is not None
    assert program.process.poll() is None
    monitor.start()
    assert monitor.response(monitor.finding(Finding.ANONYMOUS_CODE, pid)).verified
    assert exit_of(program) == -signal.SIGKILL
    program.stop()


def test_a_monitor_that_is_killed_at_any_moment_misses_nothing_that_lasts(
    system: Running, monitor: Monitor
) -> None:
    """Killed before it can look, as it finds, and as it has responded: what lasts is found by the next, and answered, once."""
    program = Obedient(system, "outlives-monitors", constraints='[drift.on]\nanonymous_code = "terminate"\n')
    for moment in ("at once", "found", "answered"):
        pid = program.start()
        monitor.begun(pid)
        program.say(DRIFT)
        if moment == "found":
            monitor.finding(Finding.ANONYMOUS_CODE, pid)
        elif moment == "answered":
            assert exit_of(program) == -signal.SIGKILL
        monitor.stop(signal.SIGKILL)
        monitor.start()
        assert exit_of(program) == -signal.SIGKILL
        assert len([found for found in monitor.all() if found[1] == pid]) <= 1
        program.stop()


def test_what_drifts_before_the_record_has_its_exec_meets_what_was_signed() -> None:
    """The daemon stands still, so that nothing of the exec is recorded; the response is the artifact's all the same."""
    with running_on_disk(drift="required") as running:
        watching = Monitor(running, 'interval = "30s"\n')
        watching.start()
        program = Obedient(running, "is-early", constraints='[drift.on]\nnamespace_changed = "terminate"\n')
        running.wait_for(ArtifactChange, lambda entry: entry.artifact_id == program.artifact_id)
        with running.paused():
            program.start()
            program.say("libc.unshare(0x04000000)")
            assert exit_of(program) == -signal.SIGKILL
        found = running.wait_for(FindingEntry, lambda entry: entry.finding is Finding.NAMESPACE_CHANGED)
        assert (found.artifact_id, found.rule) == (program.artifact_id, "artifact")
        assert watching.response(found).verified
        program.stop()
        watching.stop()


def test_who_is_moved_into_the_cgroup_of_what_is_ended_is_not_hit(system: Running, monitor: Monitor) -> None:
    """An execution with a cgroup of its own ends by one write to it; root has moved another program in there meanwhile."""
    bystander = Obedient(system, "moved-in")
    other = bystander.start()
    monitor.begun(other)
    constraints = '[resources]\nwallSeconds = 600\n[drift.on]\nanonymous_code = "terminate"\n'
    program = Obedient(system, "has-a-cgroup", constraints=constraints, stands=False)
    pid = program.launch()
    monitor.begun(pid)
    own = cgroup_mount() / cgroup_of(pid).lstrip("/")
    assert own.name.startswith("egs-tree-")
    move(other, own)
    program.say(DRIFT)
    assert monitor.response(monitor.finding(Finding.ANONYMOUS_CODE, pid)).verified
    assert exit_of(program) == -signal.SIGKILL
    bystander.tell("pass")
    bystander.stop()
    program.stop()
