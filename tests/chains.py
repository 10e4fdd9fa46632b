"""A record as a host writes it: a launch, its children, a standing artifact, a hold, a refusal, two boots. For unit tests."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from egs_kernel.audit.entries import (
    ArtifactChange,
    Code,
    DaemonStarted,
    Decision,
    Entry,
    Exec,
    Peer,
    Refusal,
    Request,
    Step,
    Verification,
    outcome,
)
from egs_kernel.audit.lines import posture_entry
from egs_kernel.model import (
    CodeEvent,
    ExitEvent,
    GrantKind,
    Intent,
    Posture,
    Reason,
    TaskIdentity,
    Tier,
    Verdict,
)
from tests.samples import exec_event

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCHED = "a1" * 32
STANDING = "b2" * 32
DIGEST = "d" * 64
POSTURE = "e" * 64
SIGNER = "c" * 64
_times: Iterator[int] = count(1_000_000)


def boot(boot_id: str) -> list[Entry]:
    """A daemon starts, in this boot of the kernel."""
    posture = Posture(
        kernel="6.1",
        boot_id=boot_id,
        lockdown="none",
        tier=Tier.TRACEPOINT,
        gate=(),
        policy_digest="p" * 64,
        clock_synchronized=True,
    )
    entry = posture_entry(posture)
    return [entry, DaemonStarted(version="1", pid=5, host_id="h", posture=entry.digest)]


def executed(
    execution: int,
    *,
    pid: int,
    parent: int = 0,
    program: str = "/bin/x",
    artifact: str = "",
    kind: GrantKind = GrantKind.NONE,
    verdict: Verdict = Verdict.ALLOW,
    reason: Reason = Reason.AUTHORIZED,
    start: int = 0,
) -> Exec:
    """The gate's word about an exec."""
    event = exec_event(
        verdict=verdict,
        reason=reason,
        time=next(_times),
        execution=execution,
        parent_execution=parent,
        grant_kind=kind,
        artifact_id=artifact,
        pid=pid,
        start_ticks=start or pid * 10,
        filename=program,
        argv=(program, "-v"),
    )
    return Exec(event=event)


def ended(execution: int, pid: int, status: int = 0) -> Entry:
    """The end of it."""
    return outcome(
        ExitEvent(
            scope="agents",
            time=next(_times),
            execution=execution,
            pid=pid,
            status=status,
            cpu_nanoseconds=1_500_000,
            max_rss_bytes=4096,
        )
    )


def decision(
    artifact: str | None,
    *,
    request: str | None = None,
    reason: Reason = Reason.AUTHORIZED,
    pid: int | None = None,
    intent: Intent | None = None,
) -> Decision:
    """The daemon's word."""
    return Decision(
        verdict=Verdict.ALLOW if reason is Reason.AUTHORIZED else Verdict.DENY,
        reason=reason,
        scope="agents",
        policy_digest="p" * 64,
        posture=POSTURE,
        request=request,
        artifact_id=artifact,
        task=None if pid is None else TaskIdentity(pid, pid * 10),
        intent=intent,
    )


def asked(request: str, pid: int, program: str = "/bin/x") -> Request:
    """Somebody asks to launch a program."""
    intent = Intent(program=program, digest=DIGEST, argv=(program, "-v"), uid=1000)
    return Request(request=request, scope="agents", intent=intent, peer=Peer(pid, 1000, 1000))


def verified(
    artifact: str | None, *, request: str | None = None, reason: Reason = Reason.AUTHORIZED
) -> Verification:
    """What the verifier found."""
    passed = reason is Reason.AUTHORIZED
    steps = (Step("signatures", passed=True), Step("window", passed=passed))
    return Verification(
        request=request, artifact_id=artifact, passed=passed, reason=reason, steps=steps, signers=(SIGNER,)
    )


def story() -> list[Entry]:
    """Entry by entry; the tests name these numbers."""
    refused_code = CodeEvent(
        reason=Reason.CODE_UNTRUSTED, enforced=True, scope="agents", time=next(_times), execution=5_000_000_001, pid=101,
        file=None, name="",
    )  # fmt: skip
    first = [
        *boot("boot-one"),  # 0, 1
        ArtifactChange(action="presented", artifact_id=LAUNCHED, envelope="{}"),  # 2
        asked("r1", 100),  # 3
        verified(LAUNCHED, request="r1"),  # 4
        decision(LAUNCHED, request="r1", pid=100),  # 5
        executed(5_000_000_000, pid=100, artifact=LAUNCHED, kind=GrantKind.ARMED),  # 6
        ArtifactChange(action="added", artifact_id=STANDING, source="b.json", envelope="{}"),  # 7
        verified(STANDING),  # 8
        decision(STANDING, intent=Intent(program="/bin/x", digest=DIGEST)),  # 9
        executed(
            5_000_000_001, pid=101, parent=5_000_000_000, artifact=STANDING, kind=GrantKind.STANDING
        ),  # 10
        Code(event=refused_code),  # 11
        Refusal(execution=5_000_000_001, scope="agents", word="syscalls", what="socket", count=3),  # 12
        executed(
            0, pid=102, parent=5_000_000_001, program="/bin/sh", verdict=Verdict.KILL, reason=Reason.NO_GRANT
        ),  # 13
        *boot("boot-one"),  # 14, 15: the daemon was restarted
        ended(5_000_000_001, 101, 3 << 8),  # 16
        asked("r2", 103),  # 17
        verified(LAUNCHED, request="r2", reason=Reason.EXPIRED),  # 18
        decision(LAUNCHED, request="r2", reason=Reason.EXPIRED, pid=103),  # 19
        executed(
            5_000_000_002, pid=100, parent=5_000_000_000, artifact=STANDING, kind=GrantKind.STANDING
        ),  # 20
        executed(
            5_000_000_003, pid=104, parent=5_000_000_002, verdict=Verdict.HOLD, reason=Reason.NO_GRANT
        ),  # 21
        Request(request="5000000003", scope="agents", intent=Intent(program="/bin/x", digest=DIGEST)),  # 22
        verified(LAUNCHED, request="5000000003"),  # 23
        decision(LAUNCHED, request="5000000003", pid=104),  # 24
    ]
    second = [
        *boot("boot-two"),  # 25, 26
        executed(
            5_000_000_000, pid=100, artifact=STANDING, kind=GrantKind.STANDING, program="/bin/later"
        ),  # 27
    ]
    return [*first, *second]
