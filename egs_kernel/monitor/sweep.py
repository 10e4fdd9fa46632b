"""The backstop: everything that is governed is looked at once in every interval, in slices, so that events need not wait."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.compare import compare_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.drift.baselines import Baselines
    from egs_kernel.drift.states import ProcessState
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.monitor.hands import Hands
    from egs_kernel.monitor.processes import Reader
    from egs_kernel.monitor.watch import Watch

SLICE: Final = 8
"""Processes that are looked at before events are looked for again."""


class Sweep:
    """One sweep after the other.

    Args:
        gate: whom it governs.
        baselines: what the record says.
        watch: compares.
        reader: of processes.
        refresh: called at the beginning of each: forgets what was looked up for the one before.
    """

    def __init__(
        self,
        *,
        gate: Hands,
        baselines: Baselines,
        watch: Watch,
        reader: Reader,
        refresh: tuple[Callable[[], None], ...],
    ) -> None:
        self._gate = gate
        self._baselines = baselines
        self._watch = watch
        self._reader = reader
        self._refresh = refresh
        self._left: list[GovernedTask] = []
        self._trees: dict[int, list[ProcessState]] = defaultdict(list)
        self.under_way = False
        self.count = 0

    def begin(self) -> None:
        """Begin one: who is governed, which files their artifacts name, and what became of those."""
        for forget in self._refresh:
            forget()
        tasks = self._gate.governed()
        live = frozenset(task.execution for task in tasks)
        self._baselines.forget(live)
        self._watch.next_interval()
        self._reader.keep({task.pid for task in tasks})
        self._watch.check_files()
        self._watch.check_authorizations("sweep")
        self._left = tasks
        self._trees.clear()
        self.under_way = True

    def go_on(self) -> None:
        """The next few."""
        if not self.under_way:
            return
        for task in self._left[:SLICE]:
            state = self._watch.look_at(task, "sweep", closely=True)
            said = self._baselines.artifact_of(task.execution)
            if state is not None and said is not None and said.resources is not None:
                self._trees[task.execution].append(state)
        self._left = self._left[SLICE:]
        if not self._left:
            self._end()

    def _end(self) -> None:
        for execution, states in self._trees.items():
            for found in compare_tree(execution, states, self._baselines.artifact_of(execution), "sweep"):
                self._watch.tell(found)
        self._trees.clear()
        self.under_way = False
        self.count += 1
