"""What the gate did, from its ring buffer into the record, and the executions that are under way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.entries import Attempt, Code, Decision, Exec, Outcome, outcome
from egs_kernel.daemon.verdicts import use_until
from egs_kernel.model import (
    AttemptEvent,
    CodeEvent,
    ExecEvent,
    ExitEvent,
    GateEvent,
    GrantKind,
    Reason,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from egs_kernel import verify
    from egs_kernel.audit.entries import EntryType
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.gate.pins import Gate

_FOREVER: Final = "9999-12-31T23:59:59Z"
"""Until when a use counts whose artifact is not in the folder any more: too many is on the safe side."""

_REMEMBERED: Final = 1024
"""Ended executions that are remembered, so that what they started is known to belong to their tree."""

_STALE: Final = frozenset({Reason.FILE_CHANGED, Reason.FILE_OPENED})
"""What a new measurement may cure."""


@dataclass(frozen=True)
class Execution:
    """A governed execution under way. `started` is CLOCK_BOOTTIME nanoseconds."""

    artifact_id: str
    program: str
    uid: int
    started: int


class Executions:
    """Executions under way, folded from execs and exits. Pure."""

    def __init__(self) -> None:
        self._live: dict[int, Execution] = {}
        self._of_process: dict[int, int] = {}
        self._parents: dict[int, int] = {}

    def take(self, event: GateEvent) -> None:
        """Take one more event into account."""
        if isinstance(event, ExitEvent):
            self._end(event.pid)
        elif isinstance(event, ExecEvent) and event.execution:
            self._end(
                event.pid
            )  # a process that executes once more ends an execution, and no exit tells of it
            self._of_process[event.pid] = event.execution
            self._parents[event.execution] = event.parent_execution
            self._live[event.execution] = Execution(
                "" if event.verdict is Verdict.HOLD else event.artifact_id,
                event.filename,
                event.uid,
                event.time,
            )

    def _end(self, pid: int) -> None:
        execution = self._of_process.pop(pid, None)
        if execution is not None:
            del self._live[execution]

    def above(self, execution: int) -> Iterator[int]:
        """The executions that an execution was started by, the nearest first, those that have ended included."""
        seen = {execution}
        while (execution := self._parents.get(execution, 0)) and execution not in seen:
            seen.add(execution)
            yield execution

    @property
    def crowded(self) -> bool:
        """Whether more ended executions are remembered than is worth it."""
        return len(self._parents) > 2 * len(self._live) + _REMEMBERED

    def forget(self, alive: Iterable[int]) -> None:
        """Forget by whom executions were started that have ended, unless something that they started is alive."""
        wanted = {one for execution in alive for one in (execution, *self.above(execution))}
        self._parents = {number: up for number, up in self._parents.items() if number in wanted}

    def authorized(self, execution: int, artifact_id: str) -> None:
        """What was held runs under this artifact from now on."""
        held = self._live.get(execution)
        if held is not None:
            self._live[execution] = replace(held, artifact_id=artifact_id)

    def get(self, execution: int) -> Execution | None:
        """What is known of an execution."""
        return self._live.get(execution)

    def keep(self, executions: Iterable[int]) -> None:
        """Forget every other one."""
        wanted = set(executions)
        self._of_process = {pid: number for pid, number in self._of_process.items() if number in wanted}
        self._live = {number: self._live[number] for number in self._of_process.values()}
        self.forget(wanted)

    def __len__(self) -> int:
        return len(self._live)


def _key(event: GateEvent) -> tuple[int, int, int]:
    """Tells an event from every other one of this boot; an execution's exec and exit differ in their time."""
    return event.time, event.pid, 0 if isinstance(event, AttemptEvent) else event.execution


def _events_of(entries: Iterable[EntryType]) -> Iterator[GateEvent]:
    for entry in entries:
        if isinstance(entry, Exec | Outcome | Code | Attempt):
            yield entry.event


class Events:
    """Drains the gate's ring buffer into the record, and tells those who wait for an exec.

    Events keep their room in the ring buffer until they are durable. So a daemon that is killed loses none, and
    when the disk is too slow the buffer fills up, and the gate refuses what it cannot report.
    """

    def __init__(self, gate: Gate, journal: Journal, find: Callable[[str], verify.Artifact | None]) -> None:
        self._gate = gate
        self._journal = journal
        self._find = find
        self._awaited: dict[tuple[int, int], asyncio.Future[ExecEvent]] = {}
        self._intact = True
        self.executions = Executions()
        self.changed_files: Callable[[str], None] = lambda _artifact_id: None
        self.held: Callable[[ExecEvent], None] = lambda _event: None
        self.ended: Callable[[ExitEvent], None] = lambda _event: None
        self.left: Callable[[ExitEvent, str], None] = lambda _event, _artifact_id: None

    def recall(self, entries: Sequence[EntryType], live: Iterable[int]) -> None:
        """Before the first `drain`: pick up where the last daemon was.

        Args:
            entries: the last entries of the record.
            live: the executions that the gate tracks.
        """
        recorded = set()
        for event in _events_of(entries):
            recorded.add(_key(event))
            self.executions.take(event)
        for decision in entries:
            if (
                isinstance(decision, Decision)
                and decision.request is not None
                and decision.request.isdecimal()
            ):
                allowed = decision.verdict is Verdict.ALLOW
                self.executions.authorized(
                    int(decision.request), decision.artifact_id or "" if allowed else ""
                )
        self.executions.keep(live)
        events, position = self._gate.take_events()
        # The last daemon may have ended between recording them and freeing their room.
        self._hand_in([event for event in events if _key(event) not in recorded], position)

    def drain(self) -> None:
        """Take in everything that is in the ring buffer and hand it to the record."""
        self._hand_in(*self._gate.take_events())

    def _hand_in(self, events: list[GateEvent], position: int) -> None:
        if not events:
            return
        durable = self._journal.submit([self._entry(event) for event in events], essential=True)
        durable.add_done_callback(partial(self._free, position))
        if self.executions.crowded:
            self.executions.forget(task.execution for task in self._gate.governed())
        for event in events:
            if isinstance(event, ExitEvent):
                known = self.executions.get(event.execution)
                self.left(event, known.artifact_id if known else "")
            self.executions.take(event)
            if isinstance(event, ExecEvent):
                self._tell(event)
            elif isinstance(event, ExitEvent):
                self.ended(event)

    def _free(self, position: int, durable: asyncio.Future[None]) -> None:
        self._intact = self._intact and not durable.cancelled() and durable.exception() is None
        if self._intact:  # never beyond a batch that is not in the record
            self._gate.free_events(position)

    def expect(self, pid: int, start_ticks: int) -> asyncio.Future[ExecEvent]:
        """The next exec of a process, when the gate has decided it. Call `forget` when nobody waits any more."""
        future: asyncio.Future[ExecEvent] = asyncio.get_running_loop().create_future()
        self._awaited[pid, start_ticks] = future
        return future

    def forget(self, pid: int, start_ticks: int) -> None:
        """Nobody waits for this process any more."""
        self._awaited.pop((pid, start_ticks), None)

    def _entry(self, event: GateEvent) -> Exec | Outcome | Code | Attempt:
        if isinstance(event, ExitEvent):
            return outcome(event)
        if isinstance(event, CodeEvent):
            return Code(event=event)
        if isinstance(event, AttemptEvent):
            return Attempt(event=event)
        standing = event.grant_kind is GrantKind.STANDING and event.verdict is Verdict.ALLOW
        return Exec(event=event, use_until=self._use_until(event.artifact_id) if standing else None)

    def _use_until(self, artifact_id: str) -> str | None:
        artifact = self._find(artifact_id)
        return _FOREVER if artifact is None else use_until(artifact)

    def _tell(self, event: ExecEvent) -> None:
        if event.grant_kind is GrantKind.ARMED:
            self._gate.forget(event.grant_id)
        waiting = self._awaited.pop((event.pid, event.start_ticks), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(event)
        if event.verdict is Verdict.HOLD:
            self.held(event)
        if event.reason in _STALE:
            self.changed_files(event.artifact_id)
