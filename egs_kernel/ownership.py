"""Files that decide what may run must be files that only their owner can change.

A path is trusted when nobody but root (or the user we run as) could have changed it or put something
else in its place: no symbolic link, no foreign owner, no write permission for group or others, and the
same for every folder above it (a sticky folder such as /tmp may be writable: it keeps its entries).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from egs_kernel.errors import UnsafePath
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from pathlib import Path

_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH


def require_private_folder(folder: Path) -> None:
    """Check `folder` and every folder above it.

    Raises:
        UnsafePath: it is missing, not a folder, or others could change it.
    """
    folder = folder.absolute()
    for ancestor in reversed(folder.parents):
        _check(ancestor, _lstat(ancestor), allow_sticky=True)
    status = _lstat(folder)
    _check(folder, status, allow_sticky=False)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafePath(
            Reason.PATH_UNSAFE, f"{folder} is not a folder", f"Remove it and create the folder {folder}."
        )


def read_secret_file(path: Path, limit: int) -> bytes:
    """Read a file, such as a private key, that nobody but its owner can even read.

    Args:
        path: the file.
        limit: most bytes it may have.

    Raises:
        UnsafePath: as `read_private_file`, or others could have read it.
        OSError: it cannot be read.
    """
    content = read_private_file(path, limit)
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode & 0o077:
        raise UnsafePath(
            Reason.PATH_UNSAFE,
            f"{path} is open to others (mode {mode:04o})",
            f"Run: chmod 600 {path}, and replace the key: it may have been read.",
        )
    return content


def read_private_file(path: Path, limit: int) -> bytes:
    """Read a regular file whose folder and content only its owner can change.

    Args:
        path: the file.
        limit: most bytes it may have.

    Raises:
        UnsafePath: others could have changed it, or it is no regular file, or it is larger than `limit`.
        OSError: it cannot be read.
    """
    require_private_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise UnsafePath(
                Reason.PATH_UNSAFE, f"{path} is a symbolic link", "Replace the link by the file itself."
            ) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePath(Reason.PATH_UNSAFE, f"{path} is not a regular file", f"Remove {path}.")
        _check(path, status, allow_sticky=False)
        with os.fdopen(descriptor, "rb", closefd=False) as file:  # not earlier: it refuses folders by itself
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise UnsafePath(
            Reason.PATH_UNSAFE, f"{path} is larger than {limit} bytes", f"Remove or shorten {path}."
        )
    return content


def _lstat(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise UnsafePath(
            Reason.PATH_UNSAFE,
            f"{path} cannot be inspected: {error.strerror}",
            f"Create {path}, owned by root, mode 0755 or less.",
        ) from error


def _check(path: Path, status: os.stat_result, *, allow_sticky: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UnsafePath(
            Reason.PATH_UNSAFE, f"{path} is a symbolic link", f"Use the path that {path} points to."
        )
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafePath(
            Reason.PATH_UNSAFE, f"{path} belongs to user {status.st_uid}", f"Run: chown root {path}"
        )
    sticky = allow_sticky and bool(status.st_mode & stat.S_ISVTX)
    if status.st_mode & _SHARED_WRITE and not sticky:
        raise UnsafePath(
            Reason.PATH_UNSAFE,
            f"{path} can be written by group or others (mode {stat.S_IMODE(status.st_mode):04o})",
            f"Run: chmod go-w {path}",
        )
