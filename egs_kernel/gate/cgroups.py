"""The cgroup v2 tree: where it is mounted, who is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from egs_kernel.errors import HostLacks
from egs_kernel.model import Reason
from egs_kernel.processes import read_whole


def cgroup_mount(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """The cgroup v2 mount point; on hybrid hosts it is not /sys/fs/cgroup.

    Raises:
        HostLacks: none is mounted.
    """
    for line in read_whole(str(mounts)).decode("utf-8", "surrogateescape").splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point)
    raise HostLacks(
        Reason.KERNEL_UNSUPPORTED,
        "no cgroup v2 hierarchy is mounted",
        "Run: mount -t cgroup2 none /sys/fs/cgroup  (or boot with systemd.unified_cgroup_hierarchy=1)",
    )


def cgroup_id(folder: Path) -> int:
    """The kernel's id of a cgroup: the inode number of its folder."""
    return folder.stat().st_ino


def cgroup_of(pid: int) -> str:
    """The path of a process in the version 2 hierarchy.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        content = read_whole(f"/proc/{pid}/cgroup").decode("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"process {pid} is gone") from error
    return next((line.removeprefix("0::") for line in content.splitlines() if line.startswith("0::")), "")


def processes_below(folder: Path) -> Iterator[int]:
    """Every process id in the subtree; one that moves meanwhile may be missed, so repeat."""
    for parent, _, _ in os.walk(folder):
        try:
            content = Path(parent, "cgroup.procs").read_text()
        except OSError:
            continue  # the cgroup went away: so did its processes; or it is threaded, and its parent lists them
        yield from (int(pid) for pid in content.split() if pid != "0")


def move(pid: int, folder: Path) -> None:
    """Move a process into a cgroup.

    Raises:
        OSError: it is gone, or the kernel refuses.
    """
    descriptor = os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{pid}\n".encode())
    finally:
        os.close(descriptor)
