"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: object) -> None:
    """Have the kernel change something of this process.

    Raises:
        OSError: the kernel refused.
    """
    given = [*arguments, 0, 0, 0, 0][:4]
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in given]
    if _libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
