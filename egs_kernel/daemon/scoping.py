"""Putting a launcher into the scope that its artifact is for.

Moving a process between cgroups makes the kernel wait for an RCU grace period, about 10 ms, unless it has just
done so for another one. So `announce` has it begin to wait when a launch is asked for, and `enter_cgroup`
finds that time already spent. Both block: they are for threads.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.model import Reason
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from egs_kernel.config import Config
    from egs_kernel.model import TaskIdentity


SLICE_ROOM: Final = "egs-run"
"""The name of that cgroup; without a unit's suffix, so that systemd takes it for nobody's."""


def is_below(cgroup: str, ancestor: str) -> bool:
    """Whether a cgroup path is `ancestor` or lies below it. Pure."""
    return cgroup == ancestor or cgroup.startswith(f"{ancestor}/")


def parse_cgroup(content: str) -> str:
    """The path in the version 2 hierarchy, of a /proc/PID/cgroup. Pure."""
    return next((line.removeprefix("0::") for line in content.splitlines() if line.startswith("0::")), "")


def announce(config: Config) -> None:
    """Let the kernel begin what a move would make it wait for: "move" this process to where it is.

    Only when a move may follow. Nothing depends on it, so nothing is reported.
    """
    if any(scope.cgroup is not None for scope in config.scopes):
        with contextlib.suppress(OSError):
            move(os.getpid(), cgroup_mount() / _cgroup_of(os.getpid()).lstrip("/"))


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
        return parse_cgroup(Path(f"/proc/{pid}/cgroup").read_text())
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, error.strerror) from error
