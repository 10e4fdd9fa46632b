"""Read back from the kernel what a launcher installed on itself, and compare it with what was signed.

The launcher is not trusted. While ptrace holds it still, the daemon reads its seccomp filters, no_new_privs
and its threads. The first two are irrevocable: what is true then stays true until the exec.

The kernel numbers filters from the oldest (0) to the newest; `test_attest.py` shows it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from egs_kernel.errors import HostLacks, Refused
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

STOP_DEADLINE: Final = 0.5
"""Seconds that a launcher may take to stop. A waiting one takes microseconds; one that cannot stop (its vfork
child runs, an unresponsive file system holds it) is refused rather than waited for."""

# linux/ptrace.h
_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_SECCOMP_GET_FILTER: Final = 0x420C
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000  # __WALL of linux/wait.h: whatever signal it sends its parent at its end
_WAIT_OPTIONS: Final = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL

_INSTRUCTION_SIZE: Final = 8
_MAX_FILTERS: Final = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 2e-3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


@dataclass(frozen=True)
class Restrictions:
    """What holds a process down, read while it was stopped.

    Attributes:
        filters: its seccomp programs, the oldest first.
        filter_count: how many the kernel says there are.
        no_new_privs: whether no exec can raise its privileges.
        threads: how many threads it has.
        task: the process, immune to pid reuse.
    """

    filters: tuple[bytes, ...]
    filter_count: int
    no_new_privs: bool
    threads: int
    task: TaskIdentity


def attest(pid: int, expected_filter: bytes, expected_count: int) -> TaskIdentity:
    """Establish that process `pid` runs under exactly what was signed.

    Args:
        pid: the launcher, single-threaded.
        expected_filter: what `compile_filter` gave; must be its newest filter, byte for byte.
        expected_count: its filters now: those it had before (`seccomp_count`) and ours.

    Returns:
        The process that was attested: arm this one, and nothing that came to bear its pid since.

    Raises:
        Refused: anything is different, or it could not be established.
    """
    found = restrictions(pid)
    if found.threads != 1:
        raise _not_attested(
            pid, f"has {found.threads} threads, and a filter binds only the one that installed it"
        )
    if not found.no_new_privs:
        raise _not_attested(pid, "did not set no_new_privs")
    if not found.filters:
        raise _not_attested(pid, "has no seccomp filter")
    if len(found.filters) != expected_count or found.filter_count != expected_count:
        raise _not_attested(pid, f"has {found.filter_count} seccomp filters instead of {expected_count}")
    if found.filters[-1] != expected_filter:
        raise _not_attested(pid, "installed another seccomp filter than the authorization artifact demands")
    return found.task


def installed_filters(pid: int) -> list[bytes]:
    """The seccomp programs of a process as `struct sock_filter` arrays, the oldest first.

    Raises:
        Refused: they cannot be read.
    """
    return list(restrictions(pid).filters)


def restrictions(pid: int) -> Restrictions:
    """Stop the process, read what restricts it, let it go on.

    Not for a child that this process waits for at the same time: the two waits would take each other's news.

    Raises:
        Refused: it is gone, somebody traces it already, it does not stop, or the kernel does not let us look.
    """
    # A thread of its own: the kernel detaches everything that a tracing thread holds when the thread ends.
    # So the process goes on whatever happens here, even when it did not stop in time and cannot be detached.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-attest") as tracer:
        return tracer.submit(_inspect, pid).result()


def no_new_privs(pid: int) -> bool:
    """Whether no exec of this process can raise its privileges.

    Raises:
        Refused: it is gone, or the kernel does not say.
    """
    return _number(pid, _status(pid), b"NoNewPrivs") == 1


def seccomp_count(pid: int) -> int:
    """How many seccomp filters the process has.

    Raises:
        Refused: it is gone, or the kernel does not say (before 5.9).
    """
    return _number(pid, _status(pid), b"Seccomp_filters")


def require_attestation() -> None:
    """Check that this process is one that the kernel shows filters to.

    Raises:
        HostLacks: it runs under a seccomp filter itself, or lacks the capabilities.
    """
    pid = os.getpid()
    status = _status(pid)
    if _number(pid, status, b"Seccomp") != 0:
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            "this process runs under a seccomp filter, so the kernel shows it nobody's filters",
            "Remove from egsd.service what installs one (docs/systemd.md lists the directives).",
        )
    held = _number(pid, status, b"CapEff", base=16)
    for name, bit in (("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21)):
        if not held >> bit & 1:
            raise HostLacks(
                Reason.KERNEL_UNSUPPORTED,
                f"this process lacks {name}, so it cannot read seccomp filters",
                f"Give {name} to egsd (CapabilityBoundingSet= in egsd.service).",
            )


def _not_attested(pid: int, problem: str, next_step: str = "") -> Refused:
    return Refused(
        Reason.CONSTRAINT_NOT_ATTESTED,
        f"launcher {pid} {problem}",
        next_step or "Start the program with the `egs run` of this version, and not under another tool.",
    )


def _inspect(pid: int) -> Restrictions:
    with _stopped(pid):
        # No other thread can appear now: the only ones that could make it are stopped or counted here.
        status = _status(pid)
        count = _number(pid, status, b"Seccomp_filters")
        return Restrictions(
            filters=_read_filters(pid, count),
            filter_count=count,
            no_new_privs=_number(pid, status, b"NoNewPrivs") == 1,
            threads=_number(pid, status, b"Threads"),
            task=TaskIdentity(pid, _start_ticks(pid)),
        )


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    if pid <= 0:
        raise _not_attested(pid, "is no process")
    _ptrace(_SEIZE, pid)
    _ptrace(_INTERRUPT, pid)
    pending = _wait_for_stop(pid)
    try:
        yield
    finally:
        # A signal that was just being delivered is handed on: the terminal's Ctrl-C must not get lost. The
        # process can have been killed since; then there is nothing to detach.
        _libc.ptrace(_DETACH, pid, None, pending)


def _wait_for_stop(pid: int) -> int:
    """Wait until it is stopped. Returns the signal whose delivery we interrupted, or 0."""
    deadline, pause = time.monotonic() + STOP_DEADLINE, _FIRST_PAUSE
    while (found := _poll(pid)) is None:
        if time.monotonic() > deadline:
            raise _not_attested(pid, f"did not stop within {STOP_DEADLINE} s")
        # The kernel has no descriptor to wait on for a ptrace stop, and SIGCHLD is the main thread's.
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    if found.si_code != os.CLD_TRAPPED:
        raise _not_attested(pid, "died while it was inspected")
    event, stop_signal = divmod(found.si_status, 256)
    return 0 if event == _EVENT_STOP else stop_signal


def _poll(pid: int) -> os.waitid_result | None:
    try:
        # WNOWAIT: if it died, its exit status is for its parent.
        return os.waitid(os.P_PID, pid, _WAIT_OPTIONS)
    except ChildProcessError as error:
        # Another thread of it executed a program, and took over its pid.
        raise _not_attested(pid, "became another program while it was inspected") from error


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.ESRCH:
        raise _not_attested(pid, "is gone")
    if code == errno.EPERM:
        raise _not_attested(
            pid,
            "cannot be inspected: something traces it already, or egsd lacks CAP_SYS_PTRACE",
            "Do not start `egs run` under strace or a debugger; run: egs doctor",
        )
    raise _not_attested(pid, f"cannot be inspected: {os.strerror(code)}")


def _read_filters(pid: int, count: int) -> tuple[bytes, ...]:
    if count > _MAX_FILTERS:
        raise _not_attested(pid, f"has {count} seccomp filters; at most {_MAX_FILTERS} are inspected")
    return tuple(_read_filter(pid, index) for index in range(count))


def _read_filter(pid: int, index: int) -> bytes:
    length = _libc.ptrace(_SECCOMP_GET_FILTER, pid, index, None)
    if length < 0:
        _fail_to_read(pid, ctypes.get_errno())
    program = ctypes.create_string_buffer(length * _INSTRUCTION_SIZE)
    again = _libc.ptrace(_SECCOMP_GET_FILTER, pid, index, ctypes.cast(program, ctypes.c_void_p))
    if again != length:
        _fail_to_read(pid, ctypes.get_errno() if again < 0 else errno.EIO)
    return program.raw


def _fail_to_read(pid: int, code: int) -> NoReturn:
    if code == errno.EACCES:
        raise _not_attested(
            pid,
            "cannot be inspected: egsd runs under a seccomp filter itself, or lacks CAP_SYS_ADMIN",
            "Remove from egsd.service what installs a filter (docs/systemd.md lists the directives).",
        )
    if code == errno.EINVAL:
        raise _not_attested(
            pid,
            "cannot be inspected: this kernel does not show seccomp filters",
            "Use a kernel that is built with CONFIG_CHECKPOINT_RESTORE=y.",
        )
    raise _not_attested(pid, f"has filters that cannot be read: {os.strerror(code)}")


def _status(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/status").read_bytes()
    except OSError as error:
        raise _not_attested(pid, f"is gone: {error.strerror}") from error


def _number(pid: int, status: bytes, field: bytes, base: int = 10) -> int:
    """One number of /proc/PID/status.

    Lines end with a newline and with nothing else: the process chooses its own name, and the kernel escapes
    only the newline in it.
    """
    values = [
        rest for name, _, rest in (line.partition(b":") for line in status.split(b"\n")) if name == field
    ]
    if len(values) != 1:
        raise _not_attested(
            pid,
            f"cannot be inspected: this kernel does not show {field.decode()}",
            "Use a kernel of 5.10 or later.",
        )
    try:
        return int(values[0], base)
    except ValueError as error:
        raise _not_attested(pid, f"has an unreadable {field.decode()}: {values[0]!r}") from error


def _start_ticks(pid: int) -> int:
    try:
        return start_ticks(pid)
    except ProcessLookupError as error:
        raise _not_attested(pid, "is gone") from error
