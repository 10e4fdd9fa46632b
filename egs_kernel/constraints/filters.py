"""The seccomp filters of a process that is held by ptrace, as the kernel has them.

The kernel numbers filters from the oldest (0) to the newest; `test_attest.py` shows it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final, NoReturn

from egs_kernel.constraints.proc import not_attested

_SECCOMP_GET_FILTER: Final = 0x420C  # linux/ptrace.h
_SECCOMP_GET_METADATA: Final = 0x420D
_FLAG_LOG: Final = 2  # linux/seccomp.h
_INSTRUCTION_SIZE: Final = 8
_MAX_FILTERS: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class _Metadata(ctypes.Structure):
    """struct seccomp_metadata."""

    _fields_ = (("filter", ctypes.c_uint64), ("flags", ctypes.c_uint64))


def read_filters(pid: int, count: int) -> tuple[bytes, ...]:
    """The programs as `struct sock_filter` arrays, the oldest first. The calling thread holds the process stopped.

    Raises:
        Refused: they cannot be read.
    """
    if count > _MAX_FILTERS:
        raise not_attested(pid, f"has {count} seccomp filters; at most {_MAX_FILTERS} are inspected")
    return tuple(_read_filter(pid, index) for index in range(count))


def read_logged(pid: int, count: int) -> tuple[bool, ...]:
    """Whether the kernel reports what each of them refuses, as `read_filters` counts.

    Raises:
        Refused: the kernel does not say.
    """
    return tuple(_read_logged(pid, index) for index in range(count))


def _read_logged(pid: int, index: int) -> bool:
    found = _Metadata(filter=index)
    size = ctypes.sizeof(found)
    if _libc.ptrace(_SECCOMP_GET_METADATA, pid, size, ctypes.addressof(found)) != size:
        _fail_to_read(pid, ctypes.get_errno())
    return bool(found.flags & _FLAG_LOG)


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
        raise not_attested(
            pid,
            "cannot be inspected: egsd runs under a seccomp filter itself, or lacks CAP_SYS_ADMIN",
            "Remove from egsd.service what installs a filter (docs/systemd.md lists the directives).",
        )
    if code == errno.EINVAL:
        raise not_attested(
            pid,
            "cannot be inspected: this kernel does not show seccomp filters",
            "Use a kernel that is built with CONFIG_CHECKPOINT_RESTORE=y.",
        )
    raise not_attested(pid, f"has filters that cannot be read: {os.strerror(code)}")
