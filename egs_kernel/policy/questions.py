"""What policy is asked: an intent, and what is known around it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import (
    AbsolutePath,
    AccountId,
    AccountName,
    Label,
    ScopeName,
    Sha256,
    SpiffeId,
    Text,
    Time,
    parse_time,
)
from egs_kernel.model import ProgramKind

Risk = Literal["low", "medium", "high", "critical"]
Count = Annotated[int, Meta(ge=0, le=2**32)]
MOST_WORDS: Final = 4096
"""Most arguments, and most variables: a few milliseconds for Cedar, which nobody else's launch waits longer for."""
Word = Annotated[str, Meta(max_length=128 * 1024)]
"""An argument, or the name of a variable: any text, as what is left free is compared with nothing."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Immutable, and nothing unknown in it."""


class File(_Part, frozen=True):
    """A program, script or library. `package` is the distribution's that it is of, where that is known."""

    path: AbsolutePath
    digest: Sha256
    package: Label | None = None


class Program(File, frozen=True):
    """A program, and what it does with its arguments."""

    kind: ProgramKind = ProgramKind.NATIVE


class Who(_Part, frozen=True):
    """Who asks. Every part was established by whoever asks policy: peer credentials, a verified SVID, a signature.

    `groups` are the host's, by name.
    """

    account: AccountName | None = None
    uid: AccountId | None = None
    groups: Annotated[tuple[Label, ...], Meta(max_length=1024)] = ()
    unit: Label | None = None
    spiffe_id: SpiffeId | None = None

    def __post_init__(self) -> None:
        if self.account is None and self.uid is None and self.spiffe_id is None:
            raise ValueError("nobody asks: account, uid or spiffe_id must be known")


class Host(_Part, frozen=True):
    """For which host it is asked."""

    id: Label
    labels: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()


class Lineage(_Part, frozen=True):
    """Where it comes from."""

    parent_artifact: Sha256 | None = None
    parent_execution: Label | None = None
    request_id: Label | None = None


class HostState(_Part, frozen=True):
    """The posture of the host, as far as policies can speak of it. `established`: its integrity is."""

    established: bool
    kernel: str
    lockdown: str
    tier: str
    seal: str
    clock_synchronized: bool


class Question(_Part, frozen=True, kw_only=True):
    """An intent with everything around it that policies can speak of.

    Attributes:
        scope: where it is to run.
        now: when it is asked.
        who: who asks.
        host: for which host.
        program: what is to be executed.
        scripts: what of it the program reads as code.
        libraries: what of it the program loads as code.
        children: what it may start, where that is listed.
        argv: the arguments; None: they are left free, and the artifact stands.
        standing: it is asked for before any exec.
        cwd: the working directory.
        variables: names of environment variables that are set or allowed; None: the environment is left free.
        purpose: what it is for, in words.
        ticket: what it belongs to.
        risk: how whoever asks rates it.
        valid_seconds: for how long.
        uses: how often; None: as often as its time allows.
        constraints: words, and parts of words, that hold while it runs.
        approvals: how many people approved it.
        lineage: where it comes from.
        posture: the host's; None: it is asked where that is not known.
    """

    scope: ScopeName
    now: Time
    who: Who
    host: Host
    program: Program
    scripts: Annotated[tuple[File, ...], Meta(max_length=256)] = ()
    libraries: Annotated[tuple[File, ...], Meta(max_length=256)] = ()
    children: Annotated[tuple[Program, ...], Meta(max_length=256)] = ()
    argv: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=MOST_WORDS)] | None = None
    standing: bool = False
    cwd: AbsolutePath | None = None
    variables: Annotated[tuple[Word, ...], Meta(max_length=MOST_WORDS)] | None = None
    purpose: Text | None = None
    ticket: Label | None = None
    risk: Risk | None = None
    valid_seconds: Count
    uses: Count | None = None
    constraints: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()
    approvals: Annotated[int, Meta(ge=0, le=32)] = 0
    lineage: Lineage = Lineage()
    posture: HostState | None = None

    def __post_init__(self) -> None:
        parse_time(self.now)
