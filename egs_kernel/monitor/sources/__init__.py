"""Where the monitor's observations come from, beside its own sweeps of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egs_kernel.drift.observations import Source
    from egs_kernel.drift.rules import Rules
    from egs_kernel.gate.pins import Gate
    from egs_kernel.paths import Paths


def open_sources(paths: Paths, gate: Gate, rules: Rules) -> list[Source]:
    """Every source that this host has, open.

    Args:
        paths: of the instance.
        gate: that is loaded.
        rules: what is watched.
    """
    del paths, gate, rules
    return []
