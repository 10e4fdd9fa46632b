"""A system call filter."""

import _ctypes
import binascii
import posix

from egs_kernel.apply.libc import Short, Text, byref, system_call

_SECCOMP = 317 if posix.uname().machine == "x86_64" else 277
_SET_MODE_FILTER, _FLAG_LOG = 1, 2
_INSTRUCTION_SIZE = 8


class _Program(_ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", Short), ("filter", Text))


def apply(step: dict[str, str]) -> None:
    """Install the step's filter. What it refuses the kernel is to report."""
    content = binascii.a2b_base64(step["filter"])
    program = _Program(len(content) // _INSTRUCTION_SIZE, content)
    system_call(_SECCOMP, _SET_MODE_FILTER, _FLAG_LOG, byref(program))
