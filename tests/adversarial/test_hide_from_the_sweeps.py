"""Goal: drift so that no sweep sees it, where no event tells (T-44): behind another thread, another file, another number."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.findings import Finding
from egs_kernel.gate.pins import Gate
from egs_kernel.monitor.opened import Process
from egs_kernel.monitor.trees import held_open
from tests.adversarial.arena import clone
from tests.harness import compile_program
from tests.monitoring import Monitor, Obedient
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

LIBC: Final = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
SHELLCODE: Final = "kept.append(mmap.mmap(-1,4096,prot=7))"
NAMESPACE: Final = "assert libc.unshare(0x04000000)==0"
THREAD: Final = (
    "import threading;done=threading.Event();"
    "threading.Thread(target=lambda:(kept.append(libc.unshare({flags})),done.set(),time.sleep(600)),daemon=True).start();"
    "done.wait();assert kept==[0]"
)
GOES_ON: Final = (
    'import threading;exec(\'def serve():\\n print("done",flush=True)\\n'
    ' for line in open(0,closefd=False):\\n  exec(line,globals());print("done",flush=True)\\n\',globals());'
    "threading.Thread(target=serve).start();libc.syscall(60,0)"
)
"""Another thread obeys from now on, and the first one ends (exit(2), number 60)."""


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these; no drift event tells anything."""
    with running_on_disk(drift="off") as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor, which sweeps every second."""
    started = Monitor(system)
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def program(system: Running) -> Obedient:
    return Obedient(system, "hides")


@pytest.fixture
def victim(program: Obedient, monitor: Monitor) -> Iterator[int]:
    """A process of it, which the monitor has seen begin."""
    pid = program.start()
    monitor.begun(pid)
    yield pid
    program.stop()


def kinds(monitor: Monitor, pid: int) -> set[str]:
    return {found[0] for found in monitor.all() if found[1] == pid}


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def other_thread(pid: int) -> int:
    return next(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid)


def test_behind_a_first_thread_that_has_ended(victim: int, program: Obedient, monitor: Monitor) -> None:
    """The kernel shows nothing any more in the folder of the process: no memory, no namespaces, no root."""
    program.tell(GOES_ON)
    while state_of(victim) != "Z":
        os.sched_yield()
    assert Path(f"/proc/{victim}/maps").read_bytes() == b""
    program.tell(SHELLCODE)
    program.tell(NAMESPACE)
    program.tell("os.chroot('/var/tmp')")
    for finding in (Finding.ANONYMOUS_CODE, Finding.NAMESPACE_CHANGED, Finding.ROOT_CHANGED):
        assert monitor.finding(finding, victim).source == "sweep"
    assert kinds(monitor, victim) == {"anonymous_code", "namespace_changed", "root_changed"}


def test_in_a_thread_of_ones_own(victim: int, program: Obedient, monitor: Monitor) -> None:
    """Namespaces are each thread's: the first one stays where it was."""
    program.tell(THREAD.format(flags="0x04000000"))
    assert os.stat(f"/proc/{victim}/ns/uts").st_ino == os.stat("/proc/self/ns/uts").st_ino  # noqa: PTH116 - of a link
    assert monitor.finding(Finding.NAMESPACE_CHANGED, victim).source == "sweep"


def test_as_the_tracer_of_another_thread(victim: int, program: Obedient, monitor: Monitor) -> None:
    program.tell(THREAD.format(flags="0"))
    thread = other_thread(victim)
    assert LIBC.ptrace(PTRACE_SEIZE, thread, None, None) == 0
    try:
        assert "\nTracerPid:\t0\n" in Path(f"/proc/{victim}/status").read_text()
        found = monitor.finding(Finding.TRACED, victim)
        assert (found.source, found.by) == ("sweep", os.getpid())
    finally:
        LIBC.ptrace(PTRACE_INTERRUPT, thread, None, None)
        os.waitpid(thread, WALL)
        LIBC.ptrace(PTRACE_DETACH, thread, None, None)


def test_in_the_code_that_the_kernel_gave(victim: int, program: Obedient, monitor: Monitor) -> None:
    """Every process has it, and nobody looks there: it is made writable, written, and made what it was."""
    program.tell(
        "l=next(l for l in open('/proc/self/maps') if '[vdso]' in l);a,e=(int(x,16) for x in l.split()[0].split('-'));"
        "libc.mprotect.argtypes=[ctypes.c_void_p,ctypes.c_size_t,ctypes.c_int];assert libc.mprotect(a,e-a,7)==0;"
        "ctypes.memset(e-16,0xc3,8);assert libc.mprotect(a,e-a,5)==0"
    )
    assert "[vdso]" in monitor.finding(Finding.MEMORY_WRITTEN, victim).detail
    assert kinds(monitor, victim) == {"memory_written"}


def test_under_the_name_of_another_program(system: Running, monitor: Monitor) -> None:
    """It leaves its file, and has the kernel say that it executes /bin/true."""
    wears = compile_program("wears", system.folder)
    system.add(system.issue(wears, name="wears.json"))
    with subprocess.Popen(
        [str(wears), "/bin/true"], stdout=subprocess.PIPE, preexec_fn=system.instance.cgroup.enter
    ) as process:
        system.instance.reap_also(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == b"worn\n"
        assert Path(f"/proc/{process.pid}/exe").readlink().name == "true"
        for finding in (Finding.PROGRAM_CHANGED, Finding.PROGRAM_REPLACED):
            assert "/true" in monitor.finding(finding, process.pid).detail
        process.kill()


def test_by_the_number_of_one_that_ended(system: Running, monitor: Monitor, program: Obedient) -> None:
    """Who was listed under it is neither read nor signalled any more: it is another process's, of the same scope."""
    pid = program.start()
    monitor.begun(pid)
    with closing(Gate.open(system.instance.paths.pins)) as gate:
        listed = gate.governed_task(pid)
        assert listed is not None
        Process(listed).close()
        with held_open(listed, gate) as pidfd:
            assert pidfd is not None
        program.stop()
        if clone(0, set_tid=pid) == 0:
            system.instance.cgroup.enter()
            signal.pause()
            os._exit(0)
        try:
            while (now := gate.governed_task(pid)) is None or now.born == listed.born:
                os.sched_yield()
            with pytest.raises(ProcessLookupError, match="another one"):
                Process(listed)
            with held_open(listed, gate) as pidfd:
                assert pidfd is None
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
