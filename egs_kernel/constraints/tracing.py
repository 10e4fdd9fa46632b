"""Hold another process still, and follow it to its exec, by ptrace.

Every call for one process must come from one thread: the kernel knows tracers by their thread. When that thread
ends, the kernel lets go of everything that it held, or kills it, if `follow` was called.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeVar

from egs_kernel.constraints.proc import not_attested

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

STOP_DEADLINE: Final = 0.5
"""Seconds that a launcher may take to stop. A waiting one takes microseconds; one that cannot stop (its vfork
child runs, an unresponsive file system holds it) is refused rather than waited for."""

# linux/ptrace.h
_CONT: Final = 7
_DETACH: Final = 17
_SYSCALL: Final = 24
_SETOPTIONS: Final = 0x4200
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208
_GET_SYSCALL_INFO: Final = 0x420E  # since Linux 5.3
_O_TRACESYSGOOD: Final = 0x1
_O_TRACEEXEC: Final = 0x10
_O_EXITKILL: Final = 0x100000
_PR_SET_TIMERSLACK: Final = 29  # linux/prctl.h: of the calling thread, in nanoseconds
_EVENT_EXEC: Final = 4
_EVENT_STOP: Final = 128
_SYSCALL_TRAP: Final = 5 | 0x80  # SIGTRAP, as _O_TRACESYSGOOD marks it
_INFO_ENTRY: Final = 1
_WALL: Final = 0x40000000  # __WALL of linux/wait.h: whatever signal it sends its parent at its end
_WAIT_OPTIONS: Final = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL

_EXEC_CALLS: Final = {
    "x86_64": {(0xC000003E, 59), (0xC000003E, 322)},
    "aarch64": {(0xC00000B7, 221), (0xC00000B7, 281)},
}
"""By machine: the convention (linux/audit.h) and the numbers of execve and execveat."""

_LOOKS: Final = 20
_FIRST_PAUSE: Final = 10e-6
_LENGTHENING: Final = 1.25
_LONGEST_PAUSE: Final = 2e-3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class _SyscallInfo(ctypes.Structure):
    """The head of struct ptrace_syscall_info, and its `entry`."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


class Pauses:
    """Between two looks at a process that is to stop; the kernel has no descriptor to wait on for that.

    At first none: on another processor it has stopped before a sleep would have begun and ended. SIGCHLD is the main thread's.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._looks = 0
        self._pause = _FIRST_PAUSE

    def wait(self) -> None:
        """Wait for a while, and for longer each time: seconds, at most `longest`."""
        if self._looks < _LOOKS:
            self._looks += 1
            return
        time.sleep(self._pause)
        self._pause = min(_LENGTHENING * self._pause, self._longest)


class Stop(Enum):
    """Where a process that is followed has stopped."""

    CALLS_EXEC = "calls exec"  # at the entry of execve(2) or execveat(2): nothing of it was done yet
    EXECUTED = "executed"  # at its end: the new image is there, and has run nothing
    CALL = "call"  # at the entry of another system call, or the exit of any
    OTHER = "other"  # a signal is about to be delivered, job control, or we asked for it
    ENDED = "ended"


class Traced:
    """A process that this thread traces. `stop` first; `detach` at the end.

    Not for a child that this process waits for at the same time: the two waits would take each other's news.
    """

    def __init__(self, pid: int) -> None:
        """Raises Refused: it is gone, or somebody traces it already, or we may not."""
        if pid <= 0:
            raise not_attested(pid, "is no process")
        _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # each of our pauses would be 50 us longer
        self.pid = pid
        self._found: os.waitid_result | None = None
        ptrace(_SEIZE, pid)

    def stop(self) -> None:
        """Stop it, wherever it is.

        Raises:
            Refused: it died, became another program, or did not stop in time.
        """
        ptrace(_INTERRUPT, self.pid)
        deadline, pauses = time.monotonic() + STOP_DEADLINE, Pauses(_LONGEST_PAUSE)
        while not self._poll():
            if time.monotonic() > deadline:
                raise not_attested(self.pid, f"did not stop within {STOP_DEADLINE} s")
            pauses.wait()
        if self._where() is Stop.ENDED:
            raise not_attested(self.pid, "died while it was inspected")

    def follow(self) -> None:
        """From now on stop at system calls and at the exec; if this thread dies, it dies."""
        ptrace(_SETOPTIONS, self.pid, _O_TRACESYSGOOD | _O_TRACEEXEC | _O_EXITKILL)

    def run(self) -> None:
        """Let it go on, from where it stopped to its next system call or exec."""
        if self._is_group_stop():
            ptrace(_LISTEN, self.pid)  # stopped by job control: it stays so until it is continued
        else:
            ptrace(_SYSCALL, self.pid, self._pending())

    def where(self) -> Stop | None:
        """Where it has stopped; None while it runs."""
        return self._where() if self._poll() else None

    def interrupt(self) -> None:
        """Have it stop soon."""
        ptrace(_INTERRUPT, self.pid)

    def detach(self) -> None:
        """Let it go. It must be stopped, or have ended: then nothing is left to detach."""
        # A signal that was just being delivered is handed on: the terminal's Ctrl-C must not get lost.
        _libc.ptrace(_DETACH, self.pid, None, self._pending())

    def _poll(self) -> bool:
        """Whether it has stopped or ended."""
        try:
            # WNOWAIT: if it died, its exit status is for its parent.
            self._found = os.waitid(os.P_PID, self.pid, _WAIT_OPTIONS)
        except ChildProcessError as error:
            # Another thread of it executed a program, and took over its pid.
            raise not_attested(self.pid, "became another program while it was inspected") from error
        return self._found is not None

    def _where(self) -> Stop:
        event, signal = self._stop_code()
        if event == _EVENT_EXEC:
            return Stop.EXECUTED
        if self._found is None or self._found.si_code != os.CLD_TRAPPED:
            return Stop.ENDED
        if (event, signal) != (0, _SYSCALL_TRAP):
            return Stop.OTHER
        return Stop.CALLS_EXEC if self._calls_exec() else Stop.CALL

    def _stop_code(self) -> tuple[int, int]:
        """The event and the signal that it stopped with; 0, 0 when it did not stop."""
        if self._found is None or self._found.si_code != os.CLD_TRAPPED:
            return 0, 0
        return divmod(self._found.si_status, 256)

    def _is_group_stop(self) -> bool:
        event, signal = self._stop_code()
        return event == _EVENT_STOP and signal != _SYSCALL_TRAP & 0x7F

    def _pending(self) -> int:
        """The signal whose delivery stopped it, or 0."""
        event, signal = self._stop_code()
        return 0 if event or signal == _SYSCALL_TRAP else signal

    def _calls_exec(self) -> bool:
        info = _SyscallInfo()
        size = ctypes.sizeof(info)
        if _libc.ptrace(_GET_SYSCALL_INFO, self.pid, size, ctypes.addressof(info)) <= 0:
            raise not_attested(
                self.pid,
                f"cannot be followed: {os.strerror(ctypes.get_errno())}",
                "Use a kernel of 5.3 or later.",
            )
        known = _EXEC_CALLS.get(os.uname().machine, set())
        return info.op == _INFO_ENTRY and (info.arch, info.number) in known


def while_stopped(pid: int, look: Callable[[], _T]) -> _T:
    """Stop the process, look at it, let it go on.

    Raises:
        Refused: it cannot be stopped; or whatever `look` raises.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-attest") as tracer:
        return tracer.submit(hold, pid, look).result()


def hold(pid: int, look: Callable[[], _T]) -> _T:
    """`while_stopped` for a thread that ends when this fails.

    The kernel detaches everything that a tracing thread holds when the thread ends. So the process goes on whatever
    happens here, even when it did not stop in time and cannot be detached.

    Raises:
        Refused: it cannot be stopped; or whatever `look` raises.
    """
    traced = Traced(pid)
    traced.stop()
    try:
        return look()
    finally:
        traced.detach()


def ptrace(request: int, pid: int, data: int = 0) -> None:
    """Make this request, which takes no address.

    Raises:
        Refused: the kernel says no.
    """
    if _libc.ptrace(request, pid, None, data) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.ESRCH:
        raise not_attested(pid, "is gone")
    if code == errno.EPERM:
        raise not_attested(
            pid,
            "cannot be inspected: something traces it already, or egsd lacks CAP_SYS_PTRACE",
            "Do not start `egs run` under strace or a debugger; run: egs doctor",
        )
    raise not_attested(pid, f"cannot be inspected: {os.strerror(code)}")
