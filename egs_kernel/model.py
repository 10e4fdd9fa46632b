"""The words of the product as frozen types: verdicts, reason codes, grants, observations of the gate.

This module imports nothing of ours and touches nothing outside itself. `bpf/egs_abi.h` mirrors the
numbers of `Verdict`, `Reason` (up to `LAST_GATE_REASON`) and `GrantKind`; `tests/unit/test_abi.py`
compiles the C and compares.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum, IntEnum
from typing import Final

import msgspec


class Verdict(IntEnum):
    """What the gate or the verifier decided."""

    ALLOW = 0
    DENY = 1  # refused before the exec took effect: the caller goes on
    KILL = 2  # refused at the exec: the new image dies before its first instruction
    HOLD = 3  # stopped at the exec, before its first instruction, until somebody authorizes it


class Tier(Enum):
    """How an exec can be stopped on this kernel (docs/architecture.md)."""

    LSM = "lsm"
    TRACEPOINT = "tracepoint"


class Mode(Enum):
    """What a scope does with a refusal."""

    ENFORCE = "enforce"
    OBSERVE = "observe"  # records only: not EGS-001 compliant (clause 3.1, "advisory authorization models")


class OnMissing(Enum):
    """What an enforcing scope does with an exec that lacks nothing but an authorization."""

    KILL = "kill"
    HOLD = "hold"  # it waits for one, stopped before its first instruction


class GrantKind(IntEnum):
    """How a grant is keyed in the gate."""

    NONE = 0
    STANDING = 1  # by file: any governed process of the scope may use it
    ARMED = 2  # by task: one process, one exec
    CHILD = 3  # by artifact and file: what runs under this artifact may use it


class Reason(IntEnum):
    """Why: one enum for the gate, the verifier, decisions, metrics and the record.

    Numbers are part of the record format: never reuse one. 1..31 are the gate's and mirrored in C.
    """

    AUTHORIZED = 0

    # The gate, in the order in which it asks.
    DAEMON_STALE = 1  # no heartbeat within daemon_grace
    AUDIT_UNAVAILABLE = 2  # no slot for the event: no exec
    STATE_UNREADABLE = 3  # the gate could not read kernel state it decides on
    NO_GRANT = 4  # no authorization artifact for this file, or none armed for this task
    SUBJECT_MISMATCH = 5  # armed for another program than the one executed
    FILE_CHANGED = 6  # the file was touched after it was measured
    NOT_YET_VALID = 7
    EXPIRED = 8
    IDENTITY_MISMATCH = 9
    CGROUP_MISMATCH = 10
    NO_NEW_PRIVS_MISSING = 11
    SECCOMP_MISSING = 12
    USES_EXHAUSTED = 13
    ARGV_UNREADABLE = 14
    ARGV_MISMATCH = 15
    SCOPE_MISMATCH = 16  # the grant is for another scope than the one this process is in
    GATE_MISCONFIGURED = 17  # a map or scope that must be there is not: refuse
    TASKS_FULL = 18  # no room to track one more governed process
    ENVIRONMENT_UNREADABLE = 19  # the new image's environment could not be read, or has too many variables
    ENVIRONMENT_REFUSED = 20  # it has a variable that makes programs load code (LD_PRELOAD and the like)
    FILE_OPENED = 21  # somebody opened the file for writing after it was measured
    DIGEST_DIFFERS = 22  # the kernel's own hash of the file is not the authorized one
    SCRIPT_UNAUTHORIZED = 23  # the artifact names no such script, or the script changed
    CODE_UNTRUSTED = (
        24  # code of a file that is neither named by the artifact nor below a trusted library root
    )
    CODE_ANONYMOUS = 25  # executable memory of no file, which the artifact refuses

    HOLDS_FULL = 26  # it would have been held, and too many are
    CHILD_REFUSED = 31  # its artifact says what it may start, and this is none of it

    # The verifier (verify.py) and what it is made of.
    ARTIFACT_MALFORMED = 32
    ARTIFACT_TOO_LARGE = 33
    ARTIFACT_NOT_CANONICAL = 34
    ARTIFACT_UNKNOWN_FIELD = 35
    ARTIFACT_UNKNOWN_VERSION = 36
    SIGNATURE_INVALID = 37
    KEY_UNTRUSTED = 38
    KEY_NOT_VALID_NOW = 39
    KEY_ROLE_MISMATCH = 40  # the key is trusted, but not for this scope or role
    THRESHOLD_NOT_MET = 41
    DIGEST_MISMATCH = 42
    HOST_MISMATCH = 43
    POLICY_MISMATCH = 44
    REVOKED = 45
    POSTURE_FAILED = 46
    PROGRAM_UNBOUND = 47  # interpreter or dynamic loader without bound argv
    CONSTRAINT_UNENFORCEABLE = 48  # this host lacks what the constraint needs
    CONSTRAINT_NOT_ATTESTED = 49  # the launcher did not install what was signed
    LAUNCH_REQUIRED = 50  # the artifact needs `egs run`: it cannot stand
    CWD_MISMATCH = 51
    ENVIRONMENT_MISMATCH = 52
    SCOPE_UNKNOWN = 53  # this host has no scope of that name
    FILESYSTEM_UNTRUSTED = 54  # a file there can change without a trace
    PROGRAM_TOO_LARGE = 55  # hashing it would keep others waiting

    # The host and its files.
    CONFIG_INVALID = 64
    PATH_UNSAFE = 65  # a folder or file that others can write, or a symbolic link where none may be
    MEASUREMENT_RACED = 66  # the file changed while it was hashed
    KERNEL_UNSUPPORTED = 67
    SELF_TEST_FAILED = 68
    GATE_NOT_LOADED = 69
    GATE_VERSION_MISMATCH = 70
    GATE_FAILED = 71
    DAEMON_UNREACHABLE = 72
    DAEMON_RUNNING = 73
    PROTOCOL_ERROR = 74
    NOT_PERMITTED = 75
    RECORD_CORRUPT = 76
    RECORD_UNAVAILABLE = 77
    NOT_FOUND = 78
    USAGE = 79
    LAUNCHER_LOST = 80  # the launcher went away before its exec
    HOLD_DENIED = 81  # somebody said that what is held shall not run
    HOLD_EXPIRED = 82  # nobody authorized it within the scope's hold_timeout
    HOLD_LOST = 83  # what was held ended, or was let go by somebody else and therefore killed
    SEALED = 84  # the gate is sealed: only a maintenance artifact lifts that

    # The log of the record.
    NOTE_MALFORMED = 85  # not a signed note, a checkpoint or a verifier key
    PROOF_INVALID = 86  # an inclusion or consistency proof does not show what it should
    BUNDLE_MALFORMED = 90  # not a proof bundle
    EVIDENCE_MISMATCH = (
        91  # the entries of a proof bundle do not tell of one execution, or not the whole of it
    )

    # Policy.
    POLICY_DENIED = 95  # the active policy set does not permit it
    POLICY_INVALID = 96  # not a policy set, or not Cedar
    POLICY_OUTDATED = 97  # older than the set that was active
    POLICY_UNAVAILABLE = 98  # policy could not be asked

    # The authority.
    REQUEST_MALFORMED = 100  # not what the API takes: no JSON, unknown fields, values that cannot be
    REQUEST_TOO_LARGE = 101  # more bytes than a request may have
    CLOCK_WRONG = (
        102  # the asker's clock and the authority's differ, or the authority's stands before its record
    )
    APPROVAL_REQUIRED = 103  # it waits for people to approve it
    APPROVAL_INVALID = 104  # replayed, expired, for another intent, or signed by nobody who may approve
    APPROVAL_DENIED = 105  # somebody who may approve said no
    QUOTA_EXCEEDED = 106  # as many artifacts as this principal may have in this time
    RATE_LIMITED = 107  # too many requests at once
    IDEMPOTENCY_CONFLICT = 108  # the idempotency key was used for another request
    AUTHORITY_UNREACHABLE = 109  # the authority does not answer

    # Keys that sign, and identities that are proven.
    KEY_SECRET_WRONG = 110  # a passphrase or PIN that is missing or wrong
    SIGNER_UNAVAILABLE = 111  # the token, the service or the package that a private key takes
    SVID_INVALID = 112  # a SPIFFE identity document that does not verify
    SVID_EXPIRED = 113
    BUNDLE_UNTRUSTED = 114  # no trust bundle for its trust domain, or one that is malformed

    # Revocation lists.
    REVOCATION_LIST_MALFORMED = 115
    REVOCATION_LIST_ROLLED_BACK = 116  # its number is not higher than that of the list in force
    REVOCATION_LIST_EARLY = 117  # issued in the future: it, or this host's clock, is wrong
    REVOCATION_LIST_STALE = 118  # the scope demands a list that is new enough, and there is none
    PROPOSAL_INVALID = 119  # not a proposal of artifacts, or something that cannot be proposed

    # Hosts that are proven.
    HOST_STATEMENT_INVALID = 140  # what a host signed of who asks there does not count, or is missing

    @property
    def code(self) -> str:
        """The stable text form, as in JSON, metrics and messages."""
        return self.name.lower()


LAST_GATE_REASON: Final = 31
ARGV_MAX: Final = 4096
"""Bytes of a bound argv, NULs included: what the gate compares (bpf/egs_abi.h EGS_ARGV_MAX)."""


class Attempt(IntEnum):
    """What a sealed gate refuses everybody but the daemon. Numbers are part of the record format."""

    SIGNAL = 1
    TRACE = 2
    LIMIT = 3
    SCHEDULE = 4
    BPF = 5
    WRITE = 6
    CREATE = 7
    REMOVE = 8
    RENAME = 9
    LINK = 10
    ATTRIBUTES = 11
    MOUNT = 12
    UNMOUNT = 13
    BECOME = 14


class ProgramKind(Enum):
    """What a program does with its arguments (artifact/interpreters.py finds it out)."""

    NATIVE = "native"
    INTERPRETER = "interpreter"  # takes code as data: its arguments decide what runs
    SCRIPT = "script"  # "#!": the kernel executes its interpreter instead


class FileIdentity(msgspec.Struct, frozen=True):
    """A file as the gate sees it: what "the same file, untouched" means.

    `device` is the kernel's `s_dev` (major << 20 | minor), which is not always user space's `st_dev`.
    """

    device: int
    inode: int
    generation: int
    size: int
    ctime_seconds: int
    ctime_nanoseconds: int


class Measurement(msgspec.Struct, frozen=True):
    """What we hashed: the SHA-256 (hex) of a file's content and the identity it had all the while.

    `time` is when the hashing began, CLOCK_BOOTTIME nanoseconds: nobody had the file open for writing then. On the
    tier `lsm` the gate refuses the file once somebody opened it for writing since. 0: whoever opens it.
    """

    digest: str
    identity: FileIdentity
    time: int = 0


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks to execute. `argv` None: a standing artifact, asked for before any exec.

    `program_kind` defaults to the kind with the strictest rules. `measured` are the (path, SHA-256)
    pairs of the scripts and libraries that the artifact names. `spiffe_id` was proven; `unit` is the systemd unit of the
    process that asks.
    """

    program: str
    digest: str
    argv: tuple[str, ...] | None = None
    cwd: str | None = None
    environment: tuple[tuple[str, str], ...] | None = None
    uid: int | None = None
    groups: tuple[int, ...] = ()
    purpose: str = ""
    program_kind: ProgramKind = ProgramKind.INTERPRETER
    measured: tuple[tuple[str, str], ...] = ()
    spiffe_id: str | None = None
    unit: str | None = None


class Posture(msgspec.Struct, frozen=True, kw_only=True):
    """The host's own integrity state, part of every decision (clause 3.4).

    `gate` maps each pinned program to the kernel's tag of its instructions; `problems` is empty when
    integrity is established, and otherwise says in words why it is not. `seal` is sealed, lifted (by a
    maintenance artifact) or unsealed.
    """

    kernel: str
    boot_id: str
    lockdown: str
    tier: Tier
    gate: tuple[tuple[str, str], ...]
    policy_digest: str
    clock_synchronized: bool
    problems: tuple[str, ...] = ()
    seal: str = "unsealed"


class Revoked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was taken back, by kind: id → since when (RFC 3339).

    `key` are key ids, `subject` SHA-256 digests of files, `policy` digests of policy sets, `host` host ids.
    """

    artifact: dict[str, str] = {}
    key: dict[str, str] = {}
    subject: dict[str, str] = {}
    policy: dict[str, str] = {}
    host: dict[str, str] = {}


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the verifier knows of this host when it authorizes. Collected by the daemon, passed in.

    `host_key` is the id of the host's own key.

    `uses` is keyed by artifact id. `revoked` is what was taken back for the artifact's scope; `revocations_problem` says
    why that is not known well enough to authorize anything, and `revocations_until` until when it is. `enforceable` names what this host can
    enforce of the constraints (`Constraints.needs`: "syscalls", ...). `boot_offset` is CLOCK_REALTIME minus
    CLOCK_BOOTTIME in nanoseconds. `users` and `group_ids` resolve the names that artifacts may use. `policy_required`: the
    artifact's scope is under the active policy set. `policy_problem`: why that cannot be asked; `policy_revoked`: why it was taken back.
    """

    host_id: str
    labels: frozenset[str]
    scopes: frozenset[str]
    policy_digest: str
    posture: Posture
    policy_required: bool = False
    policy_problem: str = ""
    policy_revoked: str = ""
    revoked: Revoked = Revoked()
    revocations_problem: str = ""
    revocations_until: datetime | None = None
    uses: dict[str, int] = {}
    enforceable: frozenset[str] = frozenset()
    boot_offset: int = 0
    users: dict[str, int] = {}
    group_ids: dict[str, int] = {}
    host_key: str = ""


class TaskIdentity(msgspec.Struct, frozen=True):
    """One process, immune to pid reuse: its pid and its start, in clock ticks since boot."""

    pid: int
    start_ticks: int


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate lets pass: derived from a verified artifact by `verify.py`, and by nothing else.

    `file`, `digest` and `measured` are the program's measurement, `subjects` those of every file that the artifact
    names, the program included. Times are CLOCK_BOOTTIME nanoseconds. `argv` None leaves the arguments free.
    `code_variables`: the artifact signs values for variables that make programs load code; without it the gate
    refuses an exec that has one. `refuse_anonymous_code`: no executable memory of no file (tier `lsm`).
    `own_children`: what it runs may execute what `children` are for, and nothing else.
    """

    artifact_id: str
    scope: str
    file: FileIdentity
    digest: str
    measured: int = 0
    subjects: tuple[Measurement, ...] = ()
    not_before: int
    not_after: int
    uid: int | None = None
    cgroup_id: int | None = None
    argv: tuple[bytes, ...] | None = None
    uses: int | None = None
    no_new_privs: bool = False
    seccomp_filters: int | None = None
    code_variables: bool = False
    refuse_anonymous_code: bool = False
    own_children: bool = False
    children: tuple[Grant, ...] = ()


class ExecEvent(msgspec.Struct, frozen=True, kw_only=True, tag="exec"):
    """One exec in a governed scope as the gate saw and decided it. Times: CLOCK_BOOTTIME nanoseconds.

    `script` is what the kernel hands to its interpreter, `file`: None when there is none, and on the tier `tracepoint`,
    which does not see it.
    """

    verdict: Verdict
    reason: Reason
    enforced: bool
    scope: str
    tier: Tier
    time: int
    execution: int
    parent_execution: int
    grant_id: int
    grant_kind: GrantKind
    artifact_id: str
    file: FileIdentity
    pid: int
    parent_pid: int
    uid: int
    euid: int
    gid: int
    cgroup_id: int
    start_ticks: int
    no_new_privs: bool
    seccomp_mode: int
    seccomp_filters: int
    comm: str
    filename: str
    argv: tuple[str, ...]
    argv_bytes: int
    argv_truncated: bool
    kill_error: int
    script: FileIdentity | None = None


class ExitEvent(msgspec.Struct, frozen=True, kw_only=True, tag="exit"):
    """The end of a governed process. `status` is wait(2)'s: exit code << 8 | signal.

    `cpu_nanoseconds` is what all of its threads ran, less what ran since the scheduler last counted (a tick at most);
    `max_rss_bytes` the most memory that was resident. Both are of the process since its fork, as wait4(2) tells them.
    """

    scope: str
    time: int
    execution: int
    pid: int
    status: int
    cpu_nanoseconds: int = 0
    max_rss_bytes: int = 0


class CodeEvent(msgspec.Struct, frozen=True, kw_only=True, tag="code"):
    """Code that a governed program asked for and was refused (tier `lsm`).

    A mapping of a file, of which `name` is the folder entry that it was opened by; or memory of no file: then `file` is
    None.
    """

    reason: Reason
    enforced: bool
    scope: str
    time: int
    execution: int
    pid: int
    file: FileIdentity | None
    name: str


class AttemptEvent(msgspec.Struct, frozen=True, kw_only=True, tag="attempt"):
    """Somebody tried what a sealed gate refuses (tier `lsm`).

    `what` is an `Attempt` by name. `number` is the signal, the resource or the bpf(2) command. `inode` 0: it was
    tried on no file; `name` is the file's.
    """

    what: str
    time: int
    number: int
    pid: int
    uid: int
    comm: str
    device: int
    inode: int
    name: str


GateEvent = ExecEvent | ExitEvent | CodeEvent | AttemptEvent
