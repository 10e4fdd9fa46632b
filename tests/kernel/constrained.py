"""A child for the attestation tests: does the steps of its command line, one after the other.

    nnp | filter:FILE | unlogged:FILE | thread | name:HEX | vfork | signals:FD | call:NUMBER:ARGUMENT…
    int80:NUMBER | wait | exec:PROGRAM:ARGUMENT… | replace (a thread executes this program anew)

`call` prints the errno of a system call (0: it succeeded). `wait` and `vfork` say "ready" and wait for a line.
It imports nothing but the standard library: this is what the real launcher looks like to the kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 15, 38
SECCOMP_SET_MODE_FILTER = 1
SYS_CLONE, SYS_SECCOMP = (56, 317) if os.uname().machine == "x86_64" else (220, 277)
CLONE_VFORK = 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def install(program: bytes, flags: int = 2) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    description = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(description)) != 0:
        say(f"failed {ctypes.get_errno()}")


def vfork() -> None:
    """Be held until a child ends, as a caller of vfork is: not even ptrace stops it before that."""
    say("ready")
    if libc.syscall(SYS_CLONE, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os.read(0, 1)
        os._exit(0)


def int80(number: int) -> None:
    """Make a system call by the convention of i386."""
    # push rbx; mov eax, number; int 0x80; pop rbx; ret
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8" + number.to_bytes(4, "little") + b"\xcd\x80\x5b\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    say(str(ctypes.CFUNCTYPE(ctypes.c_int)(address)()))


def call(text: str) -> None:
    number, *arguments = (int(part, 0) for part in text.split(":"))
    failed = libc.syscall(number, *(ctypes.c_long(argument) for argument in arguments)) < 0
    say(str(ctypes.get_errno() if failed else 0))


def report_signals(descriptor: int) -> None:
    """Have the interpreter's own C handler write one byte for each signal that arrived."""
    signal.signal(signal.SIGRTMIN, lambda *_: None)
    os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(descriptor)


def wait() -> None:
    say("ready")
    os.read(0, 1)


def execute(text: str) -> None:
    argv = text.split(":")
    os.execv(argv[0], argv)


def replace() -> None:
    """Execute this program from a second thread: the kernel ends the first and passes its pid on."""
    say("ready")
    threading.Thread(target=os.execv, args=(sys.executable, sys.orig_argv)).start()
    threading.Event().wait()


STEPS: dict[str, Callable[[str], object]] = {
    "nnp": lambda _: libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    "filter": lambda file: install(Path(file).read_bytes()),
    "unlogged": lambda file: install(Path(file).read_bytes(), 0),
    "thread": lambda _: threading.Thread(target=threading.Event().wait, daemon=True).start(),
    "name": lambda name: libc.prctl(PR_SET_NAME, bytes.fromhex(name), 0, 0, 0),
    "signals": lambda descriptor: report_signals(int(descriptor)),
    "vfork": lambda _: vfork(),
    "call": call,
    "int80": lambda number: int80(int(number)),
    "wait": lambda _: wait(),
    "exec": execute,
    "replace": lambda _: replace(),
}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, _, value = argument.partition(":")
        STEPS[name](value)
