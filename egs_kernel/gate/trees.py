"""An execution's own cgroup: everything that it starts is in there, is limited as one, and ends with one write.

It lies right below the cgroup of its scope, so that it is governed as that is. What has to be known of it beyond the
daemon's life (when it must have ended) is written on it, as an extended attribute that only root can set.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "egs-tree-"
CONTROLLERS: Final = ("memory", "pids", "cpu")
_NOTE: Final = "trusted.egs"
_OPTIONAL: Final = frozenset({"memory.swap.max"})
"""Files that a kernel which does not count swap has not."""
_SUBTREE: Final = "cgroup.subtree_control"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is written on it. `until` is CLOCK_BOOTTIME, nanoseconds; 0: it may run for ever."""

    launch: str
    scope: str
    artifact_id: str
    until: int = 0
    execution: int = 0


def controllers_of(mount: Path) -> frozenset[str]:
    """The controllers that version 2 of this host has and that limits are made of."""
    try:
        return frozenset((mount / "cgroup.controllers").read_text().split()) & frozenset(CONTROLLERS)
    except OSError:
        return frozenset()


def make_tree(mount: Path, parent: str, note: Note, controls: dict[str, str]) -> Path:
    """Make it, with these limits. Blocks.

    Args:
        mount: of the version 2 hierarchy.
        parent: the path of the scope's cgroup.
        note: what is written on it.
        controls: file names and contents.

    Returns:
        Its folder.

    Raises:
        Refused: the kernel does not do that.
    """
    above = mount / parent.lstrip("/")
    folder = above / f"{PREFIX}{note.launch}"
    try:
        _pass_on(mount, above, {name.partition(".")[0] for name in controls})
        folder.mkdir()
    except OSError as error:
        raise _unenforceable(parent, error) from error
    try:
        for name, content in controls.items():
            if name not in _OPTIONAL or (folder / name).exists():
                write_control(folder / name, content)
        write_note(folder, note)
        _require_kill(folder)
    except BaseException:
        folder.rmdir()
        raise
    return folder


def write_note(folder: Path, note: Note) -> None:
    """Write on it.

    Raises:
        Refused: the kernel does not let us.
    """
    try:
        os.setxattr(folder, _NOTE, msgspec.json.encode(note))
    except OSError as error:
        raise _unenforceable(str(folder), error) from error


def trees_below(folder: Path) -> Iterator[tuple[Path, Note]]:
    """Every execution's cgroup of a scope, and what is written on it; one without that is none of ours."""
    try:
        found = sorted(folder.glob(f"{PREFIX}*"))
    except OSError:
        return
    for path in found:
        try:
            yield path, msgspec.json.decode(os.getxattr(path, _NOTE), type=Note)
        except (OSError, msgspec.DecodeError):
            continue


def is_populated(folder: Path) -> bool:
    """Whether any process is in it, or below it."""
    try:
        return "populated 1" in (folder / "cgroup.events").read_text()
    except OSError:
        return False


def kill_tree(folder: Path) -> None:
    """End everything in it and below it, at once; who is being forked there does not come to life.

    Raises:
        OSError: the kernel refused.
    """
    (folder / "cgroup.kill").write_text("1")


def remove_tree(folder: Path) -> bool:
    """Remove it, and what was made below it; whether it is gone."""
    for parent, below, _ in os.walk(folder, topdown=False):
        for name in below:
            with contextlib.suppress(OSError):
                (Path(parent) / name).rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def refused_counts(folder: Path) -> dict[str, int]:
    """How often it came up against a limit, by the names of `resources`."""
    return {
        "memory": _count(folder / "memory.events", "oom_kill"),
        "processes": _count(folder / "pids.events", "max"),
    }


def _count(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


def _pass_on(mount: Path, folder: Path, wanted: set[str]) -> None:
    """Have every cgroup from the root down to `folder` pass these controllers on.

    A cgroup with processes may pass on `pids` and `cpu`, unlike `memory`; but it becomes the root of threads then, and
    what is below it takes no processes.
    """
    if not wanted:
        return
    if (folder / "cgroup.procs").read_text():
        raise OSError(errno.EBUSY, "it has processes of its own")
    down = [above for above in reversed([folder, *folder.parents]) if above.is_relative_to(mount)]
    for above in down:
        passed = set((above / _SUBTREE).read_text().split())
        for name in sorted(wanted - passed):
            (above / _SUBTREE).write_text(f"+{name}")


def write_control(file: Path, content: str) -> None:
    """Write a limit, and see that the kernel took it.

    Raises:
        Refused: it did not.
    """
    try:
        file.write_text(content)
        taken = file.read_text().strip()
    except OSError as error:
        raise _unenforceable(str(file), error) from error
    # A size is taken in whole pages.
    if taken != content and not (taken.isdecimal() and content.isdecimal() and int(taken) <= int(content)):
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{file} took {taken} instead of {content}",
            "Issue it with a limit that this kernel takes.",
        )


def _require_kill(folder: Path) -> None:
    if not (folder / "cgroup.kill").exists():
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            "this kernel has no cgroup.kill, so an execution cannot be ended as a whole",
            "Use a kernel of 5.14 or later.",
        )


def _unenforceable(where: str, error: OSError) -> Refused:
    return Refused(
        Reason.CONSTRAINT_UNENFORCEABLE,
        f"the execution cannot get a cgroup of its own with its limits: {where}: {error.strerror}",
        "The scope's cgroup must have no processes itself where limits of memory, processes or cpu are set: "
        "make it a slice, and let nobody but egsd put processes into it.",
    )
