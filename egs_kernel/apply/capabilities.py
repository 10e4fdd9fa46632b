"""Capabilities: all of them are given up but those that are to stay."""

import _ctypes
import posix

from egs_kernel.apply.libc import Word, byref, prctl, system_call

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAPGET, _CAPSET = (125, 126) if posix.uname().machine == "x86_64" else (90, 91)
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SETPCAP = 8
_EINVAL = 22
_MOST = 64


class _Header(_ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", Word), ("pid", Word))


class _Set(_ctypes.Structure):
    """struct __user_cap_data_struct: one half of the bits of each set."""

    _fields_ = (("effective", Word), ("permitted", Word), ("inheritable", Word))


class _Sets(_ctypes.Structure):
    """Both halves."""

    _fields_ = (("low", _Set), ("high", _Set))


def apply(step: dict[str, int]) -> None:
    """Narrow every set to the kept ones; the bounding set, too, where this process may."""
    kept = step["kept"]
    header, sets = _Header(_VERSION, 0), _Sets()
    system_call(_CAPGET, byref(header), byref(sets))
    if sets.low.effective >> _SETPCAP & 1:
        _narrow_bounding(kept)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for half, bits in ((sets.low, kept & 0xFFFFFFFF), (sets.high, kept >> 32)):
        half.effective &= bits
        half.permitted &= bits
        half.inheritable &= bits
    system_call(_CAPSET, byref(header), byref(sets))


def _narrow_bounding(kept: int) -> None:
    for number in range(_MOST):
        if not kept >> number & 1:
            try:
                prctl(_PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != _EINVAL:
                    raise
                return  # this kernel has none of this number, and none above it
