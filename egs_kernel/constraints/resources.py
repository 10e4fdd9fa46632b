"""`constraints.resources` → resource limits of the launcher, and limits of the execution's own cgroup.

A resource limit (setrlimit(2)) is of each process. Its hard half cannot be raised again without CAP_SYS_RESOURCE, so that
is taken away with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.attest import Part, Stopped
from egs_kernel.constraints.proc import not_attested
from egs_kernel.constraints.steps import Limits
from egs_kernel.processes import read_whole

if TYPE_CHECKING:
    from egs_kernel.artifact.limits import ResourceConstraint

CPU_PERIOD: Final = 100_000
"""Microseconds of cpu.max."""

SYS_RESOURCE: Final = 1 << 24

_IN_PROC: Final = {
    "cpu": "Max cpu time",
    "fsize": "Max file size",
    "core": "Max core file size",
    "nofile": "Max open files",
    "as": "Max address space",
}
"""What /proc/PID/limits calls a limit."""

_NAME_WIDTH, _VALUE_WIDTH = 26, 21  # fs/proc/base.c, proc_pid_limits: "%-25s %-20s %-20s"


def limits(constraint: ResourceConstraint) -> dict[str, int]:
    """The resource limits by the names of getrlimit(2), lower case. Pure."""
    wanted = {
        "cpu": constraint.cpu_seconds,
        "fsize": constraint.file_size,
        "core": constraint.core_size,
        "nofile": constraint.open_files,
        "as": constraint.address_space,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def part(constraint: ResourceConstraint) -> Part | None:
    """What the launcher does about its resource limits; None when it has none. Pure."""
    wanted = limits(constraint)
    if not wanted:
        return None

    def check(process: Stopped) -> None:
        _require_limits(process.pid, wanted)

    return Part(Limits(values=wanted), installed=check, executed=check)


def controls(constraint: ResourceConstraint) -> dict[str, str]:
    """What is written into the files of the execution's cgroup. Pure."""
    files: dict[str, str] = {}
    if constraint.memory is not None:
        # One that is out of memory ends as a whole, and not by one process that the kernel chooses.
        files |= {"memory.oom.group": "1", "memory.swap.max": "0", "memory.max": str(constraint.memory)}
    if constraint.processes is not None:
        files["pids.max"] = str(constraint.processes)
    if constraint.cpu_percent is not None:
        files["cpu.max"] = f"{constraint.cpu_percent * CPU_PERIOD // 100} {CPU_PERIOD}"
    return files


def parse_limits(content: str) -> dict[str, tuple[float, float]]:
    """A /proc/PID/limits: soft and hard limit by their names there. Pure."""
    found = {}
    for line in content.splitlines()[1:]:
        values = line[_NAME_WIDTH:].split()
        found[line[:_NAME_WIDTH].rstrip()] = _limit(values[0]), _limit(values[1])
    return found


def _limit(text: str) -> float:
    return float("inf") if text == "unlimited" else int(text)


def _require_limits(pid: int, wanted: dict[str, int]) -> None:
    try:
        found = parse_limits(read_whole(f"/proc/{pid}/limits").decode())
    except OSError as error:
        raise not_attested(pid, f"is gone: {error.strerror}") from error
    for name, value in wanted.items():
        soft, hard = found.get(_IN_PROC[name], (float("inf"), float("inf")))
        if max(soft, hard) > value:
            raise not_attested(pid, f"has not the signed limit of {name}, which is {value}")
