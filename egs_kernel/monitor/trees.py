"""Who belongs to an execution: the gate's table says it at every moment, the record who executed whom."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from egs_kernel.monitor.opened import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.drift.baselines import Baselines
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.monitor.hands import Hands


def tree_of(execution: int, tasks: list[GovernedTask], baselines: Baselines) -> list[GovernedTask]:
    """The processes of an execution and of everything that it executed.

    What the record does not know yet belongs to it, too, when its parent does.
    """
    members = [task for task in tasks if _belongs(task.execution, execution, baselines)]
    inside = {task.pid for task in members}
    unknown = [
        task for task in tasks if task.execution not in baselines.executions and task.pid not in inside
    ]
    found = True
    while unknown and found:
        found = False
        for task in list(unknown):
            with contextlib.suppress(ProcessLookupError), Process(task) as process:
                if process.parent in inside:
                    members.append(task)
                    inside.add(task.pid)
                    unknown.remove(task)
                    found = True
    return members


def _belongs(number: int, execution: int, baselines: Baselines) -> bool:
    while number and number != execution:
        known = baselines.executions.get(number)
        if known is None or known.event.parent_execution == number:
            return False
        number = known.event.parent_execution
    return number == execution != 0


@contextlib.contextmanager
def held_open(task: GovernedTask, gate: Hands) -> Iterator[int | None]:
    """A pidfd of a task's process, which no other process ever is behind; None: it is gone, or of another execution."""
    try:
        pidfd = os.pidfd_open(task.pid)
    except OSError:
        yield None
        return
    try:
        # The number could have become another one's before: the table says it of the process behind the pidfd.
        now = gate.governed_task(task.pid)
        yield pidfd if now is not None and (now.execution, now.born) == (task.execution, task.born) else None
    finally:
        os.close(pidfd)
