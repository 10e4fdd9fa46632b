"""System calls that a held process is made to make: what the kernel answers, and that nothing else changes."""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.constraints.injection import Injected, injected
from egs_kernel.constraints.seccomp import compile_filter
from egs_kernel.constraints.tracing import Traced, while_stopped
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from tests.kernel.test_attest import Programs, await_status, child, released, status
from tests.landlock import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.kernel,
    HERE,
]

GETPID: Final = 39
GETPPID: Final = 110
UNSHARE: Final = 272
CLONE_FILES: Final = 0x400

_T = TypeVar("_T")


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def held(pid: int, do: Callable[[Injected], _T]) -> _T:
    """Hold the process, have it make calls, let it go."""

    def look() -> _T:
        with injected(pid) as process:
            return do(process)

    return while_stopped(pid, look)


def refusal(pid: int, do: Callable[[Injected], object]) -> str:
    with pytest.raises(Refused) as caught:
        held(pid, do)
    assert caught.value.reason is Reason.CONSTRAINT_NOT_ATTESTED
    return caught.value.message


@contextmanager
def code(content: bytes) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    """A process that runs this machine code, in memory that we share with it."""
    script = (
        "import ctypes, mmap, sys\n"
        "m = mmap.mmap(int(sys.argv[1]), 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "print('ready', flush=True)\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    )
    file = os.memfd_create("code")
    os.truncate(file, 4096)
    memory = mmap.mmap(file, 4096)
    memory[: len(content)] = content
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, pass_fds=(file,)
    ) as process:
        os.close(file)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process, memory
        finally:
            process.kill()
            memory.close()


def test_the_kernel_answers_and_the_process_goes_on_as_if_nothing_had_been() -> None:
    with child("wait", "exec:/bin/true") as process:
        answers = held(process.pid, lambda it: [it.call(GETPID), it.call(GETPPID), it.call(3, 12345)])
        assert answers == [process.pid, os.getpid(), -errno.EBADF]
        assert status(process.pid, "TracerPid") == "0"
        assert status(process.pid, "SigBlk") == "0" * 16
        assert released(process) == 0


def test_what_is_refused_while_it_calls_is_told_when_it_has_called() -> None:
    """And it goes on as if nothing had been."""
    done = []

    def refuse() -> None:
        done.append(True)
        raise Refused(Reason.CONSTRAINT_UNENFORCEABLE, "meanwhile")

    with child("wait", "exec:/bin/true") as process:

        def call(it: Injected) -> int:
            assert it.call(GETPID, meanwhile=lambda: done.append(False)) == process.pid
            with pytest.raises(Refused, match="meanwhile"):
                it.call(GETPPID, meanwhile=refuse)
            return it.call(GETPID)

        assert held(process.pid, call) == process.pid
        assert done == [False, True]
        assert released(process) == 0


def test_its_own_filters_do_not_see_the_calls_and_hold_afterwards(programs: Programs) -> None:
    strict = programs.step("strict", compile_filter(SyscallConstraint(profile="default")))
    with child("nnp", strict, "wait", f"call:{UNSHARE}:{CLONE_FILES}") as process:
        assert held(process.pid, lambda it: it.call(UNSHARE, CLONE_FILES)) == 0
        output, _ = process.communicate(b"\n", timeout=20)
        assert output == b"%d\n" % errno.EPERM


def test_signals_wait_until_it_is_let_go() -> None:
    read_end, write_end = os.pipe()
    with child(f"signals:{write_end}", "wait", pass_fds=(write_end,)) as process:
        os.close(write_end)

        def call(it: Injected) -> int:
            os.kill(process.pid, signal.SIGRTMIN)
            return it.call(GETPID)

        assert held(process.pid, call) == process.pid
        assert os.read(read_end, 16) == bytes([signal.SIGRTMIN])
        assert released(process) == 0
    os.close(read_end)


def test_a_signal_that_was_being_delivered_when_it_was_stopped_is_not_lost() -> None:
    read_end, write_end = os.pipe()

    def hold(pid: int) -> None:
        traced = Traced(pid)
        os.kill(pid, signal.SIGRTMIN)
        await_status(pid, "State", "t")  # stopped in the middle of its delivery
        traced.stop()
        with injected(pid) as it:
            assert it.call(GETPID) == pid
        traced.detach()

    with child(f"signals:{write_end}", "wait", pass_fds=(write_end,)) as process:
        os.close(write_end)
        with ThreadPoolExecutor(1) as tracer:
            tracer.submit(hold, process.pid).result()
        assert select.select([read_end], [], [], 10)[0], "the signal got lost"
        assert os.read(read_end, 16) == bytes([signal.SIGRTMIN])
        assert released(process) == 0
        assert os.read(read_end, 16) == b""
    os.close(read_end)


def test_one_that_job_control_stopped_stays_stopped() -> None:
    with child("wait") as process:
        os.kill(process.pid, signal.SIGSTOP)
        await_status(process.pid, "State", "T")
        assert held(process.pid, lambda it: it.call(GETPID)) == process.pid
        await_status(process.pid, "State", "T")
        os.kill(process.pid, signal.SIGCONT)
        assert released(process) == 0


def test_one_that_is_killed_meanwhile_is_refused() -> None:
    with child("wait") as process:

        def call(it: Injected) -> None:
            os.kill(process.pid, signal.SIGKILL)
            it.call(GETPID)
            it.call(GETPID)

        assert refusal(process.pid, call)


def test_one_that_makes_no_system_call_is_refused_in_time_and_let_go() -> None:
    with code(b"\xeb\xfe") as (process, _):  # jmp to itself
        assert "made no system call" in refusal(process.pid, lambda it: it.call(GETPID))
        await_status(process.pid, "TracerPid", "0")


def test_one_that_calls_by_another_convention_is_refused() -> None:
    # mov eax, 20; int 0x80; jmp back
    with code(b"\xb8\x14\x00\x00\x00\xcd\x80\xeb\xf7") as (process, _):
        assert "another convention" in refusal(process.pid, lambda it: it.call(GETPID))


def test_one_whose_code_changes_under_our_hands_is_refused() -> None:
    """Whoever shares its memory exchanges the instruction, and thereby the arguments."""
    # mov eax, 39; syscall; jmp back; and at 16: mov edi, 99; syscall; jmp back to the start
    honest = b"\xb8\x27\x00\x00\x00\x0f\x05\xeb\xf7"
    hidden = b"\xbf\x63\x00\x00\x00\x0f\x05\xeb\xe7"
    with code(honest.ljust(16, b"\x90") + hidden) as (process, memory):
        assert held(process.pid, lambda it: [it.call(GETPID), it.call(UNSHARE, 0)]) == [process.pid, 0]

        def call(it: Injected) -> None:
            it.call(GETPID)
            memory[5:7] = b"\xeb\x09"  # jmp to 16
            it.call(UNSHARE, 0)

        assert "code that changes" in refusal(process.pid, call)


def test_a_daemon_that_dies_meanwhile_takes_the_launcher_with_it() -> None:
    """Its registers are not its own at that moment."""
    script = (
        "import os, sys\n"
        "from egs_kernel.constraints.tracing import Traced\n"
        "from egs_kernel.constraints.injection import injected\n"
        "Traced(int(sys.argv[1])).stop()\n"
        "with injected(int(sys.argv[1])) as it: os.kill(os.getpid(), 9)\n"
    )
    with child("wait") as process:
        subprocess.run([sys.executable, "-c", script, str(process.pid)], check=False)
        assert process.wait(20) == -signal.SIGKILL
