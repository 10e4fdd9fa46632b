"""What rules would have done about findings that were made under others. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.drift.baselines import Baselines
from egs_kernel.drift.rules import Decided, decide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from egs_kernel.audit.entries import FindingEntry, Recorded
    from egs_kernel.drift.rules import Rules
    from egs_kernel.model import Mode


def replay(
    findings: Iterable[FindingEntry],
    rules: Rules,
    artifacts: Mapping[str, Sequence[Recorded]],
    mode: Mode,
) -> list[tuple[FindingEntry, Decided]]:
    """Each finding, and what these rules would do about it.

    Args:
        findings: out of the record.
        rules: to try.
        artifacts: the entries about each artifact that the findings name; what one signed goes before the rules.
        mode: that the scopes are taken to have.
    """
    known = Baselines()
    for entries in artifacts.values():
        for recorded in entries:
            known.take(recorded)
    found = []
    for entry in findings:
        said = known.artifacts.get(entry.artifact_id or "")
        found.append((entry, decide(rules, entry.finding, None if said is None else said.drift, mode)))
    return found
