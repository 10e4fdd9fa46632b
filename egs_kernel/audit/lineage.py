"""Lineage: of an execution everything that the record says, from who asked to how it ended, up to the root and down.

A view of entries: it is computed each time, and holds across restarts of the daemon. Executions are numbered within one
boot of the kernel, so an execution is a boot and a number.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from egs_kernel.audit.entries import (
    ArtifactChange,
    Code,
    Decision,
    Exec,
    FindingEntry,
    Outcome,
    Recorded,
    Refusal,
    Request,
    ResponseEntry,
    Verification,
)
from egs_kernel.errors import EgsError
from egs_kernel.model import GrantKind, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.model import ExecEvent

_PID_END: Final = 1 << 22
"""Linux numbers no process higher: a greater number is an execution."""
_ID_DIGITS: Final = 64
_ENTRY: Final = "entry:"


class Finder(Protocol):
    """Entries by what they are about, in the record's order; `audit/finder.py` is one."""

    def find(self, *, below: int | None = None, last: bool = False, **wanted: Any) -> Iterator[Recorded]:
        """Entries with these values in the index's columns."""

    def entry(self, seq: int) -> Recorded:
        """The entry with this number."""

    def boot_of(self, seq: int) -> int:
        """The boot that an entry is of."""

    def boot_id(self, number: int) -> str | None:
        """The kernel's id of a boot."""

    @property
    def last_boot(self) -> int:
        """The last boot in the record."""


class End(msgspec.Struct, frozen=True):
    """How an execution ended, or what of that is known.

    `state`: ended, replaced (the process executed something else: `execution`), refused (it never ran), held (it waits),
    running, or lost (the host went down without an end of it).
    """

    state: str
    seq: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    cpu_nanoseconds: int = 0
    max_rss_bytes: int = 0
    execution: int = 0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One exec, or a request that was refused before any, and the whole chain of its entries.

    `subject` is the exec, or the last decision about the request. `request`, `verification`, `decision`: those that let it
    run, or refused it. `artifact`: the entry that brought the artifact. `refused`: code and constraints that were refused
    it while it ran. `drift`: findings about it, and responses to them.
    """

    subject: Recorded
    boot: int
    boot_id: str | None
    request: Recorded | None = None
    verification: Recorded | None = None
    decision: Recorded | None = None
    more: tuple[Recorded, ...] = ()
    artifact: Recorded | None = None
    refused: tuple[Recorded, ...] = ()
    drift: tuple[Recorded, ...] = ()
    end: End
    outcome: Recorded | None = None

    @property
    def event(self) -> ExecEvent | None:
        """The gate's event; None when no exec came of the request."""
        return self.subject.entry.event if isinstance(self.subject.entry, Exec) else None

    @property
    def posture_digest(self) -> str | None:
        """The digest of the host's state that the decision cites."""
        return (
            self.decision.entry.posture
            if self.decision and isinstance(self.decision.entry, Decision)
            else None
        )

    @property
    def entries(self) -> tuple[Recorded, ...]:
        """Every entry of the chain, in the record's order."""
        parts = (self.subject, self.request, self.verification, self.decision, self.artifact, self.outcome)
        found = {part.seq: part for part in (*parts, *self.more, *self.refused) if part is not None}
        return tuple(found[seq] for seq in sorted(found))


class Lineage:
    """Answers about executions, out of the entries that a finder finds."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def of(self, wanted: str, limit: int | None = None) -> tuple[Link, ...]:
        """The executions that somebody means: `EXECUTION`, `PID` (its last), `ARTIFACT`, or `entry:SEQ`.

        Args:
            wanted: what they are named by.
            limit: only the last so many of an artifact, which may have had millions.

        Raises:
            EgsError: NOT_FOUND: there is none. USAGE: it is neither of these.
        """
        if wanted.startswith(_ENTRY) and wanted.removeprefix(_ENTRY).isdecimal():
            return (self._link_at(int(wanted.removeprefix(_ENTRY))),)
        if wanted.isdecimal() and int(wanted) < _PID_END:
            found = tuple(self._execs(last=True, pid=int(wanted)))[:1]
        elif wanted.isdecimal():
            found = tuple(self._execs(execution=wanted))
        elif 0 < len(wanted) <= _ID_DIGITS and not set(wanted) - set("0123456789abcdef"):
            found = tuple(self._of_artifact(wanted, limit))
        else:
            raise EgsError(
                Reason.USAGE,
                f"{wanted!r} is no execution, no process and no artifact",
                "Name an execution or a process (egs ps), an artifact id, or an exec in the record: entry:SEQ.",
            )
        if not found:
            raise EgsError(
                Reason.NOT_FOUND,
                f"the record has no exec of {wanted}",
                "Look for it: egs audit query --type exec",
            )
        return tuple(self.link(recorded) for recorded in found)

    def link(self, recorded: Recorded) -> Link:
        """The chain of one exec."""
        event = _event(recorded)
        boot = self._finder.boot_of(recorded.seq)
        decided = self._decided(recorded, boot)
        own = self._own(event.execution, boot)
        outcome = next((item for item in own if isinstance(item.entry, Outcome)), None)
        return Link(
            subject=recorded,
            boot=boot,
            boot_id=self._finder.boot_id(boot),
            request=_first(decided, Request),
            verification=_last(decided, Verification),
            decision=_last(decided, Decision),
            more=tuple(decided),
            artifact=self._artifact(decided, event.artifact_id, recorded.seq),
            refused=tuple(item for item in own if isinstance(item.entry, Code | Refusal)),
            drift=tuple(item for item in own if isinstance(item.entry, FindingEntry | ResponseEntry)),
            outcome=outcome,
            end=self._end(recorded, boot, outcome, decided),
        )

    def parent(self, link: Link) -> Link | None:
        """The execution that executed this one; None at the root: what runs outside of every scope began it."""
        number = link.event.parent_execution if link.event is not None else 0
        found = (
            self._execs(execution=str(number), boot=link.boot, below=link.subject.seq, last=True)
            if number
            else iter(())
        )
        recorded = next(found, None)
        return None if recorded is None else self.link(recorded)

    def ancestors(self, link: Link) -> tuple[Link, ...]:
        """The executions above it, the root first."""
        found: list[Link] = []
        above = self.parent(link)
        while above is not None:
            found.append(above)
            above = self.parent(above)
        return tuple(reversed(found))

    def children(self, link: Link) -> Iterator[Link]:
        """What it executed, or tried to, in the record's order."""
        number = link.event.execution if link.event is not None else 0
        if number:
            for recorded in self._execs(parent=str(number), boot=link.boot):
                if recorded.seq > link.subject.seq:
                    yield self.link(recorded)

    def descendants(self, link: Link) -> Iterator[tuple[Link, Link]]:
        """Everything below it, each with its parent, a parent before its children."""
        waiting = [link]
        while waiting:
            parent = waiting.pop()
            for child in self.children(parent):
                yield parent, child
                waiting.append(child)

    # -- the parts -------------------------------------------------------------------------------

    def _execs(self, **wanted: Any) -> Iterator[Recorded]:
        return (item for item in self._finder.find(type="exec", **wanted) if isinstance(item.entry, Exec))

    def _link_at(self, seq: int) -> Link:
        """The link that an entry belongs to: an exec, or what was asked and decided before."""
        recorded = self._finder.entry(seq)
        if isinstance(recorded.entry, Exec):
            return self.link(recorded)
        request = _request_of(recorded)
        if request is None:
            raise EgsError(
                Reason.NOT_FOUND,
                f"entry {seq} is no exec, and about no request",
                "Look for one: egs audit query --type exec, or --type decision",
            )
        boot = self._finder.boot_of(seq)
        decided = list(self._finder.find(request=request, boot=boot))
        exec_of = self._exec_of(request, decided, boot)
        return self._refused(decided, boot) if exec_of is None else self.link(exec_of)

    def _exec_of(self, request: str, decided: list[Recorded], boot: int) -> Recorded | None:
        """The exec that came of a request; None when none did."""
        if request.isdecimal():
            return next(self._execs(execution=request, boot=boot), None)
        for item in decided:
            if isinstance(item.entry, Decision) and item.entry.verdict is Verdict.ALLOW and item.entry.task:
                task = item.entry.task
                execs = self._execs(pid=task.pid, start=str(task.start_ticks), boot=boot)
                return next((found for found in execs if found.seq > item.seq), None)
        return None

    def _refused(self, decided: list[Recorded], boot: int) -> Link:
        last = decided[-1]
        return Link(
            subject=last,
            boot=boot,
            boot_id=self._finder.boot_id(boot),
            request=_first(decided, Request),
            verification=_last(decided, Verification),
            decision=_last(decided, Decision),
            more=tuple(decided),
            artifact=self._artifact(decided, "", last.seq),
            end=End("refused", last.seq),
        )

    def _of_artifact(self, beginning: str, limit: int | None) -> list[Recorded]:
        """Execs under an artifact; one that was held has it in the decision that let it go."""
        own = islice(self._execs(artifact=beginning, last=True), limit)
        held = islice(self._held_under(beginning), limit)
        found = {item.seq: item for item in (*own, *held)}
        wanted = sorted(found, reverse=True)[:limit]
        return [found[seq] for seq in reversed(wanted)]

    def _held_under(self, artifact: str) -> Iterator[Recorded]:
        """What an artifact let go, the last first."""
        for item in self._finder.find(type="decision", artifact=artifact, verdict="allow", last=True):
            request = _request_of(item)
            if request is not None and request.isdecimal():
                yield from self._execs(execution=request, boot=self._finder.boot_of(item.seq))

    def _own(self, execution: int, boot: int) -> list[Recorded]:
        return list(self._finder.find(execution=str(execution), boot=boot)) if execution else []

    def _decided(self, recorded: Recorded, boot: int) -> list[Recorded]:
        """Request, verification and decision of an exec: of its launch, of its hold, or of the standing artifact."""
        event = _event(recorded)
        if event.verdict is Verdict.HOLD:
            return list(self._finder.find(request=str(event.execution), boot=boot))
        if event.grant_kind is GrantKind.STANDING:
            return self._standing(event.artifact_id, recorded.seq)
        if (
            event.grant_kind is GrantKind.CHILD
        ):  # by what was decided for the one that started it, or that one's
            above = next(self._execs(execution=str(event.parent_execution), boot=boot), None)
            return [] if above is None else self._decided(above, boot)
        wanted = {"type": "decision", "pid": event.pid, "start": str(event.start_ticks), "boot": boot}
        for item in self._finder.find(below=recorded.seq, last=True, **wanted):
            if (request := _request_of(item)) is not None:
                return list(self._finder.find(request=request, boot=boot))
        return []

    def _standing(self, artifact_id: str, below: int) -> list[Recorded]:
        """The last examination of a standing artifact before an exec."""
        found = []
        for kind in ("verification", "decision"):
            for item in self._finder.find(type=kind, artifact=artifact_id, below=below, last=True):
                if _request_of(item) is None:
                    found.append(item)
                    break
        return found

    def _artifact(self, decided: list[Recorded], artifact_id: str, below: int) -> Recorded | None:
        """The entry with the artifact's envelope."""
        named = artifact_id or next(
            (item.entry.artifact_id for item in reversed(decided) if isinstance(item.entry, Decision)), None
        )
        if not named:
            return None
        below = max([below, *(item.seq for item in decided)])
        for item in self._finder.find(type="artifact", artifact=named, below=below, last=True):
            if isinstance(item.entry, ArtifactChange) and item.entry.envelope is not None:
                return item
        return None

    def _end(self, recorded: Recorded, boot: int, outcome: Recorded | None, decided: list[Recorded]) -> End:
        event = _event(recorded)
        if not event.execution:
            return End("refused", recorded.seq)
        if outcome is not None and isinstance(outcome.entry, Outcome):
            ended = outcome.entry
            used = ended.event
            return End(
                "ended", outcome.seq, ended.exit_code, ended.signal, used.cpu_nanoseconds, used.max_rss_bytes
            )
        for item in self._execs(parent=str(event.execution), boot=boot):
            later = _event(item)
            if later.execution and (later.pid, later.start_ticks) == (event.pid, event.start_ticks):
                return End("replaced", item.seq, execution=later.execution)
        if boot != self._finder.last_boot:
            return End("lost")
        allowed = any(
            isinstance(item.entry, Decision) and item.entry.verdict is Verdict.ALLOW for item in decided
        )
        return End("held" if event.verdict is Verdict.HOLD and not allowed else "running")


def _event(recorded: Recorded) -> ExecEvent:
    if not isinstance(recorded.entry, Exec):
        raise TypeError(f"entry {recorded.seq} is no exec")
    return recorded.entry.event


def _request_of(recorded: Recorded) -> str | None:
    return recorded.entry.request if isinstance(recorded.entry, Request | Verification | Decision) else None


def _first(entries: list[Recorded], kind: type) -> Recorded | None:
    return next((item for item in entries if isinstance(item.entry, kind)), None)


def _last(entries: list[Recorded], kind: type) -> Recorded | None:
    return _first(entries[::-1], kind)
