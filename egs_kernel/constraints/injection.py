"""Have a process that the calling thread holds by ptrace make system calls, and see what the kernel answered.

For what a launcher cannot be believed to have done to itself, because the kernel does not show it: the daemon does it,
in the launcher. Only calls whose arguments are numbers: what is in the launcher's memory others may change.

Its code is not trusted to make the call. The process is run to a system call of its own, whichever; the registers of
that call are exchanged; and each further call is seen at its entry, by the kernel's word, before it is let happen.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.proc import not_attested
from egs_kernel.constraints.tracing import Pauses
from egs_kernel.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE: Final = 0.5
"""Seconds for each stop. A launcher that waits for the daemon takes microseconds."""

MACHINE: Final = "x86_64"
"""The one whose registers are known here."""
_CONVENTION: Final = 0xC000003E  # AUDIT_ARCH_X86_64
_UNSHARE, _CLONE_FILES, _CLONE_FS = 272, 0x400, 0x200
_INSTRUCTION: Final = 2  # bytes of `syscall`

# linux/ptrace.h
_GETREGS, _SETREGS, _SYSCALL = 12, 13, 24
_SETOPTIONS, _INTERRUPT, _GETSIGMASK, _SETSIGMASK, _GET_SYSCALL_INFO = 0x4200, 0x4207, 0x420A, 0x420B, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL, _O_SUSPEND_SECCOMP = 0x1, 0x100000, 0x200000
_ENTRY, _EXIT = 1, 2
_SYSCALL_TRAP: Final = 5 | 0x80
_EVENT_STOP: Final = 128
_WAIT_OPTIONS: Final = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | 0x40000000
_LONGEST_PAUSE: Final = 100e-6  # a call takes less than a millisecond, and each pause too long adds to it
_MOST_STOPS: Final = 64
_WORD: Final = 2**64 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

_NAMES: Final = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base"
)
_SEGMENTS: Final = "gs_base ds es fs gs"
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class _Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in f"{_NAMES} {_SEGMENTS}".split())


class _Entry(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint64), ("arguments", ctypes.c_uint64 * 6))


class _Exit(ctypes.Structure):
    _fields_ = (("value", ctypes.c_int64), ("is_error", ctypes.c_uint8))


class _Detail(ctypes.Union):
    _fields_ = (("entry", _Entry), ("exit", _Exit))


class _SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("convention", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("detail", _Detail),
    )


def may_inject() -> bool:
    """Whether this machine's registers are known here."""
    return os.uname().machine == MACHINE


class Injected:
    """A held process, at the entry of a system call of its own, which it will make afterwards."""

    def __init__(self, pid: int, registers: _Registers) -> None:
        self.pid = pid
        self._own = registers
        self._first = True

    def call(self, number: int, *arguments: int, meanwhile: Callable[[], None] | None = None) -> int:
        """Have it make this system call.

        Args:
            number: of the call.
            arguments: of the call.
            meanwhile: what is done while the kernel is at it. What it raises is raised when the call is made.

        Returns:
            What the kernel answered: negative errno when it failed.

        Raises:
            Refused: it made another call, or died; nothing is known of it then.
        """
        given = [*arguments, 0, 0, 0, 0, 0, 0][: len(_ARGUMENTS)]
        registers = _Registers.from_buffer_copy(self._own)
        for name, value in zip(_ARGUMENTS, given, strict=True):
            setattr(registers, name, value & _WORD)
        if self._first:  # its own call is at its entry: the kernel takes number and arguments from here
            registers.orig_rax = number
            _set_registers(self.pid, registers)
            self._first = False
        else:
            registers.orig_rax = _WORD  # -1: no call of which anything would have to be restarted
            registers.rax = number
            registers.rip -= _INSTRUCTION
            _set_registers(self.pid, registers)
            found = _next_call(self.pid, _ENTRY)
            entry = found.detail.entry
            same = (found.convention, entry.number, list(entry.arguments)) == (
                _CONVENTION,
                number,
                [value & _WORD for value in given],
            )
            if not same:
                raise not_attested(self.pid, "has code that changes while it is inspected")
        return int(_next_call(self.pid, _EXIT, meanwhile=meanwhile).detail.exit.value)

    def restore(self) -> None:
        """Leave it stopped where it will make its own call, as if nothing had been."""
        registers = _Registers.from_buffer_copy(self._own)
        registers.rax = registers.orig_rax
        registers.orig_rax = _WORD
        registers.rip -= _INSTRUCTION
        _set_registers(self.pid, registers)


def share_nothing(process: Injected) -> None:
    """Give it a table of descriptors, a folder and a umask that no other process has.

    A process that it made with clone(CLONE_FILES | CLONE_FS) could change them otherwise, in the middle of anything.

    Raises:
        Refused: the kernel did not do it.
    """
    answer = process.call(_UNSHARE, _CLONE_FILES | _CLONE_FS)
    if answer < 0:
        raise not_attested(process.pid, f"shares its folder with others: {os.strerror(-answer)}")


@contextmanager
def injected(pid: int, *, at_call: bool = False) -> Iterator[Injected]:
    """The process, ready to be made to call. It is stopped before and after, and makes its own call when it goes on.

    `at_call`: it stands at the entry of a system call already, by this machine's own convention; else it is run to
    one. The caller's ptrace options are gone afterwards.

    Its filters do not see our calls (the caller may see its filters at all for the same reasons). It must be
    stopped, by this thread; should this thread end meanwhile, the kernel kills it.

    Raises:
        Refused: it makes no system call in time, or one by another convention of the processor.
    """
    if not at_call:
        _ptrace(_SETOPTIONS, pid, 0, _O_TRACESYSGOOD)
        found = _next_call(pid, _ENTRY, _undelivered(pid))
        if found.convention != _CONVENTION:
            raise not_attested(pid, "makes system calls by another convention than this machine's own")
    _ptrace(_SETOPTIONS, pid, 0, _O_TRACESYSGOOD | _O_EXITKILL | _O_SUSPEND_SECCOMP)
    mask, everything = ctypes.c_uint64(), ctypes.c_uint64(_WORD)
    _ptrace(_GETSIGMASK, pid, ctypes.sizeof(mask), ctypes.addressof(mask))
    _ptrace(_SETSIGMASK, pid, ctypes.sizeof(everything), ctypes.addressof(everything))
    process = Injected(pid, _get_registers(pid))
    try:
        yield process
    except BaseException:
        with suppress(Refused):  # what is wrong with it is said already
            _put_back(process, mask)
        raise
    _put_back(process, mask)


def _put_back(process: Injected, mask: ctypes.c_uint64) -> None:
    """Leave it as it was, stopped as by an interrupt, before it runs anything of its own."""
    pid = process.pid
    process.restore()
    _ptrace(_SETSIGMASK, pid, ctypes.sizeof(mask), ctypes.addressof(mask))
    _ptrace(_INTERRUPT, pid)
    _resume(pid, 0)
    event, _ = _wait(pid)
    if event != _EVENT_STOP:
        raise not_attested(pid, "does not stop")
    _ptrace(_SETOPTIONS, pid, 0, 0)


def _undelivered(pid: int) -> int:
    """The signal whose delivery the stop has interrupted, or 0: from where we leave it, nobody else can deliver it."""
    event, signal = _wait(pid)
    return 0 if event or signal == _SYSCALL_TRAP else signal


def _next_call(
    pid: int, op: int, signal: int = 0, meanwhile: Callable[[], None] | None = None
) -> _SyscallInfo:
    """Let it run to the entry or the exit of a system call."""
    problem = None
    for _ in range(_MOST_STOPS):
        _resume(pid, signal)
        if meanwhile is not None:
            problem, meanwhile = _problem_of(meanwhile), None
        event, signal = _wait(pid)
        if (event, signal) == (0, _SYSCALL_TRAP):
            info = _SyscallInfo()
            size = ctypes.sizeof(info)
            if _libc.ptrace(_GET_SYSCALL_INFO, pid, size, ctypes.addressof(info)) <= 0:
                raise not_attested(pid, f"cannot be inspected: {os.strerror(ctypes.get_errno())}")
            if info.op != op:
                raise not_attested(pid, "does not make the call that it was given")
            if problem is not None:
                raise problem
            return info
        if event:
            signal = 0
    raise not_attested(pid, "is kept from its system calls by signals")


def _problem_of(what: Callable[[], None]) -> Refused | None:
    try:
        what()
    except Refused as refused:
        return refused
    return None


def _wait(pid: int) -> tuple[int, int]:
    """Wait for its next stop: the event, and the signal."""
    deadline, pauses = time.monotonic() + DEADLINE, Pauses(_LONGEST_PAUSE)
    while (found := _poll(pid)) is None:
        if time.monotonic() > deadline:
            raise not_attested(pid, f"made no system call within {DEADLINE} s")
        pauses.wait()
    if found.si_code != os.CLD_TRAPPED:
        raise not_attested(pid, "died while it was inspected")
    return divmod(found.si_status, 256)


def _poll(pid: int) -> os.waitid_result | None:
    try:
        return os.waitid(os.P_PID, pid, _WAIT_OPTIONS)
    except ChildProcessError as error:
        raise not_attested(pid, "became another program while it was inspected") from error


def _resume(pid: int, signal: int) -> None:
    _ptrace(_SYSCALL, pid, 0, signal)


def _get_registers(pid: int) -> _Registers:
    registers = _Registers()
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(registers))
    return registers


def _set_registers(pid: int, registers: _Registers) -> None:
    _ptrace(_SETREGS, pid, 0, ctypes.addressof(registers))


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) != 0:
        code = ctypes.get_errno()
        raise not_attested(pid, f"cannot be inspected: {os.strerror(code)}")
