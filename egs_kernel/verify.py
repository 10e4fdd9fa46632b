"""Verification of an authorization artifact: pure, from bytes to a grant, or a refusal.

`authenticate`: is this an artifact that those who may sign for its scope have signed?

 1. Envelope: at most 64 KiB, one DSSE envelope of our payload type, no unknown or duplicate fields.
 2. Signatures: at least one is by a trusted key, and every signature by a trusted key is good.
 3. Statement: only now is the payload read. It is RFC 8785 canonical, of our type and version, has no
    unknown field, and obeys every rule of docs/artifact.md.
 4. Keys: as many signers as the scope's threshold asks for are valid now, issuers, and for this scope.

`authorize`: does it authorize this execution, on this host, now?

 5. Window: notBefore <= now < notAfter.
 6. Digest: the measured program, and each script and library, are the subjects that were signed.
 7. Identity: user, uid, groups, SPIFFE id.
 8. Host: host id and labels.
 9. Intent: argv (bound, where the program takes code from it), working directory, environment.
10. Scope: this host has it.
11. Policy: the artifact was issued under the policy set that is active here, and that set, asked again with what
    this node knows, permits it.
12. Posture: the host's own integrity is established.
13. Revocation: nobody took the artifact back, too many of its signers' keys, one of its subjects, its policy set or
    this host; and this host's knowledge of that is new enough.
14. Uses: some are left.
15. Constraints: this host can enforce each.

Nothing here returns a verdict: whoever gets an `Authorization` has one, everything else raises. A grant
for the gate is made by `Authorization.grant`, and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import (
    Constraints,
    DeclaredIntent,
    Identity,
    Predicate,
    Statement,
    format_time,
    parse_statement,
)
from egs_kernel.artifact.variables import loads_code
from egs_kernel.checks.identity import check_host, check_identity
from egs_kernel.checks.intent import check_intent
from egs_kernel.checks.launch import launch_required
from egs_kernel.checks.policy import check_policy
from egs_kernel.checks.revocation import Ties, check_revoked
from egs_kernel.checks.signers import check_signatures, check_signers
from egs_kernel.checks.subjects import check_bound, check_digest, check_measured
from egs_kernel.errors import Refused
from egs_kernel.model import Grant, HostFacts, Intent, Measurement, Reason

if TYPE_CHECKING:
    from egs_kernel.sslib import Envelope
    from egs_kernel.trust.store import TrustedKey, TrustStore


class Step(IntEnum):
    """The steps of the plan above, by their numbers."""

    ENVELOPE = 1
    SIGNATURES = 2
    STATEMENT = 3
    KEYS = 4
    WINDOW = 5
    DIGEST = 6
    IDENTITY = 7
    HOST = 8
    INTENT = 9
    SCOPE = 10
    POLICY = 11
    POSTURE = 12
    REVOCATION = 13
    USES = 14
    CONSTRAINTS = 15


STEPS: Final = {
    Step.ENVELOPE: "a DSSE envelope of at most 64 KiB, nothing unknown in it",
    Step.SIGNATURES: "every signature by a trusted key is good, and there is one",
    Step.STATEMENT: "the payload is a canonical execution authorization",
    Step.KEYS: "enough signers may sign for its scope, now",
    Step.WINDOW: "now is within its validity",
    Step.DIGEST: "the program, scripts and libraries are the signed ones",
    Step.IDENTITY: "the identity is the authorized one",
    Step.HOST: "it is for this host",
    Step.INTENT: "arguments, working directory and environment are the authorized ones",
    Step.SCOPE: "this host has its scope",
    Step.POLICY: "the active policy set is the evaluated one, and permits it here",
    Step.POSTURE: "the host's integrity is established",
    Step.REVOCATION: "nothing of it is revoked, as far as is known, and that is new enough",
    Step.USES: "uses are left",
    Step.CONSTRAINTS: "this host can enforce its constraints",
}
"""What each step establishes, for those who print them."""

Reached = Callable[[Step], None]
"""Called as each step begins, so that a caller can show how far a refused artifact came."""

Permit = Callable[["Artifact", Intent], str]
"""Asks policy, and says by what it permits; "" where none is active. Raises POLICY_DENIED or POLICY_UNAVAILABLE."""

_TAKES: Final = {
    "syscalls": "seccomp filters that can be read back",
    "syscalls.log": "a kernel that reports what filters let pass",
    "code.anonymous": "the tier lsm",
    "process": "processes whose state can be read back",
    "resources": "processes whose state can be read back",
    "resources.memory": "the cgroup v2 controller memory",
    "resources.processes": "the cgroup v2 controller pids",
    "resources.cpuPercent": "the cgroup v2 controller cpu",
    "resources.wallSeconds": "cgroup.kill, which Linux 5.14 brought",
    "filesystem": "Landlock of version 2 (Linux 5.19)",
    "filesystem.truncate": "Landlock of version 3 (Linux 6.2)",
    "filesystem.deviceControl": "Landlock of version 5 (Linux 6.10)",
    "network.none": "user and network namespaces",
    "network.ports": "Landlock of version 4 (Linux 6.7)",
    "network.abstract": "Landlock of version 6 (Linux 6.12)",
    "process.signals": "Landlock of version 6 (Linux 6.12)",
    "drift": "egs-monitor, running",
}
"""What a host must have for each thing that constraints need."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _unobserved(_step: Step) -> None:
    pass


def _unasked(_artifact: Artifact, _intent: Intent) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact that authenticated.

    Attributes:
        id: the SHA-256 (hex) of its payload.
        statement: what it says.
        signers: the ids of the keys that count.
        threshold: how many of them must not be revoked.
    """

    id: str
    statement: Statement
    signers: tuple[str, ...]
    threshold: int = 1

    @property
    def ties(self) -> Ties:
        """What it can be revoked by."""
        return Ties(
            artifact=self.id,
            scope=self.statement.predicate.scope.name,
            keys=self.signers,
            threshold=self.threshold,
            subjects=tuple(subject.digest.sha256 for subject in self.statement.subject),
            policy=self.statement.predicate.scope.policy_digest,
        )


@dataclass(frozen=True, kw_only=True)
class Authorization:
    """One execution, or a standing permission, that is authorized.

    Attributes:
        artifact_id: the artifact's id.
        digest: the authorized digest of the program.
        named: those of the scripts and libraries that belong to it.
        scope: the scope's name.
        uid: the user id it is for; None: any.
        argv: the exact arguments that the gate is to compare; None: any.
        cgroup: the cgroup path below which it must run; None: any.
        window: valid from, and until before; not beyond what is known of revocations, where that ends.
        uses_left: how many more executions; None: unlimited.
        constraints: what must hold while it runs; None: nothing.
        code_variables: it signs values for environment variables that make programs load code.
        children: digests of the programs that it may start, where it lists them.
    """

    artifact_id: str
    digest: str
    named: frozenset[str]
    scope: str
    uid: int | None
    argv: tuple[bytes, ...] | None
    cgroup: str | None
    window: tuple[datetime, datetime]
    uses_left: int | None
    constraints: Constraints | None
    code_variables: bool
    children: frozenset[str] = frozenset()

    @property
    def own_children(self) -> bool:
        """Whether what it runs may start certain programs alone, or none."""
        process = None if self.constraints is None else self.constraints.process
        return process is not None and process.children in ("none", "listed")

    def grant(  # noqa: PLR0913 - what was measured, and where the gate will see it
        self,
        program: Measurement,
        named: Collection[Measurement] = (),
        children: Collection[Measurement] = (),
        *,
        boot_offset: int,
        cgroup_id: int | None,
        seccomp_filters: int | None,
    ) -> Grant:
        """The gate's record of this authorization: the only place where one is made.

        Args:
            program: the measured program as the gate sees it.
            named: the same of every script and library that belongs to it.
            children: the same of every program that it may start, where it lists them.
            boot_offset: CLOCK_REALTIME minus CLOCK_BOOTTIME, nanoseconds.
            cgroup_id: id of `cgroup`; required when the authorization names one.
            seccomp_filters: attested filters of the task; required when it constrains system calls.

        Raises:
            Refused: CGROUP_MISMATCH or CONSTRAINT_NOT_ATTESTED, when what is required is missing; DIGEST_MISMATCH,
                when other files were measured than those that are authorized.
        """
        measured = program.digest, _digests(named), _digests(children)
        if measured != (self.digest, self.named, self.children):
            raise Refused(Reason.DIGEST_MISMATCH, "the files measured are not those authorized", "Try again.")
        if self.cgroup is not None and cgroup_id is None:
            raise Refused(
                Reason.CGROUP_MISMATCH, f"the cgroup {self.cgroup} does not exist", "Create it, or run in it."
            )
        filtered = self.constraints is not None and self.constraints.syscalls is not None
        launched = self.constraints is not None and bool(self.constraints.at_launch)
        if filtered and not seccomp_filters:
            raise Refused(
                Reason.CONSTRAINT_NOT_ATTESTED,
                "the system call filter was not attested",
                "Start the program with egs run.",
            )
        not_before, not_after = (_nanoseconds(time) - boot_offset for time in self.window)
        whole = Grant(
            artifact_id=self.artifact_id,
            scope=self.scope,
            file=program.identity,
            digest=self.digest,
            measured=program.time,
            subjects=(program, *named, *children),
            not_before=max(not_before, 0),
            not_after=max(not_after, 0),
            uid=self.uid,
            cgroup_id=cgroup_id,
            argv=self.argv,
            uses=self.uses_left,
            no_new_privs=launched,
            seccomp_filters=seccomp_filters,
            code_variables=self.code_variables,
            refuse_anonymous_code=self.constraints is not None and self.constraints.refuses_anonymous_code,
            own_children=self.own_children,
        )
        return replace(whole, children=tuple(_of_child(whole, child) for child in children))


def _digests(files: Collection[Measurement]) -> frozenset[str]:
    return frozenset(file.digest for file in files)


def _of_child(whole: Grant, child: Measurement) -> Grant:
    """For what a program starts: as itself, but its own file, any arguments, and where and under what it runs by then."""
    return replace(
        whole,
        file=child.identity,
        digest=child.digest,
        measured=child.time,
        argv=None,
        uses=None,
        cgroup_id=None,
        seccomp_filters=None,
        code_variables=False,
    )


def authenticate(
    content: bytes, trust: TrustStore, now: datetime, *, reached: Reached = _unobserved
) -> Artifact:
    """Steps 1 to 4.

    Args:
        content: the artifact file.
        trust: who may sign what.
        now: an aware time.
        reached: called as each step begins.

    Raises:
        Refused: with the reason; nothing of the artifact may then be used.
    """
    reached(Step.ENVELOPE)  # 1
    envelope = parse_envelope(content)
    reached(Step.SIGNATURES)  # 2
    signers = check_signatures(envelope, trust)
    reached(Step.STATEMENT)  # 3
    statement = parse_statement(envelope.payload)
    reached(Step.KEYS)  # 4
    accepted = check_signers(signers, trust, statement.predicate.scope.name, now)
    return Artifact(
        id=artifact_id(envelope),
        statement=statement,
        signers=tuple(sorted(signer.keyid for signer in accepted)),
        threshold=_remaining(trust, accepted, statement.predicate.scope.name),
    )


def _remaining(trust: TrustStore, accepted: list[TrustedKey], scope: str) -> int:
    """How many of these keys must remain. A key and its successor count once: which of them is not asked again."""
    return trust.threshold(scope) + len(accepted) - trust.holders(accepted)


def artifact_id(envelope: Envelope) -> str:
    """The id of an artifact: the SHA-256 (hex) of its payload, whoever signed it."""
    return hashlib.sha256(envelope.payload).hexdigest()


def authorize(  # noqa: PLR0913 - the two callables have defaults that do nothing
    artifact: Artifact,
    intent: Intent,
    host: HostFacts,
    now: datetime,
    *,
    reached: Reached = _unobserved,
    permit: Permit = _unasked,
) -> Authorization:
    """Steps 5 to 15. `intent.argv` None asks for a standing permission.

    Args:
        artifact: what `authenticate` returned.
        intent: what is to be executed, measured.
        host: what is known of this host.
        now: an aware time.
        reached: called as each step begins.
        permit: asks the active policy set, where there is one.

    Raises:
        Refused: with the reason.
    """
    predicate = artifact.statement.predicate
    reached(Step.WINDOW)  # 5
    check_window(artifact, now)
    reached(Step.DIGEST)  # 6
    check_digest(artifact.statement, intent.digest)
    check_measured(artifact.statement, intent)
    reached(Step.IDENTITY)  # 7
    identity = predicate.identity or Identity()
    uid = check_identity(identity, intent, host)
    reached(Step.HOST)  # 8
    check_host(identity, host)
    reached(Step.INTENT)  # 9
    check_bound(artifact.statement, intent.program_kind)
    argv = check_intent(predicate.intent or DeclaredIntent(), intent)
    reached(Step.SCOPE)  # 10
    _check_scope(predicate.scope.name, host)
    reached(Step.POLICY)  # 11
    check_policy(predicate.scope.policy_digest, host)
    permit(artifact, intent)
    reached(Step.POSTURE)  # 12
    _check_posture(host)
    reached(Step.REVOCATION)  # 13
    check_revoked(artifact.ties, host.revoked, host.host_id)
    _check_revocations_known(host, now)
    reached(Step.USES)  # 14
    uses_left = _check_uses(artifact, host)
    reached(Step.CONSTRAINTS)  # 15
    _check_constraints(predicate.constraints, intent, host)
    return Authorization(
        artifact_id=artifact.id,
        digest=intent.digest,
        named=frozenset(subject.digest.sha256 for subject in artifact.statement.code),
        scope=predicate.scope.name,
        uid=uid,
        argv=argv,
        cgroup=identity.cgroup,
        window=_known_within(predicate.window, host.revocations_until),
        uses_left=uses_left,
        constraints=predicate.constraints,
        code_variables=_signs_code_variables(predicate),
        children=_listed_children(artifact.statement),
    )


def _listed_children(statement: Statement) -> frozenset[str]:
    constraints = statement.predicate.constraints
    if constraints is None or not constraints.lists_children:
        return frozenset()
    return frozenset(subject.digest.sha256 for subject in statement.children)


def _signs_code_variables(predicate: Predicate) -> bool:
    rules = predicate.intent.environment if predicate.intent is not None else None
    return rules is not None and any(loads_code(name) for name in rules.set)


def check_window(artifact: Artifact, now: datetime) -> None:
    """Step 5, alone: an offline check can make it.

    Raises:
        Refused: NOT_YET_VALID or EXPIRED.
    """
    start, end = artifact.statement.predicate.window
    if now < start:
        raise Refused(
            Reason.NOT_YET_VALID,
            f"it is not valid before {format_time(start)}",
            "Wait, or check this host's clock.",
        )
    if now >= end:
        raise Refused(Reason.EXPIRED, f"it expired at {format_time(end)}", "Have a new artifact issued.")


# 10 to 15: the host's state


def _check_scope(scope: str, host: HostFacts) -> None:
    if scope not in host.scopes:
        raise Refused(
            Reason.SCOPE_UNKNOWN,
            f"this host has no scope {scope!r}",
            "Add it to egs.toml, or use one of: egs status",
        )


def _check_posture(host: HostFacts) -> None:
    if host.posture.problems:
        raise Refused(
            Reason.POSTURE_FAILED,
            f"the host's integrity is not established: {'; '.join(host.posture.problems)}",
            "Run: egs doctor",
        )


def _check_revocations_known(host: HostFacts, now: datetime) -> None:
    problem = host.revocations_problem
    until = host.revocations_until
    if not problem and until is not None and now >= until:
        problem = f"the revocation list in force was good until {format_time(until)}"
    if problem:
        raise Refused(
            Reason.REVOCATION_LIST_STALE,
            f"what is revoked is not known well enough: {problem}",
            "Bring a new list: egs revocations add FILE",
        )


def _known_within(window: tuple[datetime, datetime], until: datetime | None) -> tuple[datetime, datetime]:
    """Where a list is demanded, the gate refuses from the moment at which it is too old."""
    start, end = window
    return (start, end) if until is None else (start, min(end, until))


def _check_uses(artifact: Artifact, host: HostFacts) -> int | None:
    uses = artifact.statement.predicate.uses
    if uses is None:
        return None
    left = uses - host.uses.get(artifact.id, 0)
    if left <= 0:
        raise Refused(
            Reason.USES_EXHAUSTED, f"all of its {uses} uses are spent", "Have a new artifact issued."
        )
    return left


def _check_constraints(constraints: Constraints | None, intent: Intent, host: HostFacts) -> None:
    if constraints is None:
        return
    if missing := sorted(set(constraints.needs) - host.enforceable):
        what = ", ".join(f"{word}, which takes {_TAKES[word]}" for word in missing)
        raise Refused(Reason.CONSTRAINT_UNENFORCEABLE, f"this host cannot enforce {what}", "Run: egs doctor")
    if intent.argv is None and constraints.at_launch:
        raise launch_required(f"{', '.join(constraints.at_launch)}: constrained at a launch")


def _nanoseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
