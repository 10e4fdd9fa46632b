"""Capabilities: all of them are given up but those that are to stay."""

from __future__ import annotations

import ctypes
import os

from egs_kernel.apply.libc import prctl

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SETPCAP = 8
_EINVAL = 22

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    """struct __user_cap_data_struct: one half of the bits of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def apply(step: dict[str, int]) -> None:
    """Narrow every set to the kept ones; the bounding set, too, where this process may."""
    kept = step["kept"]
    header, sets = _Header(_VERSION, 0), (_Set * 2)()
    _check(_libc.capget(ctypes.byref(header), sets))
    if sets[0].effective >> _SETPCAP & 1:
        _narrow_bounding(kept)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for half, bits in ((sets[0], kept & 0xFFFFFFFF), (sets[1], kept >> 32)):
        half.effective &= bits
        half.permitted &= bits
        half.inheritable &= bits
    _check(_libc.capset(ctypes.byref(header), sets))


def _narrow_bounding(kept: int) -> None:
    number = 0
    while (present := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if present and not kept >> number & 1:
            prctl(_PR_CAPBSET_DROP, number)
        number += 1


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
