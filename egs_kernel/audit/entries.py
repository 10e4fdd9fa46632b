"""What the record says: the types of its entries (docs/record.md is the stable format).

A struct's fields are the fields of the JSON object; `lines.py` gives it its bytes.
"""

from __future__ import annotations

from signal import Signals
from typing import Final, Literal, get_args

import msgspec

from egs_kernel.findings import Finding
from egs_kernel.model import (
    AttemptEvent,
    CodeEvent,
    ExecEvent,
    ExitEvent,
    GrantKind,
    Intent,
    Mode,
    OnMissing,
    Posture,
    Reason,
    TaskIdentity,
    Verdict,
)

ResponseWord = Literal["alert", "quarantine", "suspend", "terminate"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """One thing that happened. Subclasses are the closed set in `EntryType`."""


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asked, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One numbered step of the verifier's plan."""

    name: str
    passed: bool
    detail: str = ""


class DaemonStarted(Entry, frozen=True, kw_only=True, tag="daemon_started"):
    """The daemon is up. `posture` is the digest of a `posture` entry."""

    version: str
    pid: int
    host_id: str
    posture: str


class DaemonStopped(Entry, frozen=True, kw_only=True, tag="daemon_stopped"):
    """The daemon ends on its own will; a record that lacks it before the next start tells of a crash."""

    cause: str


class Request(Entry, frozen=True, kw_only=True, tag="request"):
    """Somebody asks to execute (clause 4, phase 1). `request` is an id that later entries repeat."""

    request: str
    scope: str
    intent: Intent
    peer: Peer | None = None
    artifact_id: str | None = None


class Verification(Entry, frozen=True, kw_only=True, tag="verification"):
    """What the verifier found, step by step (clause 4, phase 4)."""

    request: str | None = None
    artifact_id: str | None = None
    passed: bool
    reason: Reason
    steps: tuple[Step, ...] = ()
    signers: tuple[str, ...] = ()


class Decision(Entry, frozen=True, kw_only=True, tag="decision"):
    """What the daemon decided, and on what grounds.

    `posture` is a digest (`posture_digest`). `use_until`, the artifact's notAfter, is set when this
    decision spends one of an artifact's limited uses: that is how an armed launch is counted.
    `task` is the process that is armed.
    """

    verdict: Verdict
    reason: Reason
    scope: str
    policy_digest: str
    posture: str
    request: str | None = None
    artifact_id: str | None = None
    grant_kind: GrantKind = GrantKind.NONE
    task: TaskIdentity | None = None
    intent: Intent | None = None
    detail: str = ""
    use_until: str | None = None


class Exec(Entry, frozen=True, kw_only=True, tag="exec"):
    """The gate saw and decided an exec. `use_until` as in `Decision`, for an exec under a standing grant."""

    event: ExecEvent
    use_until: str | None = None


class Outcome(Entry, frozen=True, kw_only=True, tag="outcome"):
    """A governed process ended, with an exit code or by a signal (its name, such as "SIGKILL")."""

    event: ExitEvent
    exit_code: int | None = None
    signal: str | None = None


def outcome(event: ExitEvent) -> Outcome:
    """The entry of an end, with its wait(2) status in words."""
    number = event.status & 0x7F
    if number:
        return Outcome(event=event, signal=_signal_name(number))
    return Outcome(event=event, exit_code=event.status >> 8 & 0xFF)


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIGRTMIN+{number - Signals.SIGRTMIN}"


class Code(Entry, frozen=True, kw_only=True, tag="code"):
    """A governed program was refused code: a mapping of a file, or memory of none."""

    event: CodeEvent


class Refusal(Entry, frozen=True, kw_only=True, tag="refusal"):
    """A constraint refused a governed program something while it ran.

    `word` is the constraint's, such as "syscalls"; `what` says what was refused, such as a system call's name; `count` how
    often since the last such entry. `pid` is a process of that execution, when it is known.
    """

    execution: int
    scope: str
    word: str
    what: str
    count: int = 1
    artifact_id: str | None = None
    pid: int | None = None


class Attempt(Entry, frozen=True, kw_only=True, tag="attempt"):
    """Somebody tried what the sealed gate refuses."""

    event: AttemptEvent


class SealChange(Entry, frozen=True, kw_only=True, tag="seal"):
    """The gate was sealed, or a maintenance artifact lifted that until `until`. `cause`: why it was sealed."""

    action: Literal["sealed", "lifted"]
    cause: str = ""
    until: str = ""
    artifact_id: str | None = None
    purpose: str = ""
    operator: str = ""
    signers: tuple[str, ...] = ()
    peer: Peer | None = None
    envelope: str | None = None


class ArtifactChange(Entry, frozen=True, kw_only=True, tag="artifact"):
    """A standing artifact came or went, or one was presented for a launch or a hold; `envelope` is its DSSE JSON text.

    `revoked` is what earlier versions wrote in place of a `revocation`.
    """

    action: Literal["added", "presented", "removed", "revoked"]
    artifact_id: str
    source: str = ""
    peer: Peer | None = None
    detail: str = ""
    envelope: str | None = None


class Revocation(Entry, frozen=True, kw_only=True, tag="revocation"):
    """Something was taken back on this host, for ever: an artifact, a key, a file, a policy set or a host.

    `thing` is its id (model.Revoked); `since` when.
    """

    kind: Literal["artifact", "key", "subject", "policy", "host"]
    thing: str
    since: str
    why: str = ""
    peer: Peer | None = None


class RevocationListChange(Entry, frozen=True, kw_only=True, tag="revocation_list"):
    """A signed revocation list was `added`: from now on it is that of its scope; or it was `refused`, and `detail` says why.

    `revokes` is how many things it revokes. Of one that was refused, what could not be read is not known.
    """

    action: Literal["added", "refused"]
    scope: str = ""
    number: int = 0
    digest: str = ""
    issued_at: str = ""
    next_update: str = ""
    revokes: int = 0
    signers: tuple[str, ...] = ()
    reason: Reason = Reason.AUTHORIZED
    detail: str = ""
    peer: Peer | None = None
    envelope: str | None = None


class PolicyChange(Entry, frozen=True, kw_only=True, tag="policy"):
    """A signed policy set was `activated`: from now on it is the active one; or it was `refused`, and `detail` says why.

    `cause`: who asked, or what brought it. Of one that was refused, what could not be read is not known.
    """

    action: Literal["activated", "refused"]
    cause: str
    name: str = ""
    version: int = 0
    digest: str = ""
    scopes: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()
    reason: Reason = Reason.AUTHORIZED
    detail: str = ""
    peer: Peer | None = None
    envelope: str | None = None


class Gap(Entry, frozen=True, kw_only=True, tag="gap"):
    """Something is missing: events the gate could not hand over, or a line that a crash cut off.

    `lost` counts events (None: unknown); `what` is the gate's name for what it could not tell, and `total` how often that
    was since it was loaded. `kept` names the file in the record's folder that holds the bytes of a torn tail.
    """

    cause: Literal["events_lost", "torn_tail"]
    detail: str
    lost: int | None = None
    what: str | None = None
    total: int | None = None
    kept: str | None = None


class LogKeyChange(Entry, frozen=True, kw_only=True, tag="log_key"):
    """A new key signs the record's checkpoints. The one before it, `previous`, signs as well until `until`."""

    key: str
    previous: str
    until: str
    peer: Peer | None = None


class WitnessAlarm(Entry, frozen=True, kw_only=True, tag="witness"):
    """A witness has seen another record than this one, which had `entries` entries then.

    `cosigned` is how many entries the witness has cosigned, `checkpoint` what it cosigned, with this log's signature
    and its own; None when it refuses and shows nothing.
    """

    problem: Literal["rolled_back", "forked", "refused"]
    witness: str
    cosigned: int | None
    entries: int
    detail: str = ""
    checkpoint: str | None = None


class Part(Entry, frozen=True, kw_only=True, tag="part"):
    """A part of a text that is too long for one entry: number `index` of `count`, right before the entry that names `digest`.

    `digest`: the SHA-256 of the whole text.
    """

    digest: str
    index: int
    count: int
    text: str


class ScopeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scope as it is configured."""

    name: str
    mode: Mode
    on_missing: OnMissing


class ConfigurationChange(Entry, frozen=True, kw_only=True, tag="configuration"):
    """What the daemon was told to go by: read at its start or a reload and applied, or refused (the old one stays).

    `config_digest` is the SHA-256 of egs.toml, `trusted_keys` are the ids of the trust store. Of one that was refused
    `detail` says why, and the rest is not known.
    """

    action: Literal["applied", "refused"]
    cause: str
    peer: Peer | None = None
    config_digest: str | None = None
    policy_digest: str | None = None
    trusted_keys: tuple[str, ...] = ()
    scopes: tuple[ScopeState, ...] = ()
    detail: str = ""


class PostureEntry(Entry, frozen=True, kw_only=True, tag="posture"):
    """The host's posture in full; other entries cite `digest`."""

    digest: str
    posture: Posture


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that was so: a namespace, a kernel module, a sysctl."""

    name: str
    value: str


class FindingEntry(Entry, frozen=True, kw_only=True, tag="finding"):
    """The monitor found that something is not as it was authorized, or as it was (docs/drift.md).

    `number` tells it from every other finding of this boot; `source` is what saw it, `detail` what it is in words; `by` the
    process that did it, 0: not known; `count` how often it was seen. `response` is what is to be done about it, and `rule` what says so: the
    artifact, drift.toml, or what limits it. `execution` 0 and `pid` 0: it is of the host.
    """

    number: int
    finding: Finding
    severity: Literal["notice", "warning", "high", "critical"]
    source: str
    detail: str
    response: ResponseWord
    rule: str
    execution: int = 0
    scope: str = ""
    artifact_id: str | None = None
    pid: int = 0
    start_ticks: int = 0
    by: int = 0
    count: int = 1


class ResponseEntry(Entry, frozen=True, kw_only=True, tag="response"):
    """What the monitor did about a finding, and whether it was seen to be so afterwards (`verified`).

    `processes` are those it was done to, `microseconds` the time from the observation to the end of it. `resume` takes a
    suspension back: somebody, `peer`, asked for it.
    """

    number: int
    response: Literal["alert", "quarantine", "suspend", "terminate", "resume"]
    verified: bool
    processes: int
    microseconds: int
    detail: str = ""
    execution: int = 0
    scope: str = ""
    artifact_id: str | None = None
    peer: Peer | None = None


class WatchChange(Entry, frozen=True, kw_only=True, tag="watch"):
    """The monitor `started` or `stopped`. From `since` to `until` nobody watched; both are empty when that is not known of any time."""

    action: Literal["started", "stopped"]
    pid: int
    boot_id: str
    since: str = ""
    until: str = ""
    detail: str = ""


class BaselineEntry(Entry, frozen=True, kw_only=True, tag="baseline"):
    """What the record did not say and the monitor compares with: of an execution that it saw begin, or of the host (`execution` 0).

    `of` names what: the facts of an execution's `process`, or the finding that a difference would be. A later one of the same
    replaces it.
    """

    of: str
    boot_id: str
    facts: tuple[Fact, ...]
    execution: int = 0


class Evaluated(Entry, frozen=True, kw_only=True, tag="evaluation"):
    """What the policy set said to a request, with `approvals` approvals, and by which policies.

    `request_digest` is the SHA-256 of what Cedar was asked, so that anybody can ask it again.
    """

    effect: Literal["permit", "deny"]
    policy: str
    policy_digest: str
    request_digest: str
    determining: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    request: str | None = None
    approvals: int = 0


class Submission(Entry, frozen=True, kw_only=True, tag="submission"):
    """Somebody asked the authority for an artifact (clause 4, phase 1). `request` is an id that later entries repeat.

    `principal` is who asked, as the kernel or a certificate says; `intent` the canonical JSON of what was asked for, and
    `intent_digest` its SHA-256; `program_kind` is what the program does with its arguments; `unit` the systemd unit of
    who asked, `spiffe_id` what an SVID proved that is valid until before `svid_expires`; `host_key` is the id of the key that
    proved the host; `renews` the artifact that it is to follow.
    """

    request: str
    principal: str
    scope: str
    intent_digest: str
    intent: str
    program_kind: str
    peer: Peer | None = None
    unit: str | None = None
    spiffe_id: str | None = None
    svid_expires: str | None = None
    host_key: str | None = None
    idempotency_key: str | None = None
    renews: str | None = None


class Approval(Entry, frozen=True, kw_only=True, tag="approval"):
    """A person agreed, or not, to what was asked of the authority. `envelope` is what that person signed."""

    request: str
    action: Literal["approved", "denied"]
    keyid: str
    name: str
    intent_digest: str
    envelope: str
    peer: Peer | None = None


class Issuance(Entry, frozen=True, kw_only=True, tag="issuance"):
    """The authority's answer: an artifact, a wait for `required` approvals until `until`, or a denial.

    `request` None: what was asked could not be understood, or was too much; `count` is how often since the last such entry.
    `at` is the authority's time; `until` the artifact's notAfter.
    """

    action: Literal["issued", "pending", "denied"]
    principal: str
    at: str
    reason: Reason = Reason.AUTHORIZED
    request: str | None = None
    scope: str = ""
    until: str = ""
    required: int = 0
    approvers: tuple[str, ...] = ()
    artifact_id: str | None = None
    envelope: str | None = None
    detail: str = ""
    peer: Peer | None = None
    count: int = 1


EntryType = (
    DaemonStarted
    | DaemonStopped
    | Request
    | Verification
    | Decision
    | Exec
    | Outcome
    | Code
    | Refusal
    | Attempt
    | SealChange
    | ArtifactChange
    | Revocation
    | RevocationListChange
    | PolicyChange
    | Gap
    | LogKeyChange
    | WitnessAlarm
    | Part
    | ConfigurationChange
    | PostureEntry
    | Evaluated
    | Submission
    | Approval
    | Issuance
    | FindingEntry
    | ResponseEntry
    | WatchChange
    | BaselineEntry
)
ENTRY_CLASSES: Final[tuple[type[Entry], ...]] = get_args(EntryType)
ENTRY_TYPES: Final = tuple(sorted(str(kind.__struct_config__.tag) for kind in ENTRY_CLASSES))
"""The values of `type`."""


class Header(msgspec.Struct, frozen=True):
    """What every entry has, whatever its type."""

    v: int
    seq: int
    time: str
    type: str


class Recorded(msgspec.Struct, frozen=True):
    """An entry as it stands in the record. `hash`: its leaf's, in hexadecimal."""

    seq: int
    time: str
    entry: EntryType
    hash: str
