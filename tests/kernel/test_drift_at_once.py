"""The monitor between two sweeps, which are an hour apart: what only events can tell it, found and answered at once."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import BaselineEntry, FindingEntry
from egs_kernel.findings import Finding
from egs_kernel.gate import libbpf
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.model import Verdict
from tests.harness import OWN_MACHINE, REPOSITORY
from tests.monitoring import PYTHON, Monitor, Obedient, as_nobody_who_may_set_groups, text_of
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

LIBC: Final = ctypes.CDLL(None, use_errno=True)
on_a_machine_of_its_own = pytest.mark.skipif(
    not OWN_MACHINE, reason="needs a machine of the tests' own: tests/vm has them"
)
MODULE: Final = "dummy"
"""A driver of network interfaces that are none; with `numdummies=0` it makes none of those either."""
STEP: Final = 600_000_000_000
"""Nanoseconds."""
USER_TAINT: Final = 64
"""What root says that the kernel is tainted by; it lasts until the next boot (Documentation/admin-guide/tainted-kernels.rst)."""
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these."""
    with running_on_disk(drift="required") as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor, whose next sweep no test waits for."""
    started = Monitor(system, 'interval = "1h"\n')
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def program(system: Running, monitor: Monitor) -> Obedient:
    """A program that does what it is told. Its artifact stands only while somebody watches."""
    assert monitor.pid
    return Obedient(system, "obedient", constraints='[drift.on]\nanonymous_code = "terminate"\n')


@pytest.fixture
def victim(program: Obedient, monitor: Monitor) -> Iterator[int]:
    """A process of it, which the monitor has seen begin."""
    pid = program.start()
    monitor.begun(pid)
    yield pid
    program.stop()


def test_a_namespace_that_is_left_and_entered_again(victim: int, program: Obedient, monitor: Monitor) -> None:
    program.tell(
        "d=os.open('/proc/self/ns/uts',0);assert libc.unshare(0x04000000)==0;assert libc.setns(d,0)==0"
    )
    assert monitor.finding(Finding.NAMESPACE_CHANGED, victim).source == "drift"


def test_a_tracer_that_comes_and_goes(victim: int, monitor: Monitor) -> None:
    assert LIBC.ptrace(PTRACE_SEIZE, victim, None, None) == 0
    LIBC.ptrace(PTRACE_INTERRUPT, victim, None, None)
    os.waitpid(victim, 0)
    assert LIBC.ptrace(PTRACE_DETACH, victim, None, None) == 0
    found = monitor.finding(Finding.TRACED, victim)
    assert (found.source, found.by) == ("drift", os.getpid())


def test_memory_that_is_written_and_written_back(victim: int, monitor: Monitor) -> None:
    with Path(f"/proc/{victim}/mem").open("r+b", buffering=0) as memory:
        memory.seek(text_of(victim))
        before = memory.read(1)
        memory.seek(text_of(victim))
        memory.write(before)
    found = monitor.finding(Finding.MEMORY_WRITTEN, victim)
    assert (found.source, found.by) == ("drift", os.getpid())


def test_a_process_that_is_moved_out_and_back(system: Running, victim: int, monitor: Monitor) -> None:
    (cgroup_mount() / "cgroup.procs").write_text(f"{victim}\n")
    system.instance.cgroup.procs.write_text(f"{victim}\n")
    assert monitor.finding(Finding.CGROUP_LEFT, victim).source == "drift"


def test_shellcode_ends_the_program_before_a_sweep_would_look(
    victim: int, program: Obedient, monitor: Monitor
) -> None:
    program.say("kept.append(mmap.mmap(-1,4096,prot=7))")
    found = monitor.finding(Finding.ANONYMOUS_CODE, victim)
    response = monitor.response(found)
    assert (found.source, response.response, response.verified) == ("drift", "terminate", True)
    assert program.process is not None
    assert program.process.wait(20) == -9


def test_a_program_that_is_deleted(system: Running, monitor: Monitor) -> None:
    gone = Obedient(system, "gone")
    pid = gone.start()
    monitor.begun(pid)
    gone.program.unlink()
    assert monitor.finding(Finding.PROGRAM_DELETED, pid).source == "files"
    gone.stop()


def test_a_group_of_others_that_a_process_gives_itself(program: Obedient, monitor: Monitor) -> None:
    """The event says what it is in now, and the baseline in which groups it began."""
    pid = program.start(as_nobody_who_may_set_groups)
    monitor.begun(pid)
    program.tell("os.setresgid(6,6,6)")
    assert monitor.finding(Finding.CREDENTIALS_RAISED, pid, "groups 6 ").source == "drift"
    program.stop()


def test_a_script_that_is_rewritten(system: Running, monitor: Monitor) -> None:
    named = system.folder / "named.conf"
    named.write_text("as signed\n")
    reader = Obedient(system, "reader", more=("--library", str(named)))
    pid = reader.start()
    monitor.begun(pid)
    named.write_text("not as signed\n")
    found = monitor.finding(Finding.SUBJECT_CHANGED, pid)
    assert found.source == "files"
    reader.stop()


def test_a_launch_into_namespaces_of_its_own_is_no_drift(system: Running, monitor: Monitor) -> None:
    """The launcher goes there, made to by the daemon, before it is the program."""
    assert monitor.pid
    constraints = system.folder / "apart.toml"
    constraints.write_text('[network]\nmode = "none"\n')
    artifact = system.issue(
        Path("/bin/true"), "--argv", "/bin/true", "--constraints", str(constraints), name="apart.json"
    )
    launched = system.run("--artifact", str(artifact), "--", "/bin/true")
    assert launched.returncode == 0, launched.stderr
    after = Obedient(system, "after")
    pid = after.start()
    monitor.begun(pid)
    after.tell("d=os.open('/proc/self/ns/uts',0);assert libc.setns(d,0)==0")
    monitor.finding(Finding.NAMESPACE_CHANGED, pid)
    of_nobody = [
        e for e in system.entries(FindingEntry) if e.finding is Finding.NAMESPACE_CHANGED and not e.execution
    ]
    assert of_nobody == [], "what came before has been judged by now"
    after.stop()


def test_a_launch_by_a_governed_program_is_no_drift_of_either(system: Running, monitor: Monitor) -> None:
    """`egs run` within the scope, under an artifact that gives no network: made to, the launcher leaves the one that it had."""
    inner = Obedient(system, "alone", constraints='[network]\nmode = "none"\n', stands=False)
    script = system.folder / "launches.py"
    arguments = ["egs", "run", "--artifact", str(inner.artifact), "--", *inner.command]
    script.write_text(
        f"import sys; sys.path.append({str(REPOSITORY)!r}); sys.argv = {arguments!r}\n"
        "from egs_kernel.cli import main; main()\n"
    )
    command = [str(PYTHON), "-IS", str(script)]
    words = [part for word in command for part in ("--argv", word)]
    system.add(system.issue(PYTHON, *words, "--script", str(script), name="launches.json"))
    pid = inner.start(command=command, env=system.instance.environment)
    (executed,) = system.wait_for_exec(inner.program, Verdict.ALLOW)
    execution = executed.event.execution
    begun = system.wait_for(BaselineEntry, lambda entry: entry.execution == execution)
    own = {fact.name: fact.value for fact in begun.facts}
    assert own["net"] == str(Path(f"/proc/{pid}/ns/net").stat().st_ino)
    assert own["net"] != str(Path("/proc/self/ns/net").stat().st_ino), "it was given another one"
    inner.tell("assert libc.unshare(0x04000000)==0")
    found = monitor.finding(Finding.NAMESPACE_CHANGED, pid)
    assert found.execution == execution
    assert [entry for entry in monitor.all() if entry[1] == pid] == [
        ("namespace_changed", pid, found.detail)
    ], "and nothing before that"
    inner.stop()


def test_a_link_of_the_gate_that_is_unpinned(system: Running, monitor: Monitor) -> None:
    """Held open here, so that the next test has a gate."""
    pin = system.instance.paths.pins / "link_gate_fork"
    link = libbpf.open_pin(pin)
    pin.unlink()
    found = system.wait_for(FindingEntry, lambda entry: entry.finding is Finding.GATE_LINK_LOST)
    assert (found.severity, found.source) == ("critical", "integrity")
    assert "link_gate_fork" in found.detail
    libbpf.pin(link, pin)
    os.close(link)


def test_what_the_daemon_and_the_monitor_do_to_the_gate_is_no_finding(
    system: Running, monitor: Monitor
) -> None:
    """Heartbeats, grants and a response that was written to it meanwhile, all of this file's; and another daemon."""
    system.stop()
    system.start()
    after = Obedient(system, "after-all")
    pid = after.start()
    monitor.begun(pid)
    after.tell("d=os.open('/proc/self/ns/uts',0);assert libc.setns(d,0)==0")
    monitor.finding(Finding.NAMESPACE_CHANGED, pid)
    host = {Finding.GATE_TAMPERED, Finding.EVENTS_LOST}
    assert not [entry for entry in system.entries(FindingEntry) if entry.finding in host]
    after.stop()


def of_host(system: Running, finding: Finding, word: str) -> FindingEntry:
    return system.wait_for(FindingEntry, lambda entry: entry.finding is finding and word in entry.detail)


def set_clock(nanoseconds: int) -> None:
    """Set it to so much later."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME) + nanoseconds)


def steps(system: Running) -> list[FindingEntry]:
    return [entry for entry in system.entries(FindingEntry) if entry.finding is Finding.CLOCK_STEPPED]


# -- the host: only where the machine is the tests' own ------------------------------------------------


@on_a_machine_of_its_own
def test_a_clock_that_is_set_and_set_back(system: Running, monitor: Monitor) -> None:
    """Each is told, by no sweep; and a record in which time goes backwards is one that verifies."""
    assert monitor.pid
    set_clock(STEP)
    try:
        system.wait_for(FindingEntry, lambda _: len(steps(system)) == 1)
    finally:
        set_clock(-STEP)
    system.wait_for(FindingEntry, lambda _: len(steps(system)) == 2)
    assert [entry.source for entry in steps(system)] == ["clock"] * 2
    system.instance.egs("audit", "verify")


@on_a_machine_of_its_own
def test_a_module_is_told_as_it_is_loaded(system: Running, monitor: Monitor) -> None:
    assert monitor.pid
    subprocess.run(["modprobe", MODULE, "numdummies=0"], check=True)
    assert of_host(system, Finding.MODULE_LOADED, MODULE).source == "drift"
    subprocess.run(["rmmod", MODULE], check=True)


@on_a_machine_of_its_own
def test_what_came_while_nobody_looked_is_told_by_a_sweep(system: Running, monitor: Monitor) -> None:
    """A module that is there and a taint, after a monitor that saw neither; the module that went, and came back, it has told of already."""
    monitor.stop()
    subprocess.run(["modprobe", MODULE, "numdummies=0"], check=True)
    Path("/proc/sys/kernel/tainted").write_text(f"{USER_TAINT}\n")
    try:
        monitor.rules('interval = "1s"\n')
        monitor.start()
        assert of_host(system, Finding.KERNEL_TAINTED, "tainted: 0 → 64").source == "kernel"
        assert of_host(system, Finding.MODULE_LOADED, f"{MODULE}: none → loaded").source == "kernel"
    finally:
        subprocess.run(["rmmod", MODULE], check=True)
    assert of_host(system, Finding.MODULE_LOADED, f"{MODULE}: loaded → none").source == "kernel"
