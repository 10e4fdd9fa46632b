"""What came of one machine's run: a file of JSON for each kernel and tier."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one test. `measured` is what it recorded with pytest's `record_property`."""

    test: str
    outcome: str
    seconds: float
    reason: str = ""
    detail: str = ""
    measured: dict[str, Any] = {}


class Results(msgspec.Struct):
    """Of one machine. `broken` says why it did not come to its end; empty when it did."""

    case: str
    kernel: str
    tier: str
    selection: str
    commit: str
    date: str
    release: str = ""
    lsm: str = ""
    machine: dict[str, Any] = {}
    tests: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    outcomes: list[Outcome] = []
    broken: str = ""

    @property
    def counts(self) -> Counter[str]:
        """Number of tests by outcome."""
        return Counter(outcome.outcome for outcome in self.outcomes)

    @property
    def good(self) -> bool:
        """Whether everything that was collected ran, and nothing failed."""
        return not self.broken and not self.counts["failed"] and 0 < self.tests == len(self.outcomes)

    @property
    def name(self) -> str:
        """Kernel, tier, and the case when it is not `tests`."""
        return "-".join((self.kernel, self.tier, *(() if self.case == "tests" else (self.case,))))

    def save(self, folder: Path) -> Path:
        """Write it to its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        return path


def load(path: Path) -> Results:
    """Read a file of results.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.json.decode(path.read_bytes(), type=Results)
