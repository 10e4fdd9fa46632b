"""What constraints refused, from the kernel's messages into the record: by execution, and not more than can be read.

A program that is refused may try again a million times. So the first refusal of a kind is an entry at once, and what
follows is counted: the next entry, with the count, comes after a second, the one after that after two, and so on.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from egs_kernel.audit.entries import Gap, Refusal
from egs_kernel.constraints.kernel_messages import Lost, name_call
from egs_kernel.constraints.refusals import DomainSeen, Refused, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from egs_kernel.audit.entries import Entry
    from egs_kernel.constraints.kernel_messages import KernelMessages
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import ExitEvent

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 64.0
KINDS: Final = 32
"""Kinds of refusals that one execution has entries of; the others are counted together, as `others`."""
OTHERS: Final = "others"
_MOST: Final = 4096
"""Executions and domains that are remembered."""
_MOST_UNKNOWN: Final = 64
_GAP_SECONDS: Final = 60.0

_K = TypeVar("_K")
_V = TypeVar("_V")

_log = logging.getLogger(__name__)


@dataclass
class _Kind:
    """How often one execution was refused one thing. `due`: when it may have the next entry."""

    total: int = 0
    waiting: int = 0
    due: float = 0.0
    pause: float = FIRST_PAUSE


@dataclass(frozen=True)
class Source:
    """The process that was refused something: its execution, scope, and artifact."""

    execution: int
    scope: str
    artifact_id: str
    pid: int | None


def _keep(remembered: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    remembered[key] = value
    remembered.move_to_end(key)
    if len(remembered) > _MOST:
        remembered.popitem(last=False)


class Tallies:
    """Refusals of executions: what is counted and what becomes an entry. Pure; time is passed in, in seconds."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[int, dict[tuple[str, str], _Kind]] = OrderedDict()
        self._sources: dict[int, Source] = {}
        self.totals: Counter[tuple[str, str]] = Counter()
        """By scope and constraint word, since the daemon started."""

    def take(self, source: Source, word: str, what: str, now: float) -> Refusal | None:
        """Count one more; the entry, if it is time for one."""
        self.totals[source.scope, word] += 1
        kinds = self._kinds.setdefault(source.execution, {})
        self._kinds.move_to_end(source.execution)
        self._sources[source.execution] = source
        if len(self._kinds) > _MOST:
            oldest, _ = self._kinds.popitem(last=False)
            del self._sources[oldest]
        key = (word, what) if (word, what) in kinds or len(kinds) < KINDS else (word, OTHERS)
        kind = kinds.setdefault(key, _Kind())
        kind.total += 1
        kind.waiting += 1
        return self._entry(source, key, kind, now) if now >= kind.due else None

    def add(self, entry: Refusal) -> None:
        """Count what somebody else has found, and made an entry of."""
        self.totals[entry.scope, entry.word] += entry.count
        kind = self._kinds.setdefault(entry.execution, {}).setdefault((entry.word, entry.what), _Kind())
        kind.total += entry.count
        source = Source(entry.execution, entry.scope, entry.artifact_id or "", entry.pid)
        self._sources.setdefault(entry.execution, source)

    def due(self, now: float) -> Iterator[Refusal]:
        """The entries whose time has come."""
        for execution, kinds in self._kinds.items():
            for key, kind in kinds.items():
                if kind.waiting and now >= kind.due:
                    yield self._entry(self._sources[execution], key, kind, now)

    def rest(self) -> Iterator[Refusal]:
        """Entries for everything that is counted and not told yet."""
        return self.due(float("inf"))

    def of(self, execution: int) -> list[tuple[str, str, int]]:
        """What an execution was refused: word, what, how often."""
        return [(*key, kind.total) for key, kind in self._kinds.get(execution, {}).items()]

    def _entry(self, source: Source, key: tuple[str, str], kind: _Kind, now: float) -> Refusal:
        count, kind.waiting = kind.waiting, 0
        kind.due, kind.pause = now + kind.pause, min(2 * kind.pause, LONGEST_PAUSE)
        word, what = key
        return Refusal(
            execution=source.execution,
            scope=source.scope,
            word=word,
            what=what,
            count=count,
            artifact_id=source.artifact_id or None,
            pid=source.pid,
        )


class Refusals:
    """Takes the kernel's messages and tells the record. Belongs to the event loop's thread.

    Args:
        messages: where they come from; None: this host tells of nothing.

    Attributes:
        lost: how often the kernel had to drop messages.
    """

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        messages: KernelMessages | None,
        *,
        gate: Gate,
        journal: Journal,
        events: Events,
        host: Host,
        clock: Callable[[], float],
    ) -> None:
        self._messages = messages
        self._gate = gate
        self._journal = journal
        self._events = events
        self._host = host
        self._clock = clock
        self._tallies = Tallies()
        self._artifacts: OrderedDict[int, str] = OrderedDict()
        self._domains: OrderedDict[str, Source] = OrderedDict()
        self._unknown: OrderedDict[str, list[Refused]] = OrderedDict()
        self._gap_due = 0.0
        self.lost = 0

    @property
    def messages(self) -> KernelMessages | None:
        """What to wait on, for `dispatch`; None: nothing comes."""
        return self._messages

    def tell(self, entries: Sequence[Refusal]) -> None:
        """Take in what was found otherwise than by the kernel's messages."""
        for entry in entries:
            self._tallies.add(entry)
        self._hand_in(entries)

    @property
    def totals(self) -> dict[tuple[str, str], int]:
        """Refusals by scope and constraint word, since the daemon started."""
        return dict(self._tallies.totals)

    def of(self, execution: int) -> list[tuple[str, str, int]]:
        """What an execution was refused: word, what, how often."""
        return self._tallies.of(execution)

    def ended(self, event: ExitEvent, artifact_id: str) -> None:
        """An execution ended: what its processes are refused later, or were just now, is still by its artifact."""
        _keep(self._artifacts, event.execution, artifact_id)

    def dispatch(self) -> None:
        """Take in some of what has come. Whoever is refused without end does not keep the daemon from all else."""
        entries: list[Entry] = []
        try:
            for kind, text in () if self._messages is None else self._messages.read():
                found = parse(kind, text, name_call)
                if found is not None:
                    entries += self._take(found)
        except Lost:
            entries += self._gap()
        self._hand_in(entries)

    def tick(self) -> None:
        """Once in a while: hand in what was only counted so far."""
        self._hand_in(list(self._tallies.due(self._clock())))

    def close(self) -> None:
        """Hand in what is left, and listen no more."""
        self.dispatch()
        self._hand_in(list(self._tallies.rest()))
        if self._messages is not None:
            self._messages.close()

    def _hand_in(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._journal.submit(entries, essential=True)

    def _take(self, found: Refused | DomainSeen) -> list[Refusal]:
        if isinstance(found, DomainSeen):
            return self._learn(found)
        if found.domain is None:
            return self._count(self._of_process(found.pid, found.time), found)
        if found.domain in self._domains:
            return self._count(self._domains[found.domain], found)
        # The kernel says whose domain it is once, right after the first refusal.
        _keep(self._unknown, found.domain, [*self._unknown.get(found.domain, [])[:_MOST_UNKNOWN], found])
        return []

    def _learn(self, found: DomainSeen) -> list[Refusal]:
        source, before = self._of_process(found.pid, found.time), self._unknown.pop(found.domain, [])
        if source is None:
            return []
        _keep(self._domains, found.domain, source)
        return [entry for refused in before for entry in self._count(source, refused)]

    def _count(self, source: Source | None, found: Refused) -> list[Refusal]:
        if source is None:
            return []
        entry = self._tallies.take(source, found.word, found.what, self._clock())
        return [] if entry is None else [entry]

    def _of_process(self, pid: int | None, time: float) -> Source | None:
        found = (
            None if pid is None else self._gate.execution_of(pid, int(time * 1e9) - self._host.clock_offset)
        )
        if found is None or not found[0]:
            return None  # nobody governs it, or it has executed nothing yet: the launcher
        execution, scope = found
        return Source(execution, scope, self._artifact_of(execution), pid)

    def _artifact_of(self, execution: int) -> str:
        executions = self._events.executions
        if executions.get(execution) is None and execution not in self._artifacts:
            self._events.drain()  # its exec may be on its way
        known = executions.get(execution)
        return known.artifact_id if known else self._artifacts.get(execution, "")

    def _gap(self) -> list[Entry]:
        self.lost += 1
        now = self._clock()
        if now < self._gap_due:
            return []
        self._gap_due = now + _GAP_SECONDS
        _log.warning("refusals by constraints came too fast: the kernel dropped messages")
        detail = "refusals by constraints: they came faster than they were read"
        return [Gap(cause="events_lost", detail=detail)]
