"""What is done about a finding: to the whole tree of an execution, until there is nobody left to do it to; then it is looked at.

A tree that forks while it is stopped or ended would outrun whoever goes through a list. What is reached first forks no
more; after some rounds the cgroup that it lies in stands still for the moments that it takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.errors import EgsError, HostLacks
from egs_kernel.findings import Response
from egs_kernel.gate.abi import Restrain
from egs_kernel.gate.cgroups import cgroup_mount, cgroup_of, processes_below
from egs_kernel.gate.grants import QUARANTINED
from egs_kernel.gate.trees import PREFIX, kill_tree
from egs_kernel.monitor.trees import held_open, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.drift.baselines import Baselines
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.monitor.hands import Hands

_ROUNDS: Final = 4
"""Before the cgroup is frozen."""
_SECONDS: Final = 5.0
_STILL: Final = 0.5
"""Seconds for which the cgroup stands still at most: others lie in it, too."""
_NAMED: Final = 4
"""Processes that are named of those that go on."""
_PAUSE: Final = 0.0005
_WAIT: Final = 5
"""Milliseconds for the next one that was killed to be gone."""
_STOPPED: Final = frozenset({"T", "t", "Z", "X"})


class Outcome(msgspec.Struct, frozen=True):
    """What came of a response: to how many processes it was done, and whether it was seen to be so."""

    verified: bool
    processes: int
    detail: str = ""


class Responder:
    """Does it. Needs no other part of the monitor: `egs drift resume` uses it as well.

    Args:
        gate: its table of governed processes, and its marks.
        baselines: who executed whom.
        catch_up: has the baselines take in what the record has by now.
    """

    def __init__(self, gate: Hands, baselines: Baselines, catch_up: Callable[[], None]) -> None:
        self._gate = gate
        self._baselines = baselines
        self._catch_up = catch_up
        self._mount = _mount()

    def respond(self, response: Response, execution: int) -> Outcome:
        """Do it to the tree of an execution."""
        try:
            match response:
                case Response.TERMINATE:
                    return self._terminate(execution)
                case Response.SUSPEND:
                    return self._suspend(execution)
                case Response.QUARANTINE:
                    return self._quarantine(execution)
                case Response.ALERT:
                    return Outcome(verified=True, processes=0)
        except (EgsError, OSError) as error:
            return Outcome(verified=False, processes=0, detail=str(error))

    def resume(self, execution: int) -> Outcome:
        """Let a suspended tree go on."""
        touched = 0
        for folder in self._own_cgroups(self._members(execution)):
            (folder / "cgroup.freeze").write_text("0")
        for task in self._members(execution):
            with held_open(task, self._gate) as pidfd:
                if pidfd is not None:
                    self._gate.restrain(task.pid, task.execution, Restrain.RESUME)
                    touched += _signal(pidfd, signal.SIGCONT)
        left = [task for task in self._members(execution) if task.suspended]
        return Outcome(verified=not left, processes=touched)

    # -- the three -------------------------------------------------------------------------------

    def _terminate(self, execution: int) -> Outcome:
        touched: set[int] = set()
        waiting = select.poll()
        with contextlib.ExitStack() as open_until_the_end:
            for members in self._rounds(execution):
                if not members:
                    return Outcome(verified=True, processes=len(touched))
                for folder in self._own_cgroups(members):
                    kill_tree(folder)
                for task in members:
                    pidfd = open_until_the_end.enter_context(held_open(task, self._gate))
                    if pidfd is not None and _signal(pidfd, signal.SIGKILL) and task.pid not in touched:
                        touched.add(task.pid)
                        waiting.register(pidfd, select.POLLIN)
                for pidfd, _ in waiting.poll(_WAIT):
                    waiting.unregister(pidfd)
        return Outcome(verified=False, processes=len(touched), detail=_why(members, touched))

    def _suspend(self, execution: int) -> Outcome:
        guarded = self._gate.guard()  # without them a stop is all there is, and is told so
        touched: set[int] = set()
        for members in self._rounds(execution):
            own = self._own_cgroups(members)
            for folder in own:
                (folder / "cgroup.freeze").write_text("1")
            frozen = {folder for folder in own if _is_frozen(folder)}
            open_ones = [task for task in members if not (task.stopped or self._folder_of(task) in frozen)]
            touched |= {task.pid for task in members}
            if not open_ones and len(frozen) == len(own):
                detail = "" if guarded or frozen else "SIGCONT lets it go on: this kernel has no guards"
                return Outcome(verified=guarded or bool(frozen), processes=len(touched), detail=detail)
            self._stop(open_ones, mark=guarded)
        return Outcome(verified=False, processes=len(touched), detail=_why(open_ones, touched))

    def _stop(self, tasks: list[GovernedTask], *, mark: bool) -> None:
        for task in tasks:
            with held_open(task, self._gate) as pidfd:
                if pidfd is None:
                    continue
                _signal(pidfd, signal.SIGSTOP)
                if mark and (_is_stopped(task.pid) or _is_frozen(self._folder_of(task))):
                    self._gate.restrain(task.pid, task.execution, Restrain.SUSPEND)

    def _quarantine(self, execution: int) -> Outcome:
        touched: set[int] = set()
        for members in self._rounds(execution):
            marked = {task.pid for task in members if task.artifact == QUARANTINED}
            left = [task for task in members if task.pid not in marked]
            touched |= marked
            if not left:
                return Outcome(verified=True, processes=len(touched))
            for task in left:
                self._gate.restrain(task.pid, task.execution, Restrain.QUARANTINE, QUARANTINED)
        return Outcome(verified=False, processes=len(touched), detail=_why(left, touched))

    # -- who -------------------------------------------------------------------------------------

    def _members(self, execution: int) -> list[GovernedTask]:
        self._catch_up()
        return tree_of(execution, self._gate.governed(), self._baselines)

    def _rounds(self, execution: int) -> Iterator[list[GovernedTask]]:
        """The tree, again and again, until the caller is content or the time is over."""
        deadline = time.monotonic() + _SECONDS
        thaw = deadline
        with contextlib.ExitStack() as frozen:
            number = 0
            while (now := time.monotonic()) < deadline:
                members = self._members(execution)
                if number == _ROUNDS:
                    frozen.enter_context(_standing_still(self._folders(members)))
                    members = self._members(execution)
                    thaw = now + _STILL
                elif now >= thaw:
                    frozen.close()  # everybody was reached: what is left does not end or stop, for a reason of its own
                yield members
                number += 1
                time.sleep(_PAUSE * (number > 1))

    def _own_cgroups(self, members: list[GovernedTask]) -> list[Path]:
        """Cgroups of one execution that hold nobody but these; whoever is root can have moved others together."""
        pids = {task.pid for task in members}
        return [
            folder
            for folder in self._folders(members)
            if folder.name.startswith(PREFIX) and set(processes_below(folder)) <= pids
        ]

    def _folders(self, members: list[GovernedTask]) -> list[Path]:
        return sorted({folder for task in members if (folder := self._folder_of(task)) is not None})

    def _folder_of(self, task: GovernedTask) -> Path | None:
        """Its cgroup; None: there are none of version 2, it is gone, or it is in the root, which is the whole host."""
        try:
            path = cgroup_of(task.pid)
        except OSError:
            return None
        return self._mount / path.lstrip("/") if self._mount is not None and path.strip("/") else None


def _mount() -> Path | None:
    try:
        return cgroup_mount()
    except HostLacks:
        return None


@contextlib.contextmanager
def _standing_still(folders: list[Path]) -> Iterator[None]:
    """Nobody in these cgroups runs, meanwhile; those that stood still before go on doing so."""
    before = [folder for folder in folders if not _is_frozen(folder)]
    try:
        for folder in before:
            with contextlib.suppress(OSError):  # it went away with its last process
                (folder / "cgroup.freeze").write_text("1")
        yield
    finally:
        for folder in before:
            with contextlib.suppress(OSError):
                (folder / "cgroup.freeze").write_text("0")


def _why(left: list[GovernedTask], touched: set[int]) -> str:
    """Why a response did not come to its end: who was not reached, or whom that did not move."""
    if any(task.pid not in touched for task in left):
        return "it forks faster than it can be reached"
    named = ", ".join(f"process {task.pid} in state {_state_of(task.pid)}" for task in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return f"reached, and still there: {named}{more}"


def _state_of(pid: int) -> str:
    """The state of a process as ps(1) has it: D waits for a device, t for who traces it; X: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _is_frozen(folder: Path | None) -> bool:
    if folder is None:
        return False
    try:
        return "frozen 1" in (folder / "cgroup.events").read_text()
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    """Whether every thread of a process stands; a moment later perhaps."""
    for _ in range(20):
        try:
            states = {
                (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                for thread in Path(f"/proc/{pid}/task").iterdir()
            }
        except OSError:
            return False
        if states <= _STOPPED:
            return True
        os.sched_yield()
    return False


def _signal(pidfd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False  # it ended this instant
    return True
