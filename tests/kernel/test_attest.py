from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.constraints import tracing
from egs_kernel.constraints.attest import (
    Before,
    Plan,
    attest,
    installed_filters,
    require_attestation,
)
from egs_kernel.constraints.proc import no_new_privs, seccomp_count
from egs_kernel.constraints.seccomp import compile_filter
from egs_kernel.constraints.syscalls import LAUNCH
from egs_kernel.constraints.tracing import STOP_DEADLINE
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from tests.harness import COMMAND_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.model import TaskIdentity

pytestmark = pytest.mark.kernel

CHILD: Final = Path(__file__).with_name("constrained.py")
NOBODY: Final = 65534
EPERM: Final = 1
ALLOW_ALL: Final = (0x06).to_bytes(2, sys.byteorder) + bytes(2) + (0x7FFF0000).to_bytes(4, sys.byteorder)

STRICT: Final = SyscallConstraint(profile="no-network")
WEAKER: Final = SyscallConstraint(profile="no-network", allow=("ptrace",))


class Programs:
    """Compiled filters as files that the child reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def step(self, name: str, program: bytes) -> str:
        path = self._folder / name
        path.write_bytes(program)
        return f"filter:{path}"


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture
def strict(programs: Programs) -> str:
    return programs.step("strict", compile_filter(STRICT))


@contextmanager
def child(*steps: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has done its steps and waits. It is gone afterwards."""
    with subprocess.Popen(
        [sys.executable, "-I", CHILD, *steps],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=pass_fds,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def released(process: subprocess.Popen[bytes]) -> int:
    """Send the awaited line; its exit code."""
    process.communicate(b"\n", timeout=COMMAND_SECONDS)
    return process.returncode


def status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise AssertionError(field)


def await_status(pid: int, field: str, value: str) -> None:
    deadline = time.monotonic() + 10
    while not status(pid, field).startswith(value):
        assert time.monotonic() < deadline, f"{field} is {status(pid, field)}, not {value}"
        os.sched_yield()


def attest_filter(pid: int, expected: bytes, count: int) -> TaskIdentity:
    """One filter was asked for; `count` are there then."""
    return attest(pid, Plan(filters=(expected,)), Before(filters=count - 1))


def refusal(pid: int, expected_filter: bytes, expected_count: int = 1) -> str:
    with pytest.raises(Refused) as caught:
        attest_filter(pid, expected_filter, expected_count)
    assert caught.value.reason is Reason.CONSTRAINT_NOT_ATTESTED
    assert caught.value.next_step
    return caught.value.message


def test_a_launcher_that_did_what_was_signed_passes_and_goes_on(strict: str) -> None:
    with child("nnp", strict, "wait", "exec:/bin/true") as process:
        task = attest_filter(process.pid, compile_filter(STRICT), 1)
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert (task.pid, task.start_ticks) == (process.pid, started)
        assert status(process.pid, "TracerPid") == "0"
        assert no_new_privs(process.pid)
        assert seccomp_count(process.pid) == 1
        assert released(process) == 0


def test_a_filter_that_keeps_its_refusals_to_itself_is_another_one(programs: Programs) -> None:
    """The same bytes, but installed so that the kernel tells nobody what they refuse."""
    silent = programs.step("strict", compile_filter(STRICT)).replace("filter:", "unlogged:")
    with child("nnp", silent, "wait") as process:
        assert "refusals reported" in refusal(process.pid, compile_filter(STRICT))


def test_filters_come_oldest_first(programs: Programs, strict: str) -> None:
    weaker = programs.step("weaker", compile_filter(WEAKER))
    with child("nnp", weaker, strict, "wait") as process:
        assert installed_filters(process.pid) == [compile_filter(WEAKER), compile_filter(STRICT)]
        # A caller that was restricted before keeps its filter below ours.
        assert attest_filter(process.pid, compile_filter(STRICT), 2).pid == process.pid


def test_a_weaker_filter_is_refused(programs: Programs) -> None:
    with child("nnp", programs.step("weaker", compile_filter(WEAKER)), "wait") as process:
        assert "another seccomp filter" in refusal(process.pid, compile_filter(STRICT))


def test_one_changed_bit_is_refused(programs: Programs) -> None:
    program = compile_filter(STRICT)
    # The action of the last "return": from "allow" to "allow and log".
    changed = program[:-1] + bytes([program[-1] ^ 1])
    with child("nnp", programs.step("changed", changed), "wait") as process:
        assert installed_filters(process.pid) == [changed]
        assert "another seccomp filter" in refusal(process.pid, program)


def test_a_second_filter_on_top_is_refused(programs: Programs, strict: str) -> None:
    with child("nnp", strict, programs.step("all", ALLOW_ALL), "wait") as process:
        assert "2 seccomp filters instead of 1" in refusal(process.pid, compile_filter(STRICT))
        assert "another seccomp filter" in refusal(process.pid, compile_filter(STRICT), 2)


def test_a_filter_below_that_was_not_there_before_is_refused(programs: Programs, strict: str) -> None:
    with child("nnp", programs.step("all", ALLOW_ALL), strict, "wait") as process:
        assert "2 seccomp filters instead of 1" in refusal(process.pid, compile_filter(STRICT), 1)


def test_no_filter_is_refused() -> None:
    with child("nnp", "wait") as process:
        assert "no seccomp filter" in refusal(process.pid, compile_filter(STRICT))
        assert installed_filters(process.pid) == []
        assert seccomp_count(process.pid) == 0


def test_without_no_new_privs_it_is_refused(strict: str) -> None:
    with child(strict, "wait") as process:  # root may install a filter without it
        assert seccomp_count(process.pid) == 1
        assert not no_new_privs(process.pid)
        assert "no_new_privs" in refusal(process.pid, compile_filter(STRICT))


def test_a_thread_that_the_filter_does_not_bind_is_refused(strict: str) -> None:
    with child("thread", "nnp", strict, "wait") as process:
        assert "2 threads" in refusal(process.pid, compile_filter(STRICT))


def test_a_name_cannot_pretend_to_be_a_status_line() -> None:
    for separator in ("0b", "0c", "1c", "85", "0d", "0a"):
        name = bytes.fromhex(separator) + b"Seccomp_filter"[:13]
        with child(f"name:{(bytes.fromhex(separator) + b'NoNewPrivs:1').hex()}", "wait") as process:
            assert not no_new_privs(process.pid)
        with child(f"name:{name.hex()}", "wait") as process:
            assert seccomp_count(process.pid) == 0


def test_a_process_that_is_gone_is_refused() -> None:
    with child("wait") as process:
        assert released(process) == 0
    assert "is gone" in refusal(process.pid, ALLOW_ALL)
    with pytest.raises(Refused):
        no_new_privs(process.pid)
    with pytest.raises(Refused):
        seccomp_count(process.pid)


def test_a_zombie_is_refused() -> None:
    with child("wait") as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        refusal(process.pid, ALLOW_ALL)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_what_is_no_process_is_refused(pid: int) -> None:
    refusal(pid, ALLOW_ALL)


def test_a_launcher_that_dies_while_it_is_inspected_is_refused(strict: str) -> None:
    expected = compile_filter(STRICT)
    for _ in range(20):
        with child("nnp", strict, "wait") as process:
            # Not process.kill: it waits for the child, and as we are its parent as well it would take the stop for
            # its end.
            killer = threading.Thread(target=os.kill, args=(process.pid, signal.SIGKILL))
            killer.start()
            refused = False
            while not refused:
                try:
                    attest_filter(process.pid, expected, 1)
                except Refused as caught:
                    assert caught.reason is Reason.CONSTRAINT_NOT_ATTESTED  # noqa: PT017 - passing is fine too
                    refused = True
            killer.join()
            assert process.wait(20) == -signal.SIGKILL


def test_one_that_becomes_another_program_again_and_again_never_passes_and_never_confuses() -> None:
    with child("replace") as process:
        for _ in range(300):
            refusal(process.pid, ALLOW_ALL)
        assert process.poll() is None


def test_one_that_is_traced_already_is_refused_and_left_alone(strict: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with child("nnp", strict, "wait") as process:
        assert libc.ptrace(0x4206, process.pid, None, None) == 0  # PTRACE_SEIZE, by this thread
        assert "traces it already" in refusal(process.pid, compile_filter(STRICT))
        assert status(process.pid, "TracerPid") == str(os.getpid())


def test_one_that_job_control_stopped_stays_stopped(strict: str) -> None:
    with child("nnp", strict, "wait") as process:
        os.kill(process.pid, signal.SIGSTOP)
        await_status(process.pid, "State", "T")
        attest_filter(process.pid, compile_filter(STRICT), 1)
        await_status(process.pid, "State", "T")
        assert status(process.pid, "TracerPid") == "0"
        os.kill(process.pid, signal.SIGCONT)
        assert released(process) == 0


def test_a_signal_that_was_being_delivered_is_handed_on(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    really = tracing.ptrace

    def interrupted_by_a_signal(request: int, pid: int, data: int = 0) -> None:
        really(request, pid, data)
        if request == tracing._SEIZE:
            os.kill(pid, signal.SIGRTMIN)
            await_status(pid, "State", "t")  # stopped in the middle of its delivery

    monkeypatch.setattr(tracing, "ptrace", interrupted_by_a_signal)
    read_end, write_end = os.pipe()
    with child(f"signals:{write_end}", "nnp", strict, "wait", pass_fds=(write_end,)) as process:
        os.close(write_end)
        attest_filter(process.pid, compile_filter(STRICT), 1)
        assert select.select([read_end], [], [], 10)[0], "the signal got lost"
        assert os.read(read_end, 16) == bytes([signal.SIGRTMIN])
        assert released(process) == 0
    assert os.read(read_end, 16) == b""
    os.close(read_end)


def test_one_that_cannot_be_stopped_is_refused_in_time_and_let_go(strict: str) -> None:
    with child("nnp", strict, "vfork") as process:
        await_status(process.pid, "State", "D")
        started = time.monotonic()
        assert "did not stop" in refusal(process.pid, compile_filter(STRICT))
        assert time.monotonic() - started < STOP_DEADLINE + 1
        await_status(process.pid, "TracerPid", "0")
        assert released(process) == 0


def test_a_daemon_under_a_filter_of_its_own_says_so(programs: Programs, strict: str) -> None:
    script = (
        "import sys, runpy; child = runpy.run_path(sys.argv[1])\n"
        "from egs_kernel.constraints.attest import Before, Plan, attest, require_attestation\n"
        "from egs_kernel.errors import HostLacks, Refused\n"
        "from pathlib import Path\n"
        "child['install'](Path(sys.argv[2]).read_bytes())\n"
        "try: attest(int(sys.argv[3]), Plan(filters=(b'',)), Before(filters=0))\n"
        "except Refused as refused: print(refused.reason.code, refused.message)\n"
        "try: require_attestation()\n"
        "except HostLacks as lacks: print(lacks.reason.code, lacks.message)\n"
    )
    everything = programs.step("all", ALLOW_ALL).partition(":")[2]
    with child("nnp", strict, "wait") as process:
        done = subprocess.run(
            [sys.executable, "-c", script, CHILD, everything, str(process.pid)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert released(process) == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("constraint_not_attested")
    assert "egsd runs under a seccomp filter itself" in first
    assert second.startswith("kernel_unsupported")
    assert "under a seccomp filter" in second


def test_this_process_may_attest() -> None:
    require_attestation()


def test_an_unprivileged_process_cannot_attest_and_says_what_it_lacks(strict: str) -> None:
    script = (
        "import os, sys\n"
        "from egs_kernel.constraints.attest import Before, Plan, attest, require_attestation\n"
        "from egs_kernel.errors import HostLacks, Refused\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: attest(int(sys.argv[1]), Plan(filters=(b'',)), Before(filters=0))\n"
        "except Refused as refused: print(refused.message)\n"
        "try: require_attestation()\n"
        "except HostLacks as lacks: print(lacks.message)\n"
    )
    with child("nnp", strict, "wait") as process:
        done = subprocess.run(
            [sys.executable, "-c", script, str(process.pid)], check=True, capture_output=True, text=True
        )
    first, second = done.stdout.splitlines()
    assert "lacks CAP_SYS_PTRACE" in first
    assert "lacks CAP_SYS_PTRACE" in second


# What the profiles stop, on real processes: the number on x86-64 and arm64, and arguments that are refused
# by the call itself, and not for want of a privilege.
X86 = os.uname().machine == "x86_64"
CALLS: Final = {
    "mount": (165 if X86 else 40, (0, 0, 0, 0, 0)),
    "ptrace": (101 if X86 else 117, (0xFFFF, 1, 0, 0)),
    "bpf": (321 if X86 else 280, (999, 0, 0)),
    "unshare": (272 if X86 else 97, (0x1,)),
    "setns": (308 if X86 else 268, (-1, 0)),
    "perf_event_open": (298 if X86 else 241, (0, 0, 0, 0, 0)),
    "keyctl": (250 if X86 else 219, (9999, 0, 0, 0, 0)),
    "process_vm_readv": (310 if X86 else 270, (-1, 0, 0, 0, 0, 0)),
    "open_by_handle_at": (304 if X86 else 265, (-1, 0, 0)),
    "io_uring_setup": (425, (0, 0)),
}


def answers(*steps: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-I", CHILD, *steps],
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_profile_stops_a_real_call(name: str, strict: str) -> None:
    number, arguments = CALLS[name]
    step = f"call:{number}:{':'.join(map(str, arguments))}"
    assert answers("nnp", step) != [EPERM]
    assert answers("nnp", strict, step) == [EPERM]


def test_kill_kills(programs: Programs) -> None:
    program = programs.step("kill", compile_filter(SyscallConstraint(profile="default", action="kill")))
    done = subprocess.run(
        [sys.executable, "-I", CHILD, "nnp", program, f"call:{CALLS['mount'][0]}:0:0:0:0:0"],
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGSYS
    assert done.stdout == b""


def test_no_network_stops_every_socket_but_unix(programs: Programs, strict: str) -> None:
    socket = 41 if X86 else 198
    calls = [f"call:{socket}:{family}:1:0" for family in (1, 2, 10)]
    default = programs.step("default", compile_filter(SyscallConstraint(profile="default")))
    assert answers("nnp", default, *calls)[:2] == [0, 0]
    assert answers("nnp", strict, *calls) == [0, EPERM, EPERM]


@pytest.mark.skipif(not X86, reason="the i386 and x32 conventions are those of x86-64")
def test_other_conventions_of_the_processor_are_no_way_around(programs: Programs) -> None:
    default = programs.step("default", compile_filter(SyscallConstraint(profile="default")))
    getpid_i386, x32_getpid = "int80:20", f"call:{0x40000000 | 39}"
    assert answers("nnp", getpid_i386)[0] > 0
    for step in (getpid_i386, x32_getpid):
        done = subprocess.run([sys.executable, "-I", CHILD, "nnp", default, step], check=False)
        assert done.returncode == -signal.SIGSYS


@pytest.mark.parametrize("profile", ["default", "no-network"])
@pytest.mark.parametrize("action", ["errno", "kill"])
def test_ordinary_programs_run_under_the_profiles(programs: Programs, profile: str, action: str) -> None:
    constraint = SyscallConstraint(profile=profile, action=action)  # type: ignore[arg-type] # from the list above
    program = programs.step("profile", compile_filter(constraint))
    script = (
        "import threading, subprocess, tempfile, os, socket, asyncio\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "subprocess.run(['/bin/sh', '-c', 'echo child | cat; ls -l /proc/self/exe >/dev/null'], check=True)\n"
        "with tempfile.NamedTemporaryFile() as f: f.write(b'x'); os.fsync(f.fileno())\n"
        "a, b = socket.socketpair(); a.send(b'x'); asyncio.run(asyncio.sleep(0)); print('end')\n"
    )
    path = Path(program.partition(":")[2]).with_name("script.py")
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-I", CHILD, "nnp", program, f"exec:/usr/bin/python3:-I:{path}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["child", "thread", "end"]


def test_the_launch_list_is_enough_for_a_launch(programs: Programs, tmp_path: Path) -> None:
    source = tmp_path / "static.c"
    # Static and without a C library: it needs nothing but write and exit_group itself.
    source.write_text(
        'static long call(long n, long a, long b, long c) { long r; __asm__ volatile ("syscall" : "=a"(r) :'
        ' "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory"); return r; }\n'
        'void _start(void) { call(1, 1, (long)"ran\\n", 4); call(231, 0, 0, 0); }\n'
    )
    binary = tmp_path / "static"
    if not X86:
        pytest.skip("the test program is written for x86-64")
    subprocess.run(["gcc", "-static", "-nostdlib", "-o", binary, source], check=True)
    constraint = SyscallConstraint(allow=tuple(sorted(LAUNCH)), action="kill")
    with child(
        "nnp", programs.step("launch", compile_filter(constraint)), "wait", f"exec:{binary}"
    ) as process:
        attest_filter(process.pid, compile_filter(constraint), 1)
        output, _ = process.communicate(b"\n", timeout=COMMAND_SECONDS)
    assert (output, process.returncode) == (b"ran\n", 0)
