"""Run a command and see which system calls it and all that it starts make, as its own user.

A seccomp filter of the command asks this process about every call but those that every launch needs, and this process
answers: go on. So a whole tree of processes is seen, threads too, and none of them is traced. The command runs with
no_new_privs, as under any constraint: programs that change the user on their own do not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from egs_kernel.apply.libc import prctl, system_call
from egs_kernel.constraints.libseccomp import export, load_library
from egs_kernel.constraints.syscalls import LAUNCH
from egs_kernel.errors import HostLacks, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP: Final = 317 if os.uname().machine == "x86_64" else 277
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER, _WAIT_KILLABLE = 8, 32
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE: Final = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_RESPOND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_FAILED: Final = 127

Take = Callable[[int, int, tuple[int, ...]], None]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Child:
    """The command."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def status(self) -> int:
        """Wait for its end; as waitpid(2)."""
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status


def record(command: Sequence[str], take: Take, *, quiet: bool) -> int:
    """Run the command until everything that it started has ended.

    Args:
        command: argv; the program is looked for as a shell does.
        take: called with the convention (linux/audit.h, AUDIT_ARCH_*), number and arguments of each call.
        quiet: its output goes to our standard error, as our own output is for programs.

    Returns:
        Its exit code, 128+n for a signal.

    Raises:
        HostLacks: this kernel, or what we run under, does not let us.
        UsageError: it cannot be executed.
    """
    program = _filter()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become(command, program, theirs, quiet=quiet)
    child = _Child(pid)
    theirs.close()
    # What ends the command from the terminal ends us with it, when it has ended.
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)]
    try:
        listener = _listener(ours)
        try:
            _answer(listener, take, child)
        finally:
            os.close(listener)
        failure = ours.recv(4096)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGQUIT), before, strict=True):
            signal.signal(number, handler)
        ours.close()
        status = child.status()
    if failure:
        raise UsageError(Reason.NOT_FOUND, f"{command[0]}: {failure.decode()}", "Name a program.")
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _filter() -> bytes:
    """Ask about everything but what every launch needs: that is allowed in any case, and is most of all calls."""
    seccomp = load_library("syscalls")
    program = seccomp.SyscallFilter(seccomp.NOTIFY)
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.NOTIFY)
    for name in sorted(LAUNCH):
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number >= 0:
            program.add_rule_exactly(seccomp.ALLOW, number)
    return export(program)


def _become(command: Sequence[str], content: bytes, channel: socket.socket, *, quiet: bool) -> NoReturn:
    """In the child: install the filter, hand its listener over, execute. Nothing but calls of LAUNCH in between."""
    try:
        if quiet:
            os.dup2(2, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them
        program = _Program(len(content) // 8, content)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        socket.send_fds(channel, [b"l"], [_install(program)])
        os.execvp(command[0], list(command))
    except OSError as error:
        channel.sendall((error.strerror or str(error)).encode())
    finally:
        os._exit(_FAILED)


def _install(program: _Program) -> int:
    pointer = ctypes.byref(program)
    try:
        return system_call(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, pointer)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return system_call(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, pointer)  # before Linux 5.19


def _listener(channel: socket.socket) -> int:
    said, descriptors, _, _ = socket.recv_fds(channel, 4096, 1)
    if descriptors:
        return descriptors[0]
    raise HostLacks(
        Reason.KERNEL_UNSUPPORTED,
        f"what it calls cannot be seen: {said.decode() or 'it ended'}",
        "Use Linux 5.9 or later, and not in a container that watches its system calls itself.",
    )


def _answer(listener: int, take: Take, child: _Child) -> None:
    """Until nobody uses the filter any more.

    On older kernels (6.1 for one) who has ended uses it until somebody has waited for it, and that is us.
    """
    ended = os.pidfd_open(child.pid)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    waiting.register(ended, select.POLLIN)
    try:
        while True:
            for descriptor, events in waiting.poll():
                if descriptor == ended:
                    child.status()
                    waiting.unregister(ended)
                elif events & select.POLLIN:
                    _answer_one(listener, take)
                elif events & (select.POLLHUP | select.POLLERR):
                    return
    finally:
        os.close(ended)


def _answer_one(listener: int, take: Take) -> None:
    question = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
        number_of_question, _pid, _flags, number, convention, _pointer, *arguments = _NOTIFICATION.unpack(
            question
        )
        take(convention, number, tuple(arguments))
        fcntl.ioctl(listener, _RESPOND, _RESPONSE.pack(number_of_question, 0, 0, _CONTINUE))
    except FileNotFoundError:
        pass  # a signal ended it meanwhile
