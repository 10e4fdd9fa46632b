"""What was told already: of an execution each difference once, of the host each change, and of a flood how much it was."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.compare import Found
from egs_kernel.findings import Finding

if TYPE_CHECKING:
    from egs_kernel.drift.baselines import Baselines

MOST: Final = 64
"""Findings of one kind about one execution that are told one by one; what comes then is counted."""
_LOOKS: Final = frozenset({"sweep", "exec"})
"""Sources that see what an event has told, in other words."""
_BY_EGSD: Final = frozenset({Finding.ARTIFACT_REVOKED, Finding.KEY_REVOKED})
"""What egsd itself answers at once; the monitor is the second line."""
_REPEATS: Final = "drift"
"""The source that tells the same of the host as often as somebody does it: within an interval that is told once."""

_Key = tuple[Finding, int, int, str]


class Told:
    """Decides what is told. Findings of one kind have one response, so a flood of one kind hides no other.

    Args:
        baselines: what the record has.
    """

    def __init__(self, baselines: Baselines) -> None:
        self._baselines = baselines
        self._counts: Counter[tuple[int, Finding]] = Counter()
        self._by_event: set[tuple[Finding, int, int]] = set()
        self._before: set[_Key] = set()
        self._intervals = 0
        self._lately: set[_Key] = set()
        self._lost: Counter[tuple[str, str]] = Counter()

    def begin(self) -> None:
        """What a monitor before this one told of the host, and is so still, is not told again."""
        self._before = {key for key in self._baselines.told if not key[1]}

    def by_event(self, found: Found) -> None:
        """An event said this: whoever looks sees it in other words."""
        self._by_event.add((found.finding, found.execution, found.pid))

    def is_new(self, found: Found) -> bool:
        """Whether a finding about an execution is to be told."""
        told = self._baselines.told
        key = _key(found)
        if found.finding in _BY_EGSD:
            if any(each[:2] == key[:2] for each in told):
                return False
        elif key in told or (key[:3] in self._by_event and found.source in _LOOKS):
            return False
        if self._counts[found.execution, found.finding] >= MOST:
            self._lost[
                "monitor", f"{found.finding.value} of execution {found.execution}: {MOST} are told"
            ] += 1
            return False
        told.add(key)
        self._counts[found.execution, found.finding] += 1
        return True

    def is_new_of_host(self, found: Found) -> bool:
        """The same of the host: its sources tell a change when it happens, and what lasts when they begin."""
        key = _key(found)
        if key in self._before:
            self._before.discard(key)
            return False
        if found.finding is Finding.EVENTS_LOST and key in self._lately:
            self._lost[found.source, found.detail] += found.count
            return False
        if found.source == _REPEATS and key in self._lately:
            return False
        self._lately.add(key)
        return True

    def next_interval(self, now: int) -> list[Found]:
        """Forget those that ended, and say what was only counted since.

        Args:
            now: CLOCK_BOOTTIME nanoseconds.
        """
        live = self._baselines.executions.keys()
        self._by_event = {each for each in self._by_event if each[1] in live}
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] in live})
        self._lately.clear()
        self._intervals += 1
        if self._intervals > 1:  # the first sweep has seen what lasts
            self._before.clear()
        lost, self._lost = self._lost, Counter()
        return [
            Found(finding=Finding.EVENTS_LOST, detail=detail, source=source, time=now, count=count)
            for (source, detail), count in lost.items()
        ]


def _key(found: Found) -> _Key:
    return found.finding, found.execution, found.pid, found.detail
