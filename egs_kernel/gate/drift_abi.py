"""The mirror of bpf/egs_drift.h: what crosses between the drift programs and the monitor.

`tests/unit/test_abi.py` compiles the header with the host's C compiler and compares every number, size and
offset. Change both together, and raise ABI_VERSION.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_uint8, c_uint32, c_uint64
from enum import IntEnum, IntFlag
from typing import Final

from egs_kernel.gate.abi import COMM, FileId

ABI_VERSION: Final = 1

PAGES: Final = 128
NAME: Final = 128
OBJECTS: Final = 256
OBJECT_NAME: Final = 32
WRITERS: Final = 16
CALLS: Final = 1024
RATES: Final = 8192
RATE: Final = 32
RATE_ORDINARY: Final = 256
KINDS: Final = 16
NO_SCOPE: Final = 0xFFFFFFFF


class Kind(IntEnum):
    """enum egs_drift_kind."""

    TRACED = 1
    MEMORY_OPENED = 2
    MEMORY_WRITTEN = 3
    NAMESPACE = 4
    ROOT = 5
    CODE_MAPPED = 6
    CODE_ANONYMOUS = 7
    CODE_PROTECTED = 8
    CREDENTIALS = 9
    CGROUP = 10
    EXEC = 11
    CHILD = 12
    GATE_WRITTEN = 13
    MODULE = 14
    CHILD_APART = 15


class ExecFlag(IntFlag):
    """enum egs_drift_exec."""

    NAMELESS = 1
    MEMFD = 2


class Action(IntEnum):
    """enum egs_drift_action."""

    OPEN = 1
    OPENAT = 2
    OPENED = 3
    PTRACE = 4
    VM_WRITE = 5
    SETNS = 6
    UNSHARE = 7
    ROOT = 8
    MMAP = 9
    OLD_MMAP = 10
    MPROTECT = 11
    PERSONALITY = 12
    SHMAT = 13
    IPC = 14
    CREDENTIALS = 15
    PRCTL = 16
    BPF = 17


class Demand(IntEnum):
    """enum egs_drift_demand."""

    NOTHING = 0
    CODE = 1
    WRITING = 2


class Failure(IntEnum):
    """enum egs_drift_failure."""

    ROOM = 0
    STATE = 1
    USER = 2
    TARGET = 3
    RATE = 4


class ObjectKind(IntEnum):
    """enum egs_drift_object_kind."""

    MAP = 1
    PROGRAM = 2


class Config(Structure):
    """struct egs_drift_config."""

    _fields_ = (("abi_version", c_uint32), ("pad", c_uint32))
    abi_version: int


class Call(Structure):
    """struct egs_drift_call."""

    _fields_ = (("native", c_uint8), ("compat", c_uint8), ("demand", c_uint8), ("pad", c_uint8))
    native: int
    compat: int
    demand: int


class ObjectKey(Structure):
    """struct egs_drift_object_key."""

    _fields_ = (("kind", c_uint32), ("id", c_uint32))
    kind: int
    id: int


class Object(Structure):
    """struct egs_drift_object."""

    _fields_ = (("name", c_char * OBJECT_NAME), ("always", c_uint32))
    name: bytes
    always: int


class RateKey(Structure):
    """struct egs_drift_rate_key."""

    _fields_ = (("pid", c_uint32), ("kind", c_uint32))


class Rate(Structure):
    """struct egs_drift_rate."""

    _fields_ = (("second", c_uint64), ("count", c_uint32), ("pad", c_uint32))


class Event(Structure):
    """struct egs_drift_event."""

    _fields_ = (
        ("kind", c_uint32),
        ("scope", c_uint32),
        ("time", c_uint64),
        ("execution", c_uint64),
        ("started", c_uint64),
        ("address", c_uint64),
        ("number", c_uint64),
        ("permitted", c_uint64),
        ("effective", c_uint64),
        ("file", FileId),
        ("pid", c_uint32),
        ("by", c_uint32),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("gid", c_uint32),
        ("egid", c_uint32),
        ("comm", c_char * COMM),
        ("name", c_char * NAME),
    )
    kind: int
    scope: int
    time: int
    execution: int
    started: int
    address: int
    number: int
    permitted: int
    effective: int
    file: FileId
    pid: int
    by: int
    uid: int
    euid: int
    gid: int
    egid: int
    comm: bytes
    name: bytes
