"""The kernel's audit messages as they come: a netlink socket, and whether anything comes by it.

Everybody with CAP_AUDIT_READ may listen; who writes the audit log, or that nobody does, makes no difference. The kernel
sends them in its first network namespace only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.constraints.libseccomp import load_library
from egs_kernel.constraints.refusals import DomainSeen, Refused, parse
from egs_kernel.errors import EgsError, HostLacks
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NETLINK_AUDIT: Final = 9
_READLOG: Final = 1  # AUDIT_NLGRP_READLOG
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_LARGEST: Final = 64 * 1024
_AT_A_TIME: Final = 64
_BUFFER: Final = 4 * 1024 * 1024
_CLONE_NEWNET: Final = 0x40000000
_X32_BIT: Final = 0x40000000
_PROBE_SECONDS: Final = 0.5
_PROBED_CALL: Final = "getppid"
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_READ_DIR: Final = 1 << 3  # linux/landlock.h


class Lost(Exception):
    """Messages came faster than they were read; the kernel dropped some."""


class KernelMessages:
    """An open source of audit messages. Belongs to one thread."""

    def __init__(self) -> None:
        """Open it. Raises HostLacks when this process may not, or the kernel has no audit."""
        # The daemon may live in a network namespace of its own; the socket stays in the one that it was made in.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-messages") as thread:
            self._socket = thread.submit(_open).result()

    def fileno(self) -> int:
        """What to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def read(self) -> Iterator[tuple[int, bytes]]:
        """What has come: types and texts. Not more than a few at a time, as others wait for this thread, too.

        Raises:
            Lost: some were dropped. Reading can go on.
        """
        for _ in range(_AT_A_TIME):
            try:
                data, sender = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Lost from error
                raise
            # From the kernel: whoever has CAP_NET_ADMIN may send to the group, too.
            if sender[0] == 0 and len(data) >= _HEADER.size:
                yield _message(data)


def open_messages() -> KernelMessages:
    """Open the source, and have the kernel say something by it.

    Raises:
        HostLacks: nothing comes: what it takes is in the message.
    """
    source = KernelMessages()
    try:
        _require_news(source)
    except BaseException:
        source.close()
        raise
    return source


def require_landlock_news() -> None:
    """Have Landlock refuse a thread of ours something, and see whether the kernel says so.

    Raises:
        HostLacks: it does not; what it takes is in the message.
    """
    source = KernelMessages()
    try:
        found = _after(source, _be_confined)
        if not any(isinstance(item, DomainSeen) and item.pid == os.getpid() for item in found):
            raise _lacks(
                "the kernel does not report what Landlock refuses",
                "Boot Linux 6.15 or later, and enable auditing: auditctl -e 1, or the boot parameter audit=1.",
            )
    finally:
        source.close()


def name_call(architecture: int, number: int) -> str:
    """The name of a system call: with the convention, when it is not the native one; a number that has none as such."""
    seccomp = load_library("constraints.syscalls")
    arch, prefix = architecture, ""
    if architecture == seccomp.Arch.X86_64 and number & _X32_BIT:
        arch, prefix = seccomp.Arch.X32, "x32 "
    elif architecture != seccomp.system_arch():
        prefix = "i386 " if architecture == seccomp.Arch.X86 else "foreign "
    try:
        return prefix + str(seccomp.resolve_syscall(arch, number).decode())
    except (OSError, ValueError):
        return f"{prefix}call {number}"


def _open() -> socket.socket:
    try:
        _enter_first_network()
        source = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETLINK_AUDIT,
        )
    except OSError as error:
        raise _lacks(error.strerror or str(error), "Use a kernel with CONFIG_AUDIT=y.") from error
    try:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        source.bind((0, _READLOG))
    except OSError as error:
        source.close()
        raise _lacks(
            error.strerror or str(error),
            "Give CAP_AUDIT_READ to egsd (CapabilityBoundingSet= in egsd.service).",
        ) from error
    return source


def _enter_first_network() -> None:
    """Move this thread into the network namespace of process 1; where that one may not be looked at, it stays."""
    first = Path("/proc/1/ns/net")
    try:
        if first.readlink() == Path("/proc/thread-self/ns/net").readlink():
            return
    except PermissionError:
        return  # of a container, perhaps; whether anything comes is tried afterwards
    libc = ctypes.CDLL(None, use_errno=True)
    with first.open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _require_news(source: KernelMessages) -> None:
    """Have a thread of ours be refused a call, and wait for the kernel to say so."""
    wanted = ("syscalls", _PROBED_CALL, os.getpid())
    found = _after(source, _be_refused)
    if any(isinstance(item, Refused) and (item.word, item.what, item.pid) == wanted for item in found):
        return
    raise _lacks(
        "the kernel does not report what a seccomp filter refuses",
        "Boot without audit=0, let `errno`, `kill_process` and `log` stand in the sysctl kernel.seccomp.actions_logged, and "
        "remove rules that exclude messages of the type SECCOMP (auditctl -l).",
    )


def _after(source: KernelMessages, act: Callable[[], None]) -> Iterator[Refused | DomainSeen]:
    """What is said of refusals in the time after a thread did something."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-refused") as thread:
        thread.submit(act).result()
    deadline = time.monotonic() + _PROBE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        select.select([source], [], [], left)
        with suppress(Lost):
            for kind, text in source.read():
                found = parse(kind, text, name_call)
                if found is not None:
                    yield found


def _be_confined() -> None:
    """A Landlock domain binds this thread alone, and ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", _READ_DIR)
    ruleset = libc.syscall(ctypes.c_long(_CREATE_RULESET), handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0 or libc.syscall(ctypes.c_long(_RESTRICT_SELF), ruleset, 0) != 0:
        raise _lacks(f"Landlock: {os.strerror(ctypes.get_errno())}", "Use a kernel with Landlock.")
    os.close(ruleset)
    with suppress(PermissionError):
        list(Path("/").iterdir())


def _be_refused() -> None:
    """The filter binds this thread alone, and ends with it."""
    try:
        seccomp: Any = load_library("constraints.syscalls")
        program = seccomp.SyscallFilter(seccomp.ALLOW)
        program.set_attr(seccomp.Attr.CTL_NNP, 0)
        program.set_attr(seccomp.Attr.CTL_LOG, 1)
        program.add_rule_exactly(seccomp.ERRNO(errno.EPERM), _PROBED_CALL)
        program.load()
    except EgsError as error:
        raise HostLacks(error.reason, error.message, error.next_step) from error
    except OSError as error:
        raise _lacks(f"it cannot be tried: {error.strerror}", "Run it as root.") from error
    ctypes.CDLL(None).getppid()


def _message(data: bytes) -> tuple[int, bytes]:
    """A datagram is one message. Its length field is not asked: kernels differ in whether it counts the header."""
    _, kind, *_ = _HEADER.unpack_from(data)
    return kind, data[_HEADER.size :]


def _lacks(problem: str, cure: str) -> HostLacks:
    return HostLacks(Reason.KERNEL_UNSUPPORTED, f"refusals by constraints are not seen: {problem}", cure)
