"""A system call filter."""

from __future__ import annotations

import binascii
import ctypes
import os

from egs_kernel.apply.libc import system_call

_SECCOMP = 317 if os.uname().machine == "x86_64" else 277
_SET_MODE_FILTER, _FLAG_LOG = 1, 2
_INSTRUCTION_SIZE = 8


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def apply(step: dict[str, str]) -> None:
    """Install the step's filter. What it refuses the kernel is to report."""
    content = binascii.a2b_base64(step["filter"])
    program = _Program(len(content) // _INSTRUCTION_SIZE, content)
    system_call(_SECCOMP, _SET_MODE_FILTER, _FLAG_LOG, ctypes.byref(program))
