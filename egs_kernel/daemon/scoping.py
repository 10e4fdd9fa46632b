"""Putting a launcher into the scope that its artifact is for.

Moving a process between cgroups makes the kernel wait for an RCU grace period, on many hosts for about 10 ms, unless it
has just done so for another one. So `Moves.announce` has it begin to wait when a launch is asked for, and `Moves.enter` finds
that time already spent. On hosts where it does not take long nothing is announced: that would only be more to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.model import Reason
from egs_kernel.processes import read_whole, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.config import Config
    from egs_kernel.model import TaskIdentity


_LONG_SECONDS: Final = 2e-3
"""A move that takes longer had to wait."""
_PASSED_SECONDS: Final = 0.1
"""So long after a move the next one would have to wait anew."""
_ENOUGH: Final = 3
"""So many announcements that did not have to wait show that this kernel does not make moves wait."""

SLICE_ROOM: Final = "egs-run"
"""The name of that cgroup; without a unit's suffix, so that systemd takes it for nobody's."""


def is_below(cgroup: str, ancestor: str) -> bool:
    """Whether a cgroup path is `ancestor` or lies below it. Pure."""
    return cgroup == ancestor or cgroup.startswith(f"{ancestor}/")


def parse_cgroup(content: str) -> str:
    """The path in the version 2 hierarchy, of a /proc/PID/cgroup. Pure."""
    return next((line.removeprefix("0::") for line in content.splitlines() if line.startswith("0::")), "")


def move_nowhere() -> None:
    """Move this process to the cgroup where it is. Nothing depends on it, so nothing is reported."""
    with contextlib.suppress(OSError):
        move(os.getpid(), cgroup_mount() / _cgroup_of(os.getpid()).lstrip("/"))


class Moves:
    """The moves of launchers, and how long they take on this host.

    Args:
        clock: seconds that only grow.
        begin: makes the kernel wait for what the next move would have to wait for.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, begin: Callable[[], None] = move_nowhere
    ) -> None:
        self._clock = clock
        self._begin = begin
        self._last = clock()
        self._quick = 0

    def announce(self, config: Config) -> None:
        """Let the kernel begin, in another thread, if a move may follow and moves take long here."""
        if self._quick < _ENOUGH and any(scope.cgroup is not None for scope in config.scopes):
            asyncio.get_running_loop().run_in_executor(None, self._announce)

    def enter(self, task: TaskIdentity, cgroup: str, *, exactly: bool) -> None:
        """`enter_cgroup`. Blocks: for a thread.

        Raises:
            Refused: the cgroup does not take it.
        """
        began = self._clock()
        enter_cgroup(task, cgroup, exactly=exactly)
        self._last = self._clock()
        if self._last - began > _LONG_SECONDS:
            self._quick = 0

    def _announce(self) -> None:
        began = self._clock()
        self._begin()
        ended = self._clock()
        if began - self._last > _PASSED_SECONDS:  # else the one before may be why it was quick
            self._quick = 0 if ended - began > _LONG_SECONDS else self._quick + 1
        self._last = ended


def target_cgroup(config: Config, scope: str, bound: str | None) -> str | None:
    """Where a launcher belongs: the cgroup that the artifact binds it to, else the scope's. Pure.

    Raises:
        Refused: the artifact binds it to a cgroup outside of the scope's.
    """
    governed = next((known.cgroup for known in config.scopes if known.name == scope), None)
    if bound is not None and governed is not None and not is_below(bound, governed):
        raise Refused(
            Reason.CGROUP_MISMATCH,
            f"it is for the cgroup {bound}, which lies outside of scope {scope} ({governed})",
            f"Have it issued for {governed}, or a cgroup below it.",
        )
    return bound if governed is not None and bound is not None else governed


def enter_cgroup(task: TaskIdentity, cgroup: str, *, exactly: bool) -> None:
    """Move a process into a cgroup, or where that has room, unless it is there; `exactly`: below it will not do.

    Raises:
        Refused: the cgroup does not take it.
    """
    folder = cgroup_mount() / cgroup.lstrip("/")
    try:
        present = _cgroup_of(task.pid)
        if present != cgroup and (exactly or not is_below(present, cgroup)):
            room = folder if exactly else _room_in(folder)
            _require_same(task)
            move(task.pid, room)
    except ProcessLookupError as error:
        raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone") from error
    except OSError as error:
        raise Refused(
            Reason.CGROUP_MISMATCH,
            f"the cgroup {cgroup} does not take the launcher: {error.strerror}",
            f"Create it (mkdir -p {folder}); it must allow processes in it.",
        ) from error


def _require_same(task: TaskIdentity) -> None:
    """The kernel moves whoever bears the number now."""
    if start_ticks(task.pid) != task.start_ticks:
        raise ProcessLookupError(f"process {task.pid} is another one by now")


def _room_in(folder: Path) -> Path:
    """Where in a scope's cgroup processes go; where it passes controllers on, into a cgroup of their own, which is made.

    The kernel refuses processes to a cgroup that passes controllers on, as a slice does for its services; and
    systemd removes the cgroup of a slice that has none.
    """
    if folder.suffix != ".slice" and not (folder / "cgroup.subtree_control").read_text().strip():
        return folder
    room = folder / SLICE_ROOM
    room.mkdir(parents=True, exist_ok=True)
    return room


def _cgroup_of(pid: int) -> str:
    try:
        return parse_cgroup(read_whole(f"/proc/{pid}/cgroup").decode("utf-8", "surrogateescape"))
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, error.strerror) from error
