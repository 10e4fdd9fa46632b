"""What the monitor's sources see: typed, frozen, and in a queue that has an end.

An observation says what somebody saw, not what it means: `compare.py` holds it against the baseline. Sources (the gate's
drift events, netlink, watched files, sweeps) only make these.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from egs_kernel.findings import Finding
from egs_kernel.model import FileIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable

QUEUE: Final = 4096
"""Observations of one source that wait; what comes then is counted."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What every observation has. `source` is the source's name, `time` CLOCK_BOOTTIME nanoseconds: when it happened, or was seen."""

    source: str
    time: int


class ProcessEvent(Observed, frozen=True, kw_only=True, tag="process"):
    """Something that a governed process did or that was done to it, as the kernel told it at that moment.

    Attributes:
        suspicion: what it is, if the baseline does not permit it.
        pid: the process (thread group) in the host's numbers.
        start_ticks: its start, as /proc/PID/stat has it; 0: the source does not know.
        execution: that the gate had for it then; 0: the source does not know.
        by: the process that did it, when that is another one; else 0.
        file: the file it is about (what was mapped or executed); None: none, or not known.
        name: what it is about in words: a path, an address, a cgroup's path, a namespace ("net"), a call ("ptrace").
        number: what it is about as a number: capability bits, a port, clone flags, a uid. What it means is `suspicion`'s to say.
        count: how many such events this one stands for.
    """

    suspicion: Finding
    pid: int
    start_ticks: int = 0
    execution: int = 0
    by: int = 0
    file: FileIdentity | None = None
    name: str = ""
    number: int = 0
    count: int = 1


class HostEvent(Observed, frozen=True, kw_only=True, tag="host"):
    """The host is not as it was. `subject`: what of it, such as "kernel.modules_disabled" or "eth1"; `was` and `now`: its states."""

    suspicion: Finding
    subject: str
    was: str = ""
    now: str = ""


class HostState(Observed, frozen=True, kw_only=True, tag="state"):
    """All facts of one kind, as a sweep sees them: compared with the last ones of the record, each difference is `suspicion`.

    Attributes:
        suspicion: what a fact that came, went or changed is.
        facts: name to value. The same state gives the same facts.
    """

    suspicion: Finding
    facts: dict[str, str]


class FileEvent(Observed, frozen=True, kw_only=True, tag="file"):
    """A watched file was written, replaced, removed, or only touched: whoever compares looks at it again.

    `path` is the one that was watched. `gone`: it is not there any more.
    """

    path: str
    gone: bool = False


class Lost(Observed, frozen=True, kw_only=True, tag="lost"):
    """`count` observations of this source are missing: its buffer, or the queue, was full."""

    count: int


Observation = ProcessEvent | HostEvent | HostState | FileEvent | Lost


class Source(Protocol):
    """Where observations come from. The monitor waits for `fileno` to be readable, then calls `read`."""

    @property
    def name(self) -> str:
        """As in `Observed.source`."""

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to read; -1: it has only sweeps."""

    def read(self) -> Iterable[Observation]:
        """What has come since, without waiting. A source that lost something says so with `Lost`."""

    def sweep(self) -> Iterable[Observation]:
        """Look at everything now, whatever events have told: at the start, and at every interval."""

    def close(self) -> None:
        """Let go of it."""


class Queue:
    """Observations that wait to be compared, in the order in which they came; each source has its own room.

    An observation that waits already, but for its time and count, is counted in the one that waits. What finds no room
    is counted and told as `Lost`: a source that floods takes room and memory from no other one.

    Args:
        room: observations of one source.
    """

    def __init__(self, room: int = QUEUE) -> None:
        self._room = room
        self._waiting: deque[Observation] = deque()
        self._counts: dict[str, int] = {}
        self._same: dict[Observation, int] = {}
        self._lost: dict[str, int] = {}
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, observation: Observation) -> None:
        """Let it wait, or count it."""
        source = observation.source
        if isinstance(observation, ProcessEvent):
            same = msgspec.structs.replace(observation, time=0, count=1)
            if same in self._same:
                self._same[same] += observation.count
                return
        if self._counts.get(source, 0) >= self._room and not isinstance(observation, Lost):
            self._lost[source] = self._lost.get(source, 0) + 1
            self.lost += 1
            return
        if isinstance(observation, ProcessEvent):
            self._same[same] = observation.count
        self._counts[source] = self._counts.get(source, 0) + 1
        self._waiting.append(observation)

    def take(self, now: int) -> Observation | None:
        """The next one; None: nothing waits. What was lost is told when all that came before it is taken.

        Args:
            now: CLOCK_BOOTTIME nanoseconds, the time of a `Lost`.
        """
        if not self._waiting:
            if not self._lost:
                return None
            source, count = self._lost.popitem()
            return Lost(source=source, time=now, count=count)
        observation = self._waiting.popleft()
        self._counts[observation.source] -= 1
        if isinstance(observation, ProcessEvent):
            count = self._same.pop(msgspec.structs.replace(observation, time=0, count=1))
            return msgspec.structs.replace(observation, count=count)
        return observation
