"""What is spoken on the daemon's socket: frames of a 4-byte big-endian length and that many bytes of JSON.

Pure: bytes in, typed messages out. A request is an object with an `op`, an answer one with a `type`; unknown
fields and unknown operations are errors, because a field that is ignored could have been a restriction.
docs/protocol.md has the conversation of a launch.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec

from egs_kernel.audit.entries import BaselineEntry, FindingEntry, ResponseEntry, WatchChange
from egs_kernel.constraints.steps import Step
from egs_kernel.errors import EgsError, ExitCode, Refused
from egs_kernel.gate.views import GovernedTask
from egs_kernel.model import FileIdentity, Reason

MAX_FRAME: Final = 1024 * 1024
_HEADER: Final = struct.Struct(">I")


RevokedKind = Literal["artifact", "key", "subject", "policy", "host"]
"""What can be revoked (model.Revoked)."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """What every request has: an `op`."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every answer has: a `type`."""


class LaunchRequest(_Request, frozen=True, kw_only=True, tag="launch"):
    """Authorize the next exec of the asking process. The program's O_PATH descriptor comes with the frame.

    `program` is the path as the launcher resolved it, `argv` the whole argv. `artifact` is an envelope
    (base64 in JSON); None lets the daemon look for one among those in its folder. `svid` is a JWT-SVID.
    """

    program: str
    argv: tuple[str, ...]
    artifact: bytes | None = None
    svid: str | None = None


class ReadyRequest(_Request, frozen=True, kw_only=True, tag="ready"):
    """The launcher has done the steps that it was sent."""


class HostStatementRequest(_Request, frozen=True, kw_only=True, tag="host_statement"):
    """Sign with the host's key that the asking user asks for the intent with this SHA-256 (hex)."""

    intent_digest: str


class StatusRequest(_Request, frozen=True, kw_only=True, tag="status"):
    """How is it going?"""


class ProcessesRequest(_Request, frozen=True, kw_only=True, tag="ps"):
    """Which processes are governed? Other users' are told to root only."""


class ArtifactsRequest(_Request, frozen=True, kw_only=True, tag="artifacts"):
    """Which standing artifacts are there, and which of them stand? Root only: paths and users are in it."""


class AddArtifactRequest(_Request, frozen=True, kw_only=True, tag="artifact_add"):
    """Put an artifact into the folder of standing artifacts. Root only."""

    artifact: bytes


class RemoveArtifactRequest(_Request, frozen=True, kw_only=True, tag="artifact_remove"):
    """Remove an artifact from the folder. Root only. `id`: the artifact id or a unique prefix."""

    id: str


class RevokeRequest(_Request, frozen=True, kw_only=True, tag="revoke"):
    """Never authorize anything by this again. Root only. `id` is the whole id; of what, says `kind`."""

    id: str
    kind: RevokedKind = "artifact"
    why: str = ""


class AddRevocationsRequest(_Request, frozen=True, kw_only=True, tag="revocations_add"):
    """Take in a signed revocation list. Root only."""

    content: bytes


class RevocationsRequest(_Request, frozen=True, kw_only=True, tag="revocations"):
    """What is revoked, and by which lists? Root only."""


class ActivatePolicyRequest(_Request, frozen=True, kw_only=True, tag="policy_activate"):
    """Have this signed policy set be the active one. Root only."""

    content: bytes


class PolicyRequest(_Request, frozen=True, kw_only=True, tag="policy"):
    """Which policy set is active, and can it be asked? Root only."""


class SealRequest(_Request, frozen=True, kw_only=True, tag="seal"):
    """Seal the gate: nobody but the daemon changes anything from then on. Root only."""


class UnsealRequest(_Request, frozen=True, kw_only=True, tag="unseal"):
    """Lift the seal for as long as this maintenance artifact says. Root only."""

    artifact: bytes


class ReloadRequest(_Request, frozen=True, kw_only=True, tag="reload"):
    """Read configuration, trust, policy and artifacts again. Root only."""


class HoldsRequest(_Request, frozen=True, kw_only=True, tag="holds"):
    """What is held? Root only. `after`: the last id of the answer before, when that was not all."""

    after: str = ""


class ApproveHoldRequest(_Request, frozen=True, kw_only=True, tag="hold_approve"):
    """Let what is held run, by this artifact. Root only."""

    id: str
    artifact: bytes


class DenyHoldRequest(_Request, frozen=True, kw_only=True, tag="hold_deny"):
    """Kill what is held. Root only."""

    id: str
    why: str = ""


class RotateLogKeyRequest(_Request, frozen=True, kw_only=True, tag="log_key_rotate"):
    """Let a new key sign the record's checkpoints. Root only. `overlap`: seconds for which the old one signs, too."""

    overlap: int


class DriftRequest(_Request, frozen=True, kw_only=True, tag="drift"):
    """What the monitor found and did, to be recorded; empty: it is there. Root only."""

    reports: tuple[FindingEntry | ResponseEntry | WatchChange | BaselineEntry, ...] = ()


class GovernedRequest(_Request, frozen=True, kw_only=True, tag="governed"):
    """Which processes does the gate govern, by number beyond `after`; or is it `pid`? For the monitor of a sealed gate. Root only."""

    after: int = 0
    pid: int = 0


class IdentifyRequest(_Request, frozen=True, kw_only=True, tag="identify"):
    """Which file is the descriptor that comes with this, as the gate sees it? For the monitor of a sealed gate. Root only."""


class RestrainRequest(_Request, frozen=True, kw_only=True, tag="restrain"):
    """Mark a process of an execution, or take that back. For the monitor of a sealed gate. Root only."""

    pid: int
    execution: int
    how: Literal["quarantine", "suspend", "resume"]


class GuardRequest(_Request, frozen=True, kw_only=True, tag="guard"):
    """Attach the guards of what is suspended. For the monitor of a sealed gate. Root only."""


LentRequest = GovernedRequest | IdentifyRequest | RestrainRequest | GuardRequest


class WitnessRequest(_Request, frozen=True, kw_only=True, tag="witness"):
    """What a witness (its verifier key) answered to the record's checkpoint. Root, and who may read the record.

    `checkpoint`: one that it cosigned, this one or an older one; None when there is none. `problem` is why it did not
    cosign, `refused`: because it found that the checkpoint does not continue the last one.
    """

    witness: str
    checkpoint: bytes | None = None
    problem: str = ""
    refused: bool = False


Request = (
    LaunchRequest
    | ReadyRequest
    | HostStatementRequest
    | StatusRequest
    | ProcessesRequest
    | ArtifactsRequest
    | AddArtifactRequest
    | RemoveArtifactRequest
    | RevokeRequest
    | AddRevocationsRequest
    | RevocationsRequest
    | ActivatePolicyRequest
    | PolicyRequest
    | SealRequest
    | UnsealRequest
    | ReloadRequest
    | HoldsRequest
    | ApproveHoldRequest
    | DenyHoldRequest
    | RotateLogKeyRequest
    | WitnessRequest
    | DriftRequest
    | GovernedRequest
    | IdentifyRequest
    | RestrainRequest
    | GuardRequest
)


class Failure(_Answer, frozen=True, kw_only=True, tag="error"):
    """The request was refused or failed. `reason` is a reason code, `exit_code` what a command exits with."""

    reason: str
    message: str
    next_step: str = ""
    exit_code: int = int(ExitCode.REFUSED)


class Go(_Answer, frozen=True, tag="go"):
    """The exec is armed: execve now."""


class Constrain(_Answer, frozen=True, kw_only=True, tag="constrain"):
    """Do these steps to yourself, in this order, then say `ready`."""

    steps: tuple[Step, ...]


class Done(_Answer, frozen=True, kw_only=True, tag="done"):
    """The request was carried out, and the record of it is durable."""

    message: str
    id: str = ""


class HostStatementAnswer(_Answer, frozen=True, kw_only=True, tag="host_statement"):
    """What the host's key signed: an envelope, for an authority on another host."""

    statement: str


class PolicyAnswer(_Answer, frozen=True, kw_only=True, tag="policy"):
    """The active policy set. `name` "": it was not read; `problem` says why it cannot be asked; `pid` is the evaluator."""

    digest: str
    name: str
    version: int
    scopes: tuple[str, ...]
    problem: str
    pid: int | None


class ScopeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One scope as the gate has it. `compliant` is False in observe mode (EGS-001 clause 3.1)."""

    name: str
    mode: str
    compliant: bool
    governs: str


class ArtifactStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the artifact folder. `state`: standing, launch, refused or revoked; `reason` says why."""

    file: str
    id: str
    scope: str
    program: str
    state: str
    reason: str
    message: str
    not_before: str = ""
    not_after: str = ""
    uses: int = 0
    max_uses: int | None = None


class DecisionCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often the gate decided so since it was loaded. `enforced` False: in observe mode, without effect."""

    verdict: str
    reason: str
    enforced: bool
    count: int


class WitnessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One witness of the record: when it cosigned last (seconds since the epoch, 0: never), how many entries.

    `diverged`: it has seen another record than this one.
    """

    name: str
    cosigned: float
    entries: int
    diverged: bool
    problem: str


class ListStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A revocation list in force. `count`: things that it revokes."""

    scope: str
    number: int
    digest: str
    issued_at: str
    next_update: str
    count: int
    signers: tuple[str, ...]


class DemandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A scope that demands a list that is new enough. `problem` "": it has one, good until `until`; else nothing is authorized."""

    scope: str
    problem: str
    until: str


class RevokedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was revoked on this host."""

    kind: str
    thing: str
    since: str


class RevocationsAnswer(_Answer, frozen=True, kw_only=True, tag="revocations"):
    """The lists in force, the scopes that demand one, and what was revoked on this host: the newest `said` of `count`."""

    lists: tuple[ListStatus, ...]
    demands: tuple[DemandStatus, ...]
    said: tuple[RevokedStatus, ...]
    count: int


class StatusDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the status that only root is told."""

    problems: tuple[str, ...]
    policy_digest: str
    host_id: str
    host_key: str
    record: str
    record_entries: int
    resident_bytes: int
    artifacts: tuple[ArtifactStatus, ...]
    decisions: tuple[DecisionCount, ...]
    failures: dict[str, int]
    witnesses: tuple[WitnessStatus, ...] = ()
    revocation_lists: tuple[ListStatus, ...] = ()


class StatusAnswer(_Answer, frozen=True, kw_only=True, tag="status"):
    """The daemon's state. `details` is None for those who are not root.

    `seal` is sealed, unsealed, or lifted, until `lifted_until`. `watched`: a monitor looks for drift.
    """

    version: str
    pid: int
    uptime_seconds: float
    tier: str
    healthy: bool
    heartbeat_age: float
    scopes: tuple[ScopeStatus, ...]
    standing: int
    refused_artifacts: int
    governed: int
    seal: str = "unsealed"
    lifted_until: str = ""
    watched: bool = False
    details: StatusDetails | None = None


class RefusedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a constraint refused an execution, and how often. `word` is the constraint's."""

    word: str
    what: str
    count: int


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One governed process.

    `execution` (a decimal string: JSON numbers end at 2^53) is "0" when it was governed before it executed
    anything; `inherited`: it is its parent's, because it was forked and has not executed since;
    `held`: it executed without an authorization, and waits for one before its first instruction.
    """

    pid: int
    scope: str
    execution: str
    inherited: bool
    held: bool = False
    artifact: str
    program: str
    uid: int
    started: float
    """Seconds since the epoch of the exec; 0 when it executed nothing yet."""
    refused: tuple[RefusedStatus, ...] = ()


class ProcessesAnswer(_Answer, frozen=True, kw_only=True, tag="ps"):
    """The governed processes that the asking user may see."""

    processes: tuple[ProcessStatus, ...]


class ArtifactsAnswer(_Answer, frozen=True, kw_only=True, tag="artifacts"):
    """Every file in the artifact folder, refused ones included."""

    artifacts: tuple[ArtifactStatus, ...]


class HoldStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One exec that is held.

    `id` is the execution that it will be. `since` and `until` are seconds since the epoch. `reason` is why the gate
    did not let it pass, `message` why no artifact has authorized it so far. `digest`, `kind` and `message` are "" until
    it was looked at.
    """

    id: str
    pid: int
    parent_pid: int
    scope: str
    program: str
    digest: str
    kind: str
    argv: tuple[str, ...]
    uid: int
    since: float
    until: float
    reason: str
    message: str


class HoldsAnswer(_Answer, frozen=True, kw_only=True, tag="holds"):
    """What is held, the oldest first. `more`: ask again for what comes after the last of these."""

    holds: tuple[HoldStatus, ...]
    more: bool = False


class GovernedAnswer(_Answer, frozen=True, kw_only=True, tag="governed"):
    """Processes of the gate's table, by number. `more`: ask again, after the last of these."""

    tasks: tuple[GovernedTask, ...]
    more: bool = False


class IdentityAnswer(_Answer, frozen=True, kw_only=True, tag="identity"):
    """The file behind the descriptor."""

    file: FileIdentity


class RestrainAnswer(_Answer, frozen=True, kw_only=True, tag="restrain"):
    """Whether it is so: the process is marked, all guards are there."""

    done: bool


Answer = (
    Failure
    | Go
    | Constrain
    | Done
    | StatusAnswer
    | ProcessesAnswer
    | ArtifactsAnswer
    | HoldsAnswer
    | RevocationsAnswer
    | PolicyAnswer
    | HostStatementAnswer
    | GovernedAnswer
    | IdentityAnswer
    | RestrainAnswer
)

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


class FrameReader:
    """Cuts a stream of bytes into frames, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The content of the next whole frame, or None when more bytes are needed.

        Raises:
            Refused: the length is 0 or above `MAX_FRAME`: whoever is there does not speak this protocol.
        """
        if len(self._buffer) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._buffer)
        if not 0 < length <= MAX_FRAME:
            raise protocol_error(f"a frame of {length} bytes was announced; 1 to {MAX_FRAME} are possible")
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        content = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return content

    @property
    def pending(self) -> int:
        """Bytes that belong to no whole frame yet."""
        return len(self._buffer)


def frame(content: bytes) -> bytes:
    """Put the length before `content`.

    Raises:
        Refused: it is empty or larger than `MAX_FRAME`.
    """
    if not 0 < len(content) <= MAX_FRAME:
        raise protocol_error(f"a message of {len(content)} bytes does not fit into a frame of {MAX_FRAME}")
    return _HEADER.pack(len(content)) + content


def encode(message: Request | Answer) -> bytes:
    """A message as a whole frame.

    Raises:
        Refused: it does not fit into a frame.
    """
    return frame(msgspec.json.encode(message))


def decode_request(content: bytes) -> Request:
    """A request from a frame's content.

    Raises:
        Refused: it is no request of this version.
    """
    try:
        return _requests.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise protocol_error(f"this is no request: {error}") from error


def decode_answer(content: bytes) -> Answer:
    """An answer from a frame's content.

    Raises:
        Refused: it is no answer of this version.
    """
    try:
        return _answers.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise protocol_error(f"this is no answer: {error}") from error


def failure(error: EgsError) -> Failure:
    """The answer that carries `error`."""
    return Failure(
        reason=error.reason.code,
        message=error.message,
        next_step=error.next_step,
        exit_code=int(error.exit_code),
    )


def protocol_error(message: str) -> Refused:
    """The error for bytes that are not this protocol."""
    return Refused(Reason.PROTOCOL_ERROR, message, "Use the `egs` command of the same version as the daemon.")
