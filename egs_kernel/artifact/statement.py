"""The in-toto Statement v1 and our predicate, as frozen types with every rule that needs no context.

The types are the one source: the published JSON Schemas are generated from them (`artifact/schema/`).
Field by field against clause 3.3: docs/artifact.md.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.artifact.canonical import decode_canonical
from egs_kernel.artifact.drift import DriftConstraint
from egs_kernel.artifact.envelope import type_error
from egs_kernel.artifact.limits import ProcessConstraint, ResourceConstraint
from egs_kernel.artifact.reach import FilesystemConstraint, NetworkConstraint
from egs_kernel.artifact.strict import PLAIN, Strict
from egs_kernel.artifact.variables import loads_code
from egs_kernel.errors import Refused
from egs_kernel.model import ARGV_MAX, Reason

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:egs-001:execution-authorization:v1"
ANY: Final = "*"
"""In `intent.argv`: exactly one argument of any content."""

Text = Annotated[str, Meta(min_length=1, max_length=1024, pattern=PLAIN)]
Label = Annotated[str, Meta(min_length=1, max_length=256, pattern=PLAIN)]
Argument = Annotated[str, Meta(max_length=ARGV_MAX, pattern=PLAIN)]
AbsolutePath = Annotated[str, Meta(min_length=1, max_length=4095, pattern=PLAIN + "/")]
Sha256 = Annotated[str, Meta(min_length=64, max_length=64, pattern=r"^(?![\s\S]*[^0-9a-f])")]
Time = Annotated[
    str,
    Meta(min_length=20, max_length=20, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"),
]
ScopeName = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^(?![\s\S]*[^a-z0-9._-])[a-z0-9]")]
AccountName = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^(?![\s\S]*[^A-Za-z0-9._@$-])[A-Za-z0-9_]")
]
AccountId = Annotated[int, Meta(ge=0, le=2**32 - 2)]
SpiffeId = Annotated[
    str, Meta(max_length=2048, pattern=r"^(?![\s\S]*[^A-Za-z0-9._/:-])spiffe://[a-z0-9._-]+(/|$)")
]
UnitName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        pattern=r"^(?![\s\S]*[^A-Za-z0-9:_.\\@-])[\s\S]+\.(service|scope|socket|mount|swap)(?![\s\S])",
    ),
]
VariableName = Annotated[
    str, Meta(min_length=1, max_length=256, pattern=r"^(?![\s\S]*[^A-Za-z0-9_])[A-Za-z_]")
]

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class SubjectRole(Enum):
    """What a subject is to the execution. The first subject, and only it, is the program."""

    PROGRAM = "program"
    SCRIPT = "script"
    LIBRARY = "library"
    CHILD = "child"


class Digest(Strict, frozen=True):
    """The digest set of a subject: SHA-256 alone, lower-case hex."""

    sha256: Sha256


class Annotations(Strict, frozen=True):
    """in-toto's annotations of a subject: ours holds the role."""

    role: SubjectRole


class Subject(Strict, frozen=True):
    """A file that the artifact authorizes, by digest. `name` says where it is; the digest decides."""

    name: AbsolutePath
    digest: Digest
    annotations: Annotations

    @property
    def role(self) -> SubjectRole:
        """What the subject is to the execution."""
        return self.annotations.role


class Identity(Strict, frozen=True):
    """Who may execute, and where. Every field that is present must hold."""

    user: AccountName | None = None
    uid: AccountId | None = None
    groups: Annotated[tuple[AccountId | AccountName, ...], Meta(max_length=64)] = ()
    spiffe_id: SpiffeId | None = None
    hosts: Annotated[tuple[Label, ...], Meta(max_length=256)] = ()
    host_labels: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()
    cgroup: AbsolutePath | None = None
    unit: UnitName | None = None


class Scope(Strict, frozen=True):
    """The policy scope: its name on the host, and the digest of the policy set that was evaluated."""

    name: ScopeName
    policy_digest: Sha256 | None = None


class EnvironmentRules(Strict, frozen=True):
    """The whole environment: variables with any value (`allow`), and with exactly one (`set`)."""

    allow: Annotated[tuple[VariableName, ...], Meta(max_length=256)] = ()
    set: Annotated[dict[VariableName, Argument], Meta(max_length=256)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.allow:
            if loads_code(name):
                raise ValueError(f"{name} makes programs load code: fix its value under set")


class DeclaredIntent(Strict, frozen=True):
    """What is to be executed. `argv` absent leaves the arguments free; `*` in it frees one argument."""

    argv: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=1024)] | None = None
    cwd: AbsolutePath | None = None
    environment: EnvironmentRules | None = None
    purpose: Text | None = None

    def __post_init__(self) -> None:
        if self.argv is not None and argv_size(self.argv) > ARGV_MAX:
            raise ValueError(f"argv has more than {ARGV_MAX} bytes, a NUL after each argument included")


class CodeConstraint(Strict, frozen=True):
    """Which code the program may run. `anonymous`: executable memory of no file, such as a compiler at run time makes."""

    anonymous: Literal["allowed", "refused"]

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce."""
        return ("code.anonymous",) if self.anonymous == "refused" else ()

    @property
    def at_launch(self) -> bool:
        """Whether it takes a launcher: the gate alone sees to it."""
        return False


class Constraints(Strict, frozen=True):
    """What holds while it runs. A word that this version does not know is refused."""

    syscalls: SyscallConstraint | None = None
    code: CodeConstraint | None = None
    resources: ResourceConstraint | None = None
    process: ProcessConstraint | None = None
    filesystem: FilesystemConstraint | None = None
    network: NetworkConstraint | None = None
    drift: DriftConstraint | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("constraints is empty: leave it out")

    @property
    def words(self) -> tuple[str, ...]:
        """The constraint words in use."""
        return tuple(word for word in self.__struct_fields__ if getattr(self, word) is not None)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce: constraint words, or the part of one that takes something."""
        found: list[str] = []
        for word in self.words:
            found += getattr(getattr(self, word), "needs", (word,))
        return tuple(found)

    @property
    def at_launch(self) -> tuple[str, ...]:
        """The words that take a launcher; with the others an artifact may stand."""
        return tuple(word for word in self.words if getattr(getattr(self, word), "at_launch", True))

    @property
    def lists_children(self) -> bool:
        """Whether it may start the artifact's children, and nothing else."""
        return self.process is not None and self.process.children == "listed"

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever signs or reads it should not overlook."""
        only_records = self.syscalls is not None and self.syscalls.only_records
        return ("constraints.syscalls only records (action log): it refuses nothing",) if only_records else ()

    @property
    def refuses_anonymous_code(self) -> bool:
        """Whether executable memory of no file is refused."""
        return self.code is not None and self.code.anonymous == "refused"


class Lineage(Strict, frozen=True):
    """Where this authorization comes from."""

    parent_artifact: Sha256 | None = None
    parent_execution: Label | None = None
    request_id: Label | None = None
    intent_digest: Sha256 | None = None


class Governance(Strict, frozen=True):
    """Who decided, and by what."""

    issuer: Label | None = None
    approvers: Annotated[tuple[Label, ...], Meta(max_length=32)] = ()
    ticket: Label | None = None
    risk: Literal["low", "medium", "high", "critical"] | None = None
    policy_engine: Label | None = None
    determining_policies: Annotated[tuple[Label, ...], Meta(max_length=256)] = ()


class Predicate(Strict, frozen=True):
    """The execution authorization. Valid from `not_before` on, until before `not_after`."""

    issued_at: Time
    not_before: Time
    not_after: Time
    scope: Scope
    identity: Identity | None = None
    intent: DeclaredIntent | None = None
    constraints: Constraints | None = None
    uses: Annotated[int, Meta(ge=1, le=2**32 - 1)] | None = None
    lineage: Lineage | None = None
    governance: Governance | None = None

    def __post_init__(self) -> None:
        issued, start, end = (parse_time(text) for text in (self.issued_at, self.not_before, self.not_after))
        if start >= end:
            raise ValueError("notBefore must be earlier than notAfter")
        if issued >= end:
            raise ValueError("issuedAt must be earlier than notAfter")
        for part in (self.identity, self.intent, self.lineage, self.governance):
            if part is not None and part == type(part)():
                raise ValueError(f"{type(part).__name__} says nothing: leave it out")
        if self.identity is not None and self.identity.cgroup is not None and self.limits_tree:
            raise ValueError(
                "identity.cgroup binds it to a cgroup, and constraints.resources takes one of its own: keep one of them"
            )

    @property
    def limits_tree(self) -> bool:
        """Whether the execution is limited as a whole, in a cgroup of its own."""
        resources = None if self.constraints is None else self.constraints.resources
        return resources is not None and resources.limits_tree

    @property
    def window(self) -> tuple[datetime, datetime]:
        """From when on, and until before when, it is valid."""
        return parse_time(self.not_before), parse_time(self.not_after)


class Statement(Strict, frozen=True):
    """An in-toto Statement v1 that authorizes an execution."""

    type: Literal["https://in-toto.io/Statement/v1"] = field(name="_type")
    predicate_type: Literal["urn:egs-001:execution-authorization:v1"]
    subject: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=256)]
    predicate: Predicate

    def __post_init__(self) -> None:
        programs = [index for index, item in enumerate(self.subject) if item.role is SubjectRole.PROGRAM]
        if programs != [0]:
            raise ValueError("the first subject, and only it, has the role program")
        constraints = self.predicate.constraints
        if constraints is not None and constraints.lists_children and not self.children:
            raise ValueError("constraints.process.children is listed, and no subject has the role child")
        names = [item.name for item in self.subject if item.role is not SubjectRole.CHILD]
        if len(set(names)) != len(names):
            raise ValueError("two subjects have the same name")

    @property
    def program(self) -> Subject:
        """The program that is authorized."""
        return self.subject[0]

    @property
    def code(self) -> tuple[Subject, ...]:
        """The scripts and libraries that belong to it."""
        return tuple(item for item in self.subject if item.role in (SubjectRole.SCRIPT, SubjectRole.LIBRARY))

    @property
    def children(self) -> tuple[Subject, ...]:
        """The programs that it may start, if its constraints say so."""
        return tuple(item for item in self.subject if item.role is SubjectRole.CHILD)


S = TypeVar("S", bound=msgspec.Struct)

_DECODER = msgspec.json.Decoder(Statement)
_ENCODER = msgspec.json.Encoder(order="sorted")


def parse_statement(payload: bytes) -> Statement:
    """The statement in the payload of an envelope.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    advice = "Use an execution authorization of this version of the format."
    return decode_statement(payload, _DECODER, PREDICATE_TYPE, advice)


def decode_statement(payload: bytes, decoder: msgspec.json.Decoder[S], predicate_type: str, advice: str) -> S:
    """A statement with this predicate, strictly.

    Args:
        payload: of an envelope.
        decoder: of the statement's type.
        predicate_type: the only one that is taken.
        advice: what to do about another one.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    value = decode_canonical(payload)
    if not isinstance(value, dict):
        raise Refused(Reason.ARTIFACT_MALFORMED, "the payload is no JSON object", "Have it issued again.")
    for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", predicate_type)):
        if value.get(name) != expected:
            raise Refused(
                Reason.ARTIFACT_UNKNOWN_VERSION, f"{name} is {value.get(name)!r}, not {expected!r}", advice
            )
    try:
        statement = decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise type_error(error) from error
    if encode_statement(statement) != payload:
        raise Refused(
            Reason.ARTIFACT_MALFORMED,
            "the payload says nothing in more words than needed: null or an empty list",
            "Leave out fields that are empty.",
        )
    return statement


def encode_statement(statement: msgspec.Struct) -> bytes:
    """The canonical payload of a statement.

    All its keys are ASCII and it holds no floats, so sorted keys are RFC 8785; `parse_statement`
    checks that with the RFC 8785 encoder.
    """
    return _ENCODER.encode(statement)


def parse_time(text: str) -> datetime:
    """`2026-11-23T14:00:00Z` → an aware time.

    Raises:
        ValueError: no such moment.
    """
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no time like 2026-11-23T14:00:00Z")
    return datetime.fromisoformat(text)


def format_time(time: datetime) -> str:
    """An aware time → `2026-11-23T14:00:00Z`, parts of a second cut off."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def argv_size(argv: tuple[str, ...]) -> int:
    """Bytes of an argv with a NUL after each argument.

    Raises:
        ValueError: an argument has no UTF-8 form.
    """
    return sum(len(argument.encode()) + 1 for argument in argv)
