"""One entry in one line of plain text, safe to show on a terminal. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from egs_kernel.audit.entries import (
    Approval,
    ArtifactChange,
    Attempt,
    BaselineEntry,
    Code,
    ConfigurationChange,
    DaemonStarted,
    DaemonStopped,
    Decision,
    EntryType,
    Evaluated,
    Exec,
    FindingEntry,
    Gap,
    Issuance,
    LogKeyChange,
    Outcome,
    Part,
    PolicyChange,
    PostureEntry,
    Recorded,
    Refusal,
    Request,
    ResponseEntry,
    Revocation,
    RevocationListChange,
    SealChange,
    Submission,
    Verification,
    WatchChange,
    WitnessAlarm,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.model import AttemptEvent, CodeEvent, ExecEvent


def describe(recorded: Recorded) -> str:
    """`SEQ TIME TYPE what happened`, without control characters whatever the entry holds."""
    kind = recorded.entry.__struct_config__.tag
    return printable(f"{recorded.seq} {recorded.time} {kind} {_what(recorded.entry)}".rstrip())


def printable(text: str) -> str:
    r"""Text with everything that could steer a terminal written as an escape, such as `\x1b`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _what(entry: EntryType) -> str:  # noqa: C901, PLR0911, PLR0912 - one line a type
    match entry:
        case DaemonStarted():
            return f"egs-kernel {entry.version} pid {entry.pid} host {entry.host_id}"
        case DaemonStopped():
            return entry.cause
        case Request():
            asker = f" by pid {entry.peer.pid} uid {entry.peer.uid}" if entry.peer else ""
            return f"{entry.scope}: {_command(entry.intent.program, entry.intent.argv)}{asker}{_id(entry.artifact_id)}"
        case Verification():
            failed = [step.name for step in entry.steps if not step.passed]
            return (
                f"{entry.reason.code}{_id(entry.artifact_id)}{' at ' + ', '.join(failed) if failed else ''}"
            )
        case Decision():
            what = _command(entry.intent.program, entry.intent.argv) if entry.intent else ""
            return f"{entry.verdict.name} {entry.reason.code} {entry.scope}: {what}{_id(entry.artifact_id)} {entry.detail}"
        case Exec():
            return _exec(entry.event)
        case Outcome():
            return _outcome(entry)
        case Code():
            return _code(entry.event)
        case Refusal():
            times = f" ({entry.count} times)" if entry.count > 1 else ""
            return f"refused by {entry.word}: {entry.what}{times} {entry.scope}: execution {entry.execution}"
        case Attempt():
            return _attempt(entry.event)
        case SealChange():
            return _seal(entry)
        case ArtifactChange():
            return f"{entry.action}{_id(entry.artifact_id)} {entry.source} {entry.detail}"
        case Revocation():
            return f"{entry.kind} {entry.thing} since {entry.since} {entry.why}"
        case RevocationListChange():
            return _revocation_list(entry)
        case PolicyChange():
            return _policy(entry)
        case Gap():
            count = f"{entry.lost} events: " if entry.lost is not None else ""
            kept = f", kept in {entry.kept}" if entry.kept else ""
            return f"{entry.cause}: {count}{entry.detail}{kept}"
        case LogKeyChange():
            return f"{entry.key} takes over; {entry.previous} signs until {entry.until}"
        case WitnessAlarm():
            seen = "" if entry.cosigned is None else f" {entry.cosigned} entries"
            return f"{entry.problem}: {entry.witness} has cosigned{seen}, there were {entry.entries}: {entry.detail}"
        case ConfigurationChange():
            return _configuration(entry)
        case Part():
            return f"{entry.index + 1} of {entry.count} of what has the SHA-256 {entry.digest[:12]}"
        case FindingEntry() | ResponseEntry() | WatchChange() | BaselineEntry():
            return _drift(entry)
        case PostureEntry():
            problems = "; ".join(entry.posture.problems) or "no problems"
            return f"{entry.digest[:12]} {entry.posture.tier.value} {problems}"
        case Evaluated():
            by = ", ".join(entry.determining) or "no policy"
            return f"{entry.effect} by {by} of {entry.policy} {entry.policy_digest[:12]} {' '.join(entry.errors)}"
        case Submission():
            return f"{entry.scope}: {entry.principal} asks: {entry.intent} [request {entry.request}]"
        case Approval():
            return f"{entry.action} by {entry.name} ({entry.keyid[:12]}) [request {entry.request}]"
        case Issuance():
            return _issuance(entry)


def _issuance(entry: Issuance) -> str:
    what = {
        "issued": f"issued until {entry.until}{_id(entry.artifact_id)}",
        "pending": f"waits for {entry.required} approvals until {entry.until}",
        "denied": f"denied: {entry.reason.code}" + (f" ({entry.count} times)" if entry.count > 1 else ""),
    }[entry.action]
    where = f"{entry.scope}: " if entry.scope else ""
    request = f" [request {entry.request}]" if entry.request else ""
    return f"{where}{entry.principal}: {what} {entry.detail}{request}"


def _exec(event: ExecEvent) -> str:
    observed = _observed(event)
    who = f"pid {event.pid} uid {event.uid}"
    command = _command(event.filename, event.argv)
    return f"{event.verdict.name} {event.reason.code}{observed} {event.scope}: {who}: {command}{_id(event.artifact_id)}"


def _outcome(entry: Outcome) -> str:
    event = entry.event
    how = entry.signal or f"exit {entry.exit_code}"
    used = f"{event.cpu_nanoseconds / 1e9:.3f} s, {event.max_rss_bytes // 1024} KiB"
    return f"{event.scope}: pid {event.pid} execution {event.execution} {how} ({used})"


def _configuration(entry: ConfigurationChange) -> str:
    if entry.action == "refused":
        return f"refused ({entry.cause}): {entry.detail}"
    scopes = ", ".join(f"{scope.name} {scope.mode.value}" for scope in entry.scopes) or "no scopes"
    return f"applied ({entry.cause}): {scopes}; {len(entry.trusted_keys)} trusted keys"


def _code(event: CodeEvent) -> str:
    code = "memory of no file" if event.file is None else f"{event.name} (inode {event.file.inode})"
    who = f"pid {event.pid} execution {event.execution}"
    return f"DENY {event.reason.code}{_observed(event)} {event.scope}: {who}: {code}"


def _attempt(event: AttemptEvent) -> str:
    number = f" {event.number}" if event.number else ""
    where = f" on {event.name} (inode {event.inode})" if event.inode or event.name else ""
    return f"refused {event.what}{number}{where}: pid {event.pid} uid {event.uid} {event.comm}"


def _seal(entry: SealChange) -> str:
    if entry.action == "sealed":
        return f"sealed: {entry.cause}"
    return f"lifted until {entry.until}{_id(entry.artifact_id)}: {entry.operator}: {entry.purpose}"


def _revocation_list(entry: RevocationListChange) -> str:
    if entry.action == "refused":
        return f"refused {entry.reason.code}: {entry.detail}"
    named = f"number {entry.number} of scope {entry.scope}"
    return f"added: {named} revokes {entry.revokes} things, good until {entry.next_update}"


def _policy(entry: PolicyChange) -> str:
    named = f"{entry.name} version {entry.version} ({entry.digest[:12]})" if entry.name else "a policy set"
    if entry.action == "refused":
        return f"refused {entry.reason.code}: {named} ({entry.cause}): {entry.detail}"
    return f"activated ({entry.cause}): {named} for {', '.join(entry.scopes)}"


def _drift(entry: FindingEntry | ResponseEntry | WatchChange | BaselineEntry) -> str:
    match entry:
        case FindingEntry():
            what = f"{entry.severity} {entry.finding.value}: {entry.detail}"
            return f"{entry.number} {what}{_of(entry)}: {entry.response} ({entry.rule})"
        case ResponseEntry():
            success = "verified" if entry.verified else "NOT verified"
            return f"to {entry.number}: {entry.response} of {entry.processes} processes, {success}{_of(entry)} {entry.detail}"
        case WatchChange():
            unwatched = f": nobody watched from {entry.since} to {entry.until}" if entry.since else ""
            return f"{entry.action}{unwatched} {entry.detail}"
        case BaselineEntry():
            return f"{entry.of}{_of(entry)}: {len(entry.facts)} facts"


def _of(entry: FindingEntry | ResponseEntry | BaselineEntry) -> str:
    return f" of execution {entry.execution}" if entry.execution else " of the host"


def _observed(event: ExecEvent | CodeEvent) -> str:
    return "" if event.enforced else " (observe mode: not enforced)"


def _command(program: str, argv: Iterable[str] | None) -> str:
    return program if argv is None else f"{program} [{' '.join(shlex.quote(word) for word in argv)}]"


def _id(artifact_id: str | None) -> str:
    return f" artifact {artifact_id[:12]}" if artifact_id else ""
