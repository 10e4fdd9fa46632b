"""Which process a number means: its start, in the kernel's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_START_TIME: Final = 22 - 3
"""proc(5), /proc/PID/stat: field 22, counted from the third, the first one after the name."""


def start_ticks(pid: int) -> int:
    """The start of a process in clock ticks since boot.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        return parse_start_ticks(Path(f"/proc/{pid}/stat").read_bytes())
    except OSError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def cgroup_of(pid: int) -> str:
    """The cgroup of a process: its path, from the root of the hierarchy that systemd keeps.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        return parse_cgroup(Path(f"/proc/{pid}/cgroup").read_text("utf-8", "surrogateescape"))
    except OSError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def parse_cgroup(content: str) -> str:
    """The path in a /proc/PID/cgroup: of cgroup v2, or, where that is beside v1 and empty, of systemd's own. Pure."""
    paths = {}
    for line in content.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
    unified = paths.get("", "/")
    return paths.get("name=systemd", "/") if unified == "/" else unified


def parse_start_ticks(stat: bytes) -> int:
    """The start in a /proc/PID/stat. The name, in parentheses, may hold anything. Pure."""
    _, _, rest = stat.rpartition(b")")
    return int(rest.split()[_START_TIME])
