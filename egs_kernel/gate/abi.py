"""The mirror of bpf/egs_abi.h: what crosses between the gate and user space.

`tests/unit/test_abi.py` compiles the header with the host's C compiler and compares every number, size and
offset. Change both together, and raise ABI_VERSION.
"""

from __future__ import annotations

from ctypes import Array, Structure, c_char, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag
from typing import Final

ABI_VERSION: Final = 6

MAX_SCOPES: Final = 64
SCOPE_SELF_TEST_OBSERVE: Final = 64
SCOPE_SELF_TEST_ENFORCE: Final = 65
SCOPE_SLOTS: Final = 66
SCOPE_NAME: Final = 32
TASKS: Final = 65536
TASKS_SOFT: Final = 32768
HELD_MAX: Final = 4096
GRANTS_PER_FILE: Final = 8
CHILDREN_OF: Final = 0x8000
SUBJECTS: Final = 16384
LIBRARY_FOLDERS: Final = 64
CODE_EVENTS: Final = 16
PROTECTED_FILES: Final = 16384
OWN_OBJECTS: Final = 256
APPLICANTS: Final = 1024
ATTEMPTS: Final = 16
HARMLESS_NAME: Final = 32
ARGV_MAX: Final = 4096
ARGV_SMALL: Final = 256
FILENAME_MAX: Final = 256
COMM: Final = 16
CGROUP_PATH: Final = 256
ENTRY_NAME: Final = 64
GATE_REASONS: Final = 32
ENV_STRINGS: Final = 1024
VARIABLE_BUCKETS: Final = 32
VARIABLES_PER_BUCKET: Final = 8


class Tier(IntEnum):
    """enum egs_tier."""

    TRACEPOINT = 1
    LSM = 2


class Mode(IntEnum):
    """enum egs_mode."""

    UNUSED = 0
    ENFORCE = 1
    OBSERVE = 2


class Missing(IntEnum):
    """enum egs_missing."""

    KILL = 0
    HOLD = 1


class ScopeKind(IntFlag):
    """enum egs_scope_kind."""

    CGROUP = 1
    BINARY = 2
    USER = 4


class GrantFlag(IntFlag):
    """enum egs_grant_flag."""

    BIND_UID = 1
    BIND_CGROUP = 2
    BIND_ARGV = 4
    BIND_USES = 8
    NEED_NO_NEW_PRIVS = 16
    NEED_SECCOMP = 32
    ALLOW_CODE_VARIABLES = 64
    REFUSE_ANONYMOUS_CODE = 128
    OWN_CHILDREN = 256


class TaskFlag(IntFlag):
    """enum egs_task_flag."""

    INHERITED = 1
    HELD = 2
    REFUSE_ANONYMOUS_CODE = 4
    OWN_CHILDREN = 8
    SUSPENDED = 16


class Restrain(IntEnum):
    """enum egs_restrain."""

    QUARANTINE = 1
    SUSPEND = 2
    RESUME = 3


class EventType(IntEnum):
    """enum egs_event_type."""

    EXEC = 1
    EXIT = 2
    CODE = 3
    ATTEMPT = 4


class Failure(IntEnum):
    """enum egs_failure."""

    EVENT = 0
    EXIT_EVENT = 1
    KILL = 2
    TASK_INSERT = 3
    FORK_REFUSED = 4
    STATE_READ = 5
    ARGV_READ = 6
    CGROUP_INSERT = 7
    CGROUP_DEPTH = 8
    CODE_EVENT = 9
    PENDING = 10
    DIGEST = 11
    HOLD_BROKEN = 12
    ATTEMPT_EVENT = 13
    EXEC_SKIPPED = 14


class Protection(IntFlag):
    """enum egs_protection."""

    CONTENT = 1
    PLACE = 2


class ObjectKind(IntEnum):
    """enum egs_object_kind."""

    MAP = 1
    PROGRAM = 2
    LINK = 3


class ApplicantStage(IntEnum):
    """enum egs_applicant_stage."""

    EXECUTES = 1
    APPLIES = 2
    TAINTED = 3


class Config(Structure):
    """struct egs_config."""

    _fields_ = (
        ("abi_version", c_uint32),
        ("scope_kinds", c_uint32),
        ("grace_ns", c_uint64),
        ("tier", c_uint32),
        ("digests", c_uint32),
    )
    abi_version: int
    scope_kinds: int
    grace_ns: int
    tier: int
    digests: int


class Scope(Structure):
    """struct egs_scope."""

    _fields_ = (("mode", c_uint32), ("on_missing", c_uint32), ("name", c_char * SCOPE_NAME))
    mode: int
    on_missing: int
    name: bytes


class CgroupPath(Structure):
    """struct egs_cgroup_path."""

    _fields_ = (("path", c_char * CGROUP_PATH),)
    path: bytes


class FileKey(Structure):
    """struct egs_file_key."""

    _fields_ = (("inode", c_uint64), ("device", c_uint32), ("pad", c_uint32))
    inode: int
    device: int


class EntryKey(Structure):
    """struct egs_entry_key."""

    _fields_ = (
        ("folder_inode", c_uint64),
        ("device", c_uint32),
        ("pad", c_uint32),
        ("name", c_char * ENTRY_NAME),
    )


class Task(Structure):
    """struct egs_task."""

    _fields_ = (
        ("execution", c_uint64),
        ("artifact", c_uint64),
        ("started", c_uint64),
        ("scope", c_uint32),
        ("flags", c_uint32),
        ("code_events", c_uint32),
        ("exec_number", c_uint32),
    )
    execution: int
    artifact: int
    scope: int
    flags: int
    exec_number: int


class EndedTask(Structure):
    """struct egs_ended_task."""

    _fields_ = (("execution", c_uint64), ("time", c_uint64), ("scope", c_uint32), ("pad", c_uint32))
    execution: int
    time: int
    scope: int


class FileId(Structure):
    """struct egs_file_id."""

    _fields_ = (
        ("inode", c_uint64),
        ("size", c_int64),
        ("ctime_sec", c_int64),
        ("ctime_nsec", c_uint32),
        ("generation", c_uint32),
        ("device", c_uint32),
        ("pad", c_uint32),
    )
    inode: int
    size: int
    ctime_sec: int
    ctime_nsec: int
    generation: int
    device: int


class StandingKey(Structure):
    """struct egs_standing_key."""

    _fields_ = (("inode", c_uint64), ("device", c_uint32), ("scope", c_uint16), ("slot", c_uint16))
    inode: int
    device: int
    scope: int
    slot: int


class SubjectKey(Structure):
    """struct egs_subject_key."""

    _fields_ = (("artifact", c_uint64), ("inode", c_uint64), ("device", c_uint32), ("pad", c_uint32))
    artifact: int
    inode: int
    device: int


class Subject(Structure):
    """struct egs_subject."""

    _fields_ = (("file", FileId), ("digest", c_uint8 * 32), ("measured", c_uint64))
    file: FileId
    digest: Array[c_uint8]
    measured: int


class Grant(Structure):
    """struct egs_grant."""

    _fields_ = (
        ("artifact_id", c_uint8 * 32),
        ("digest", c_uint8 * 32),
        ("file", FileId),
        ("grant_id", c_uint64),
        ("not_before", c_uint64),
        ("not_after", c_uint64),
        ("cgroup_id", c_uint64),
        ("argv_hash", c_uint64),
        ("start_ticks", c_uint64),
        ("measured", c_uint64),
        ("argv_length", c_uint32),
        ("pad", c_uint32),
        ("flags", c_uint32),
        ("scope", c_uint32),
        ("uid", c_uint32),
        ("seccomp_filters", c_uint32),
    )
    artifact_id: Array[c_uint8]
    file: FileId
    grant_id: int
    argv_hash: int
    flags: int
    scope: int


class Argv(Structure):
    """struct egs_argv."""

    _fields_ = (("length", c_uint32), ("pad", c_uint32), ("words", c_uint64 * (ARGV_MAX // 8)))
    words: Array[c_uint64]


class Variable(Structure):
    """struct egs_variable."""

    _fields_ = (("mask", c_uint64), ("value", c_uint64))
    mask: int
    value: int


class Variables(Structure):
    """struct egs_variables."""

    _fields_ = (("variables", Variable * (VARIABLE_BUCKETS * VARIABLES_PER_BUCKET)),)
    variables: Array[Variable]


class Reading(Structure):
    """struct egs_reading."""

    _fields_ = (
        ("nonce", c_uint64),
        ("found", c_uint32),
        ("failed", c_uint32),
        ("file", FileId),
        ("folder_inode", c_uint64),
        ("name", c_char * ENTRY_NAME),
    )
    nonce: int
    found: int
    failed: int
    file: FileId
    folder_inode: int
    name: bytes


class ExecEvent(Structure):
    """struct egs_exec_event, its head: the arguments follow, ARGV_SMALL or ARGV_MAX bytes of room."""

    _fields_ = (
        ("type", c_uint32),
        ("verdict", c_uint32),
        ("reason", c_uint32),
        ("enforced", c_uint32),
        ("time", c_uint64),
        ("execution", c_uint64),
        ("parent_execution", c_uint64),
        ("grant_id", c_uint64),
        ("cgroup_id", c_uint64),
        ("start_ticks", c_uint64),
        ("file", FileId),
        ("script", FileId),
        ("artifact_id", c_uint8 * 32),
        ("scope", c_uint32),
        ("grant_kind", c_uint32),
        ("pid", c_uint32),
        ("parent_pid", c_uint32),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("gid", c_uint32),
        ("no_new_privs", c_uint32),
        ("seccomp_mode", c_uint32),
        ("seccomp_filters", c_uint32),
        ("kill_error", c_int32),
        ("argv_length", c_uint32),
        ("argv_copied", c_uint32),
        ("pad", c_uint32),
        ("comm", c_char * COMM),
        ("filename", c_char * FILENAME_MAX),
    )
    verdict: int
    reason: int
    enforced: int
    time: int
    execution: int
    parent_execution: int
    grant_id: int
    cgroup_id: int
    start_ticks: int
    file: FileId
    script: FileId
    artifact_id: Array[c_uint8]
    scope: int
    grant_kind: int
    pid: int
    parent_pid: int
    uid: int
    euid: int
    gid: int
    no_new_privs: int
    seccomp_mode: int
    seccomp_filters: int
    kill_error: int
    argv_length: int
    argv_copied: int
    comm: bytes
    filename: bytes


class Seal(Structure):
    """struct egs_seal."""

    _fields_ = (("lifted_until", c_uint64), ("sealed", c_uint32), ("namespace", c_uint32))
    lifted_until: int
    sealed: int
    namespace: int


class Daemon(Structure):
    """struct egs_daemon."""

    _fields_ = (
        ("program_inode", c_uint64),
        ("pid", c_uint64),
        ("start_ticks", c_uint64),
        ("program_device", c_uint32),
        ("namespace", c_uint32),
    )
    program_inode: int
    pid: int
    start_ticks: int
    program_device: int
    namespace: int


class Applicant(Structure):
    """struct egs_applicant."""

    _fields_ = (("stage", c_uint32), ("namespace", c_uint32))
    stage: int


class ObjectKey(Structure):
    """struct egs_object_key."""

    _fields_ = (("kind", c_uint32), ("id", c_uint32))
    kind: int
    id: int


class HarmlessKey(Structure):
    """struct egs_harmless_key."""

    _fields_ = (("name", c_char * HARMLESS_NAME),)
    name: bytes


class AttemptRate(Structure):
    """struct egs_attempt_rate."""

    _fields_ = (("second", c_uint64), ("count", c_uint32), ("pad", c_uint32))


class CodeEvent(Structure):
    """struct egs_code_event."""

    _fields_ = (
        ("type", c_uint32),
        ("scope", c_uint32),
        ("time", c_uint64),
        ("execution", c_uint64),
        ("file", FileId),
        ("reason", c_uint32),
        ("enforced", c_uint32),
        ("pid", c_uint32),
        ("pad", c_uint32),
        ("name", c_char * ENTRY_NAME),
    )
    scope: int
    time: int
    execution: int
    file: FileId
    reason: int
    enforced: int
    pid: int
    name: bytes


class AttemptEvent(Structure):
    """struct egs_attempt_event."""

    _fields_ = (
        ("type", c_uint32),
        ("what", c_uint32),
        ("time", c_uint64),
        ("inode", c_uint64),
        ("device", c_uint32),
        ("number", c_uint32),
        ("pid", c_uint32),
        ("uid", c_uint32),
        ("comm", c_char * COMM),
        ("name", c_char * ENTRY_NAME),
    )
    what: int
    time: int
    inode: int
    device: int
    number: int
    pid: int
    uid: int
    comm: bytes
    name: bytes


class ExitEvent(Structure):
    """struct egs_exit_event."""

    _fields_ = (
        ("type", c_uint32),
        ("scope", c_uint32),
        ("time", c_uint64),
        ("execution", c_uint64),
        ("pid", c_uint32),
        ("status", c_uint32),
        ("cpu", c_uint64),
        ("max_rss", c_uint64),
    )
    scope: int
    time: int
    execution: int
    pid: int
    status: int
    cpu: int
    max_rss: int
