"""A system call filter."""

from __future__ import annotations

import binascii
import ctypes

from egs_kernel.apply.libc import prctl

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_INSTRUCTION_SIZE = 8


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def apply(step: dict[str, str]) -> None:
    """Install the step's filter."""
    content = binascii.a2b_base64(step["filter"])
    program = _Program(len(content) // _INSTRUCTION_SIZE, content)
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))
