"""Which process a number means: its start, in the kernel's own words."""

from __future__ import annotations

import os
from typing import Final

_START_TIME: Final = 22 - 3
"""proc(5), /proc/PID/stat: field 22, counted from the third, the first one after the name."""


_PART: Final = 64 * 1024


def read_whole(path: str) -> bytes:
    """A file of /proc or of a cgroup, in as few system calls as it takes.

    A file object makes eight for what takes four. In egsd each is a chance that another thread goes on first.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, _PART):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def start_ticks(pid: int) -> int:
    """The start of a process in clock ticks since boot.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        return parse_start_ticks(read_whole(f"/proc/{pid}/stat"))
    except OSError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def cgroup_of(pid: int) -> str:
    """The cgroup of a process: its path, from the root of the hierarchy that systemd keeps.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        return parse_cgroup(read_whole(f"/proc/{pid}/cgroup").decode("utf-8", "surrogateescape"))
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
