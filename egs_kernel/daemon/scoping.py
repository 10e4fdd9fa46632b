"""Putting a launcher into the scope that its artifact is for.

Moving a process between cgroups makes the kernel wait for an RCU grace period, about 10 ms, unless it has just
done so for another one. So `announce` has it begin to wait when a launch is asked for, and `enter_cgroup`
finds that time already spent. Both block: they are for threads.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.config import Config


def is_below(cgroup: str, ancestor: str) -> bool:
    """Whether a cgroup path is `ancestor` or lies below it. Pure."""
    return cgroup == ancestor or cgroup.startswith(f"{ancestor}/")


def cgroup_of_scope(config: Config, scope: str) -> str | None:
    """The cgroup that the scope governs; None when it governs something else. Pure."""
    return next((known.cgroup for known in config.scopes if known.name == scope), None)


def parse_cgroup(content: str) -> str:
    """The path in the version 2 hierarchy, of a /proc/PID/cgroup. Pure."""
    return next((line.removeprefix("0::") for line in content.splitlines() if line.startswith("0::")), "")


def announce(config: Config, pid: int) -> None:
    """Let the kernel begin what a move would make it wait for: "move" the process to where it is.

    Only when a move may follow. Nothing depends on it, so nothing is reported.
    """
    governed = [scope.cgroup for scope in config.scopes if scope.cgroup is not None]
    with contextlib.suppress(OSError):
        present = _cgroup_of(pid)
        if governed and not any(is_below(present, cgroup) for cgroup in governed):
            move(pid, cgroup_mount() / present.lstrip("/"))


def enter_cgroup(pid: int, cgroup: str) -> None:
    """Move a process into a cgroup, unless it is in there already.

    Raises:
        Refused: the cgroup does not take it.
    """
    folder = cgroup_mount() / cgroup.lstrip("/")
    try:
        if not is_below(_cgroup_of(pid), cgroup):
            move(pid, folder)
    except ProcessLookupError as error:
        raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone") from error
    except OSError as error:
        raise Refused(
            Reason.CGROUP_MISMATCH,
            f"the scope's cgroup {cgroup} does not take the launcher: {error.strerror}",
            f"Create it (mkdir -p {folder}); it must allow processes in it.",
        ) from error


def _cgroup_of(pid: int) -> str:
    try:
        return parse_cgroup(Path(f"/proc/{pid}/cgroup").read_text())
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, error.strerror) from error
