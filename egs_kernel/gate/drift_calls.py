"""The system calls that can change what runs, by their numbers on x86: what the drift programs look at.

The C knows actions and no numbers. A 64-bit program has one number for a call, a 32-bit one another; a 64-bit program may
use the others at any time (int 0x80). Numbers above 511 are those of x32 where it differs from 64 bit.
"""

from __future__ import annotations

from typing import Final

from egs_kernel.gate.drift_abi import Action, Call, Demand

NATIVE: Final[dict[int, Action]] = {
    2: Action.OPEN,
    257: Action.OPENAT,
    85: Action.OPENED,  # creat
    304: Action.OPENED,  # open_by_handle_at
    437: Action.OPENED,  # openat2
    101: Action.PTRACE,
    521: Action.PTRACE,
    311: Action.VM_WRITE,
    540: Action.VM_WRITE,
    308: Action.SETNS,
    272: Action.UNSHARE,
    155: Action.ROOT,  # pivot_root
    161: Action.ROOT,  # chroot
    9: Action.MMAP,
    10: Action.MPROTECT,
    329: Action.MPROTECT,  # pkey_mprotect
    135: Action.PERSONALITY,
    30: Action.SHMAT,
    105: Action.CREDENTIALS,  # setuid
    106: Action.CREDENTIALS,  # setgid
    113: Action.CREDENTIALS,  # setreuid
    114: Action.CREDENTIALS,  # setregid
    116: Action.CREDENTIALS,  # setgroups
    117: Action.CREDENTIALS,  # setresuid
    119: Action.CREDENTIALS,  # setresgid
    122: Action.CREDENTIALS,  # setfsuid
    123: Action.CREDENTIALS,  # setfsgid
    126: Action.CREDENTIALS,  # capset
    157: Action.PRCTL,
    321: Action.BPF,
}
"""Of 64-bit programs."""

COMPAT: Final[dict[int, Action]] = {
    5: Action.OPEN,
    295: Action.OPENAT,
    8: Action.OPENED,
    342: Action.OPENED,
    437: Action.OPENED,
    26: Action.PTRACE,
    348: Action.VM_WRITE,
    346: Action.SETNS,
    310: Action.UNSHARE,
    61: Action.ROOT,  # chroot
    217: Action.ROOT,  # pivot_root
    90: Action.OLD_MMAP,
    192: Action.MMAP,  # mmap2
    125: Action.MPROTECT,
    380: Action.MPROTECT,
    136: Action.PERSONALITY,
    117: Action.IPC,
    397: Action.SHMAT,
    23: Action.CREDENTIALS,
    46: Action.CREDENTIALS,
    70: Action.CREDENTIALS,
    71: Action.CREDENTIALS,
    81: Action.CREDENTIALS,
    138: Action.CREDENTIALS,
    139: Action.CREDENTIALS,
    164: Action.CREDENTIALS,
    170: Action.CREDENTIALS,
    185: Action.CREDENTIALS,  # capset
    203: Action.CREDENTIALS,
    204: Action.CREDENTIALS,
    206: Action.CREDENTIALS,
    208: Action.CREDENTIALS,
    210: Action.CREDENTIALS,
    213: Action.CREDENTIALS,
    214: Action.CREDENTIALS,
    215: Action.CREDENTIALS,
    216: Action.CREDENTIALS,
    172: Action.PRCTL,
    357: Action.BPF,
}
"""Of 32-bit programs (i386)."""

_DEMANDS: Final = {
    Action.MMAP: Demand.CODE,
    Action.MPROTECT: Demand.CODE,
    Action.OPENAT: Demand.WRITING,
}
"""Actions that depend on the third argument alone."""


def calls_by_number() -> dict[int, Call]:
    """What is done about each number. Pure."""
    return {number: _call(number) for number in sorted(NATIVE.keys() | COMPAT.keys())}


def _call(number: int) -> Call:
    actions = [table[number] for table in (NATIVE, COMPAT) if number in table]
    demands = {_DEMANDS.get(action, Demand.NOTHING) for action in actions}
    demand = demands.pop() if len(demands) == 1 else Demand.NOTHING
    return Call(native=NATIVE.get(number, 0), compat=COMPAT.get(number, 0), demand=demand)
