"""What the self-test of the drift programs has done: by a specimen to itself, and by this process to a specimen."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.gate.specimen import PROGRAM, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PTRACE_TRACEME: Final = 0
_PTRACE_DETACH: Final = 17
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_SYS_CAPGET: Final = 125
_SYS_CAPSET: Final = 126
_SYS_OPENAT2: Final = 437
_AT_FDCWD: Final = -100
_CAPABILITY_VERSION: Final = 0x20080522
_MAP_32BIT: Final = 0x40
_COMPAT_GETPID: Final = 20
_COMPAT_MPROTECT: Final = 125
_CODE: Final = mmap.PROT_READ | mmap.PROT_EXEC
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_CALL_32: Final = bytes.fromhex("53 4989c8 89f8 89f3 89d1 4489c2 4531db cd80 5b c3")
"""push rbx; the four arguments into eax, ebx, ecx, edx; r11 to 0; int 0x80; pop rbx; ret."""
WORD: Final = ctypes.create_string_buffer(b"untouched")
"""At the same place in a child."""
PAGE: Final = mmap.PAGESIZE
USERS: Final = (61234, 61235)
"""Real and effective."""
GROUPS: Final = (61236, 61237)
EFFECTIVE: Final = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID."""


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _CapabilityHead(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    """struct __user_cap_data_struct."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def do_to(pid: int) -> None:
    """Write the memory of this child, and trace it, after another one: it is the last of two."""
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC))
    _open_to_read(f"/proc/{pid}/mem")
    vector = _Vector(ctypes.addressof(WORD), len(WORD))
    places = ctypes.byref(vector), ctypes.c_ulong(1)
    _succeed(
        "process_vm_writev", _LIBC.process_vm_writev(pid, *places, *places, ctypes.c_ulong(0)) == len(WORD)
    )
    with _bystander() as other:
        for traced in (other, pid):
            _succeed("PTRACE_SEIZE", _LIBC.ptrace(_PTRACE_SEIZE, traced, None, None) == 0)
    _LIBC.ptrace(_PTRACE_INTERRUPT, pid, None, None)
    os.waitpid(pid, 0)
    _LIBC.ptrace(_PTRACE_DETACH, pid, None, None)


def do_to_oneself(*, calls_32_bit: bool) -> None:
    """Everything that a process can do alone, and what only root can last."""
    os.close(os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC))
    mmap.mmap(-1, PAGE, _PRIVATE, _CODE)
    memory = mmap.mmap(-1, PAGE, _PRIVATE)
    _LIBC.mprotect(ctypes.c_void_p(_address(memory)), ctypes.c_size_t(PAGE), _CODE)
    program = os.open(PROGRAM, os.O_RDONLY | os.O_CLOEXEC)
    mmap.mmap(program, 0, mmap.MAP_PRIVATE, _CODE)
    child = os.fork()
    if child == 0:
        _LIBC.ptrace(_PTRACE_TRACEME, 0, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    if calls_32_bit:
        low = mmap.mmap(-1, 2 * PAGE, _PRIVATE | _MAP_32BIT)
        _call_32(_COMPAT_MPROTECT, _address(low), 2 * PAGE, _CODE)
    _lower_capabilities()
    os.setresgid(*GROUPS, GROUPS[0])
    _LIBC.setfsgid(GROUPS[0])
    os.setresuid(*USERS, USERS[0])


def permitted_after() -> int:
    """What do_to_oneself leaves of this process's permitted capabilities."""
    return _permitted() & ~_dropped(_permitted())


def takes_32_bit_calls() -> bool:
    """Whether this kernel takes system calls of 32-bit programs: whoever tries in vain is killed."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os._exit(0 if _call_32(_COMPAT_GETPID, 0, 0, 0) == os.getpid() else 1)
    return os.waitpid(child, 0)[1] == 0


def nameless_copy() -> int:
    """A program without a name in any folder."""
    copy = os.memfd_create("egs-self-test")
    os.write(copy, Path(PROGRAM).read_bytes())
    return copy


def _call_32(number: int, *arguments: int) -> int:
    memory = mmap.mmap(-1, PAGE, _PRIVATE, _CODE | mmap.PROT_WRITE)
    memory.write(_CALL_32)
    call = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_long,) * 4)(_address(memory))
    return int(call(number, *arguments))


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _open_to_read(path: str) -> None:
    """By a call whose flags are not looked at, only what came of them."""
    how = _How(flags=os.O_RDONLY | os.O_CLOEXEC)
    arguments = (ctypes.c_long(_AT_FDCWD), path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    descriptor = _LIBC.syscall(ctypes.c_long(_SYS_OPENAT2), *arguments)
    _succeed("openat2", descriptor >= 0)
    os.close(descriptor)


@contextmanager
def _bystander() -> Iterator[int]:
    """A process that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _lower_capabilities() -> None:
    """Permitted and effective are different, and none is what it was."""
    head, data = _CapabilityHead(_CAPABILITY_VERSION, 0), (_Capabilities * 2)()
    _LIBC.syscall(ctypes.c_long(_SYS_CAPGET), ctypes.byref(head), data)
    permitted = permitted_after()
    for word in range(2):
        data[word].permitted = permitted >> 32 * word & 0xFFFFFFFF
        data[word].effective = EFFECTIVE >> 32 * word & 0xFFFFFFFF
        data[word].inheritable = 0
    _LIBC.syscall(ctypes.c_long(_SYS_CAPSET), ctypes.byref(head), data)


def _permitted() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def _dropped(permitted: int) -> int:
    """One capability that the self-test can do without."""
    others = permitted & ~EFFECTIVE
    return others & -others


def _succeed(call: str, done: bool) -> None:  # noqa: FBT001 - the answer of the call
    if not done:
        fail(f"drift: {call}: {os.strerror(ctypes.get_errno())}")
