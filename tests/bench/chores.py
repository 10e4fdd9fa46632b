"""What calls the hooks that an exec does not: files, mounts, cgroups, signals, limits, bpf(2).

Each thing is done once in a round, on files and a cgroup of its own. The process that does it is in a cgroup that it is
told, so it is governed or not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
import traceback
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel.gate import libbpf
from tests.harness import Cgroup

_CLONE_NEWNS: Final = 0x20000
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
_AT_FDCWD: Final = -100
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_ATTRIBUTE: Final = "trusted.egs"
_libc = ctypes.CDLL(None, use_errno=True)


class Chores(msgspec.Struct, frozen=True):
    """Where: a cgroup, an empty folder, and a loaded gate's pins."""

    cgroup: Cgroup
    folder: Path
    pins: Path


def do_chores(chores: Chores, rounds: int) -> None:
    """Do everything so many times, in a child that enters the cgroup first.

    Raises:
        RuntimeError: something of it cannot be done; what it was is on standard error.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _as_child(chores, rounds)
            status = 0
        except BaseException:  # noqa: BLE001 - a child of ours must not go on as if it were us
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("not every hook can be called: see above")


def _as_child(chores: Chores, rounds: int) -> None:
    chores.cgroup.enter()
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    _must(_libc.unshare(_CLONE_NEWNS), "mount namespace")
    _must(_libc.mount(None, b"/", None, _MS_REC_PRIVATE, None), "private mounts")
    for _ in range(rounds):
        _move(chores.cgroup)
        _change_files(chores.folder)
        _mount(chores.folder)
        _touch_processes()
        _use_bpf(chores.pins)


def _move(cgroup: Cgroup) -> None:
    child = cgroup.child("moved")
    child.enter()
    cgroup.enter()
    child.folder.rmdir()


def _change_files(folder: Path) -> None:
    first, second, third = (folder / name for name in ("first", "second", "third"))
    first.write_bytes(b"")
    first.chmod(0o600)
    os.setxattr(first, _ATTRIBUTE, b"")
    os.removexattr(first, _ATTRIBUTE)
    second.hardlink_to(first)
    third.symlink_to(first)
    second.rename(folder / "renamed")
    os.mknod(folder / "pipe", stat.S_IFIFO)
    (folder / "folder").mkdir()
    (folder / "folder").rmdir()
    for name in ("first", "renamed", "third", "pipe"):
        (folder / name).unlink()


def _mount(folder: Path) -> None:
    here, there = folder / "here", folder / "there"
    here.mkdir()
    there.mkdir()
    _must(_libc.mount(b"none", os.fsencode(here), b"tmpfs", 0, None), "mount")
    tree = _must(_libc.open_tree(_AT_FDCWD, os.fsencode(here), _OPEN_TREE_CLONE), "open_tree")
    _must(_libc.move_mount(tree, b"", _AT_FDCWD, os.fsencode(there), _MOVE_MOUNT_F_EMPTY_PATH), "move_mount")
    os.close(tree)
    for point in (here, there):
        _must(_libc.umount(os.fsencode(point)), "umount")
        point.rmdir()


def _touch_processes() -> None:
    """Ourselves and our parent, and nothing of them changes."""
    os.kill(os.getpid(), 0)
    Path(f"/proc/{os.getppid()}/exe").readlink()  # who may trace it may read it
    resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
    os.sched_setscheduler(0, os.sched_getscheduler(0), os.sched_getparam(0))
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b".")  # SIGIO
    os.close(reader)
    os.close(writer)


def _use_bpf(pins: Path) -> None:
    for name in ("scopes", "gate_exec"):
        os.close(libbpf.open_pin(pins / name))


def _must(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result
