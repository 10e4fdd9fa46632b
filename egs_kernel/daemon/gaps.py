"""What the gate could not tell, and only counted, becomes an entry of the record: how much of what is missing there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egs_kernel.audit.entries import Gap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.entries import EntryType
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.gate.pins import Gate

UNTOLD: Final = {
    "event": "execs that were refused, as there was no room to tell of them",
    "exit_event": "ends of executions: no outcome tells of them",
    "code_event": "refusals of code",
    "attempt_event": "refusals of a sealed gate",
}
"""What there is no event of (bpf/egs_abi.h, enum egs_failure), in words."""


class Gaps:
    """Compares the gate's counts with what is in the record."""

    def __init__(self, gate: Gate, journal: Journal) -> None:
        self._gate = gate
        self._journal = journal
        self._told: dict[str, int] = {}

    def recall(self, entries: Iterable[EntryType]) -> None:
        """After a restart, instead of the first `look`: go on from what the last entries of the record tell."""
        recorded = {
            entry.what: entry.total
            for entry in entries
            if isinstance(entry, Gap) and entry.what and entry.total
        }
        for what, total in self._counted().items():
            before = recorded.get(what)
            if total != (before or 0):
                self._record(what, total, None if before is None else total - before)
            self._told[what] = total

    def look(self) -> None:
        """Record what was counted since the last look."""
        for what, total in self._counted().items():
            if total != self._told[what]:
                self._record(what, total, total - self._told[what])
            self._told[what] = total

    def _counted(self) -> dict[str, int]:
        failures = self._gate.counters().failures
        return {what: failures[what] for what in UNTOLD}

    def _record(self, what: str, total: int, lost: int | None) -> None:
        """`lost` is not known when the entry that told the last ones is too far back, or another gate was loaded."""
        gap = Gap(
            cause="events_lost",
            detail=UNTOLD[what],
            lost=lost if lost is not None and lost > 0 else None,
            what=what,
            total=total,
        )
        self._journal.submit([gap], essential=True)
