"""Which files a launcher's paths lead to, and whether that is for somebody else to arrange than who may.

A path of the artifact is what it is in the launcher's own mount namespace. Anybody can make a user namespace, a mount
namespace in it, and mount what they like where the artifact permits it. So both must be of root's making when the paths
are looked up, and the mount namespace must be the same when the program is executed.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egs_kernel.constraints.proc import not_attested
from egs_kernel.errors import Refused
from egs_kernel.processes import read_whole

_NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h


@dataclass(frozen=True)
class View:
    """A process's files: its mount namespace, and its root folder in it, by device, inode and mount."""

    namespace: tuple[int, int]
    root: tuple[int, int, str]


def require_trusted_view(pid: int) -> None:
    """Check that nobody but root has arranged what files a process has.

    Raises:
        Refused: it is in a user namespace that is not ours, or its mount namespace belongs to such a one; or it is gone.
    """
    try:
        ours = identity("/proc/self/ns/user")
        trusted = identity(f"/proc/{pid}/ns/user") == ours and _owner(pid) == ours
    except OSError as error:
        raise _unseen(pid, error) from error
    if not trusted:
        raise not_attested(
            pid,
            "is in a namespace that need not be of root's making",
            "Start it outside of user namespaces (rootless containers, unshare --user).",
        )


def view_of(pid: int) -> View:
    """What a process has for its files.

    Raises:
        Refused: it is gone.
    """
    try:
        root = open_root(pid)
        try:
            found = os.fstat(root)
            return View(identity(f"/proc/{pid}/ns/mnt"), (found.st_dev, found.st_ino, _mount_id(root)))
        finally:
            os.close(root)
    except OSError as error:
        raise _unseen(pid, error) from error


def open_root(pid: int) -> int:
    """A descriptor of the root folder of a process; the caller closes it.

    Raises:
        Refused: it is gone, or we may not.
    """
    try:
        return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unseen(pid, error) from error


def _owner(pid: int) -> tuple[int, int]:
    """The user namespace that the mount namespace of a process belongs to."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    finally:
        os.close(namespace)
    try:
        found = os.fstat(owner)
        return found.st_dev, found.st_ino
    finally:
        os.close(owner)


def identity(path: str) -> tuple[int, int]:
    """What the kernel knows a file, or a namespace, by.

    Raises:
        OSError: there is none.
    """
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _mount_id(descriptor: int) -> str:
    lines = read_whole(f"/proc/self/fdinfo/{descriptor}").decode().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _unseen(pid: int, error: OSError) -> Refused:
    return not_attested(pid, f"cannot be inspected: its namespaces: {error.strerror}")
