"""Putting a launcher into the scope that its artifact is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.gate.pins import Gate
    from egs_kernel.model import TaskIdentity


def enter_scope(gate: Gate, task: TaskIdentity, scope: str) -> None:
    """Make `task` a process of `scope`: governed by it, and inside its cgroup if it has one.

    Raises:
        EgsError: another scope governs it, or the cgroup does not take it.
    """
    gate.govern(task, scope)  # first: a process of another scope must not be moved
    state = gate.scopes().get(scope)
    if state is not None and state.cgroup is not None:
        _enter_cgroup(task.pid, state.cgroup)


def is_below(cgroup: str, ancestor: str) -> bool:
    """Whether a cgroup path is `ancestor` or lies below it. Pure."""
    return cgroup == ancestor or cgroup.startswith(f"{ancestor}/")


def _enter_cgroup(pid: int, cgroup: str) -> None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError as error:
        raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone") from error
    present = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    if is_below(present, cgroup):
        return
    try:
        move(pid, cgroup_mount() / cgroup.lstrip("/"))
    except OSError as error:
        raise Refused(
            Reason.CGROUP_MISMATCH,
            f"the scope's cgroup {cgroup} does not take the launcher: {error.strerror}",
            f"Create it (mkdir -p {cgroup_mount()}{cgroup}); it must allow processes in it.",
        ) from error
