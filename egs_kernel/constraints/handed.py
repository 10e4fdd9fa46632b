"""What network a program was handed by its caller: sockets that are open in its image before it runs anything.

A socket keeps the network namespace that it was made in, and Landlock asks only when it is connected or bound.
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Final

from egs_kernel.constraints.proc import descriptors, not_attested
from egs_kernel.errors import Refused

_PIDFD_GETFD: Final = 438
_DOORS: Final = {"anon_inode:[io_uring]": "an io_uring", "/dev/net/tun": "a tunnel"}
"""Other descriptors that a network can lie behind, by what /proc calls them."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def require_no_network(pid: int) -> None:
    """Check the open descriptors of a process that is held.

    Raises:
        Refused: one of them is a socket that is not AF_UNIX, or another way to a network.
    """
    try:
        process = os.pidfd_open(pid)
        try:
            for descriptor, name in descriptors(pid):
                _check(pid, process, descriptor, name)
        finally:
            os.close(process)
    except OSError as error:
        raise not_attested(pid, f"cannot be inspected: its sockets: {error.strerror}") from error


def _check(pid: int, process: int, descriptor: int, name: str) -> None:
    if name in _DOORS:
        raise _handed(pid, descriptor, _DOORS[name])
    if name.startswith("socket:"):
        with _borrowed(process, descriptor) as its:
            if its.family != socket.AF_UNIX:
                raise _handed(pid, descriptor, f"a socket of the family {int(its.family)}")


def _borrowed(process: int, descriptor: int) -> socket.socket:
    ours = int(_libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
    if ours < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return socket.socket(fileno=ours)


def _handed(pid: int, descriptor: int, what: str) -> Refused:
    return not_attested(
        pid,
        f"was handed {what} as descriptor {descriptor}",
        "Start it without: its constraint permits it no network of yours.",
    )
