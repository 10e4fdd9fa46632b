"""What an execution's authorization, its files and single events say of it. Pure, as `compare.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.compare import Context, Found, expected_capabilities, inside
from egs_kernel.findings import Finding

if TYPE_CHECKING:
    from egs_kernel.drift.authorized import Authorized
    from egs_kernel.drift.baselines import Baseline, Baselines
    from egs_kernel.drift.observations import ProcessEvent

_SECOND: Final = 1_000_000_000
_Told = Iterator[tuple[Finding, str]]


def compare_authorization(
    known: Baseline, context: Context, now: float, boot_now: int, source: str
) -> list[Found]:
    """What became of an execution's authorization since.

    Args:
        known: the execution.
        context: what is compared with.
        now: seconds since 1970.
        boot_now: CLOCK_BOOTTIME nanoseconds.
        source: who asks.
    """
    return [
        Found(
            finding=finding,
            detail=detail,
            source=source,
            time=boot_now,
            execution=known.number,
            pid=known.event.pid,
            start_ticks=known.event.start_ticks,
        )
        for finding, detail in _authorization(known, context.baselines, now, boot_now)
    ]


def _authorization(known: Baseline, baselines: Baselines, now: float, boot_now: int) -> _Told:
    artifact_id = known.artifact_id
    said = baselines.artifacts.get(artifact_id)
    if not artifact_id:
        return
    short = f"artifact {artifact_id[:16]}"
    if artifact_id in baselines.revoked:
        yield Finding.ARTIFACT_REVOKED, f"{short} is revoked"
    elif artifact_id in baselines.withdrawn:
        yield Finding.ARTIFACT_SUPERSEDED, f"{short} was removed, or another one continues it"
    decided = baselines.policies.get(artifact_id)
    about_it = baselines.policy_scopes is None or known.event.scope in baselines.policy_scopes
    if about_it and decided is not None and baselines.policy is not None and decided != baselines.policy:
        yield (
            Finding.POLICY_CHANGED,
            f"it was decided under policy {decided[:16]}; {baselines.policy[:16]} is active",
        )
    if said is None:
        return
    if now >= said.not_after:
        yield Finding.ARTIFACT_EXPIRED, f"{short} has expired"
    if baselines.trusted is not None and not (baselines.trusted - baselines.revoked_keys) & set(said.signers):
        yield Finding.KEY_REVOKED, f"no key that signed {short} is trusted any more"
    wall = None if said.resources is None else said.resources.wall_seconds
    if wall is not None and boot_now - known.event.time > wall * _SECOND:
        yield Finding.OVERDUE, f"it runs longer than {wall} s"


def compare_files(said: Authorized, digests: Callable[[str], str | None]) -> list[tuple[Finding, str]]:
    """Which of the files that an artifact names are not what was signed.

    Args:
        said: the artifact.
        digests: a path's SHA-256 now; "": there is no such file; None: it cannot be told now.
    """
    found = []
    program, signed = said.program
    digest = digests(program)
    if digest and digest != signed:
        found.append((Finding.PROGRAM_REPLACED, f"{program} has the SHA-256 {digest}"))
    for path, signed in (*said.files, *said.children):
        digest = digests(path)
        if digest is not None and digest != signed:
            state = f"has the SHA-256 {digest}" if digest else "is gone"
            found.append((Finding.SUBJECT_CHANGED, f"{path} {state}"))
    return found


_CONCLUSIVE: Final = frozenset(
    {
        Finding.TRACED,
        Finding.MEMORY_WRITTEN,
        Finding.NAMESPACE_CHANGED,
        Finding.ROOT_CHANGED,
        Finding.MEMFD_EXECUTED,
        Finding.CREDENTIALS_RAISED,
        Finding.CAPABILITIES_RAISED,
    }
)
"""Suspicions that nothing has to be looked at for: it happened, and may be undone by now."""


def judge_event(event: ProcessEvent, context: Context) -> Found | None:
    """What an event says by itself; None: look at the process."""
    known = context.baselines.executions.get(event.execution)
    said = None if known is None else context.baselines.artifacts.get(known.artifact_id)
    detail = _event_detail(event)
    if event.by and event.by == context.baselines.daemon:
        return None
    program = "" if known is None else known.event.filename
    finding = event.suspicion
    conclusive = finding in _CONCLUSIVE
    if finding is Finding.CREDENTIALS_RAISED and known is not None:
        conclusive = known.event.euid != 0 and bool(event.name)
    elif finding is Finding.CAPABILITIES_RAISED and known is not None:
        expected = expected_capabilities(known, said, context.baselines.facts_of(event.execution))
        conclusive = known.event.euid != 0 and bool(event.number & ~(expected or 0))
    elif finding is Finding.ANONYMOUS_CODE:
        conclusive = known is not None and not context.expects_code(program, said)
    elif finding is Finding.CHILD_UNEXPECTED:
        conclusive = said is not None and not said.may_fork
    elif finding is Finding.NAMESPACE_CHANGED:
        given = context.baselines.given_at(event.pid, event.start_ticks, event.time)
        conclusive = not set(event.name.split(", ")) <= given
    elif finding is Finding.CGROUP_LEFT:
        home = None if known is None else context.cgroups.get(known.event.scope)
        conclusive = home is not None and event.name.startswith("/") and not inside(event.name, home)
    if not conclusive:
        return None
    return Found(
        finding=finding,
        detail=detail,
        source=event.source,
        time=event.time,
        execution=event.execution,
        pid=event.pid,
        start_ticks=event.start_ticks,
        by=event.by,
        count=event.count,
    )


def _event_detail(event: ProcessEvent) -> str:
    words = {
        Finding.TRACED: f"process {event.by} traces it",
        Finding.MEMORY_WRITTEN: "its memory was written from outside",
        Finding.NAMESPACE_CHANGED: "it went into another namespace",
        Finding.ROOT_CHANGED: "its root folder was changed",
        Finding.MEMFD_EXECUTED: "it executed memory",
        Finding.CREDENTIALS_RAISED: "its user or group ids were raised",
        Finding.CAPABILITIES_RAISED: "its capabilities were raised",
        Finding.ANONYMOUS_CODE: "executable memory of no file",
        Finding.CHILD_UNEXPECTED: "a process that it forked",
        Finding.CGROUP_LEFT: "it was moved out of its scope's cgroup",
    }
    said = words.get(event.suspicion, event.suspicion.value.replace("_", " "))
    addressed = (
        event.suspicion is Finding.ANONYMOUS_CODE
    )  # one finding, however often and wherever it makes some
    named = f": {event.name}" if event.name and not addressed else ""
    by = f" by process {event.by}" if event.by and event.suspicion is not Finding.TRACED else ""
    return f"{said}{named}{by}"
