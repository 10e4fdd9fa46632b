"""What is done to a whole tree: ended, suspended or quarantined, through descriptors that mean one process for ever.

Who belongs to it is what the gate says. Its table is asked after the pidfd is open, so a number that has become another
process's by then is not found under that execution, or the descriptor is of a process that has ended: nobody else is hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from egs_kernel.daemon.server import wait_readable
from egs_kernel.errors import EgsError
from egs_kernel.findings import Response
from egs_kernel.gate import abi
from egs_kernel.gate.grants import QUARANTINED
from egs_kernel.gate.trees import is_populated, kill_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.trees import Trees
    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.views import GovernedTask

SECONDS: Final = 5.0
"""How long it is tried: a process that is in the kernel and cannot be interrupted ends later."""
_LOOK_SECONDS: Final = 0.001
_EMPTY_LOOKS: Final = 3
"""How often nobody must be found: who forks and exits may be where a walk through the table has been already."""


class Done(NamedTuple):
    """What came of it: whether it was seen to be so, to how many processes it was done, and what was in the way."""

    verified: bool
    processes: int
    detail: str = ""


class Restraint:
    """Belongs to the event loop's thread."""

    def __init__(self, gate: Gate, events: Events, trees: Trees) -> None:
        self._gate = gate
        self._events = events
        self._trees = trees

    async def apply(self, response: Response, execution: int) -> Done:
        """Do this to the tree of an execution, and see that it is so."""
        act = {
            Response.ALERT: self._leave,
            Response.QUARANTINE: self._quarantine,
            Response.SUSPEND: self._suspend,
            Response.TERMINATE: self._terminate,
        }[response]
        try:
            async with asyncio.timeout(SECONDS):
                return await act(execution)
        except TimeoutError:
            left = self._members(execution)
            pids = ", ".join(str(task.pid) for task in left[:8])
            return Done(
                verified=not left, processes=len(left), detail=f"after {SECONDS:g} s not: processes {pids}"
            )
        except (OSError, EgsError) as error:
            return Done(verified=False, processes=0, detail=str(error))

    def _members(self, execution: int) -> list[GovernedTask]:
        above = self._events.executions.above
        return [
            task
            for task in self._gate.governed()
            if task.execution == execution or execution in above(task.execution)
        ]

    @contextlib.contextmanager
    def _descriptors(self, tasks: list[GovernedTask]) -> Iterator[list[tuple[GovernedTask, int]]]:
        """A pidfd of each that is still what the gate said."""
        found: list[tuple[GovernedTask, int]] = []
        try:
            for task in tasks:
                with contextlib.suppress(ProcessLookupError):
                    found.append((task, os.pidfd_open(task.pid)))
            present = {task.pid: task.execution for task in self._gate.governed()}
            yield [(task, fd) for task, fd in found if present.get(task.pid) == task.execution]
        finally:
            for _, fd in found:
                os.close(fd)

    # -- the responses ---------------------------------------------------------------------------

    async def _leave(self, execution: int) -> Done:
        return Done(verified=True, processes=len(self._members(execution)))

    async def _terminate(self, execution: int) -> Done:
        """Its own cgroup goes with one write; everybody else by descriptor, until nobody is left."""
        ended = 0
        tree = self._trees.of(execution)
        if tree is not None and is_populated(tree.folder):
            kill_tree(tree.folder)
        empty = 0
        while empty < _EMPTY_LOOKS:
            members = self._members(execution)
            empty = 0 if members else empty + 1
            with self._descriptors(members) as targets:
                for _, fd in targets:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                await asyncio.gather(*(wait_readable(fd) for _, fd in targets))
                ended += len(targets)
            if not targets:
                await asyncio.sleep(_LOOK_SECONDS)  # the gate has not forgotten them yet, or nobody is left
        return Done(verified=True, processes=ended)

    async def _suspend(self, execution: int) -> Done:
        """Stopped, and marked, so that whoever lets one of them go ends it."""
        self._gate.holds.attach_guards()
        suspended: set[int] = set()
        while fresh := [task for task in self._members(execution) if not task.suspended]:
            with self._descriptors(fresh) as targets:
                for task, fd in targets:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGSTOP)
                    while not _is_stopped(task.pid):  # noqa: ASYNC110 - the kernel tells nobody but the parent
                        await asyncio.sleep(_LOOK_SECONDS)
                    if self._gate.restrain(task.pid, task.execution, abi.Restrain.SUSPEND):
                        suspended.add(task.pid)
            if not targets:
                await asyncio.sleep(_LOOK_SECONDS)
        return Done(verified=True, processes=len(suspended))

    async def _quarantine(self, execution: int) -> Done:
        """Nothing of it executes anything more; what it forks neither."""
        confined: dict[int, int] = {}
        while fresh := [
            task for task in self._members(execution) if confined.get(task.pid) != task.execution
        ]:
            for task in fresh:
                self._gate.restrain(task.pid, task.execution, abi.Restrain.QUARANTINE, QUARANTINED)
                confined[task.pid] = task.execution
        return Done(verified=True, processes=len(confined))


def _is_stopped(pid: int) -> bool:
    """Whether every thread is stopped or has ended."""
    try:
        states = [
            (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return True  # it has ended
    return all(state in (b"T", b"t", b"Z", b"X") for state in states)
