"""One process at a time: a lock file that only its owner can open.

flock(2) asks for no more than a descriptor to read by. Whoever may read a file or a folder could take it, and keep
everybody else out; so what is locked is a file of its own, and nothing that others may read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from egs_kernel.errors import EgsError

_MODE: Final = 0o600


def take(path: Path, taken: EgsError) -> int:
    """Lock a file, making it when there is none; a descriptor. The kernel lets go of it however the process ends.

    Nothing of a file that is there is written: while a gate is sealed, the monitor could not.

    Raises:
        EgsError: `taken`; another process has it.
        OSError: it cannot be opened.
    """
    descriptor = _open(path)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != _MODE:
            os.fchmod(descriptor, _MODE)  # of a version that made it for all to read
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise taken from error
        raise
    return descriptor


def make(path: Path) -> None:
    """Make the file, if there is none, for a process that may not.

    Raises:
        OSError: it cannot be made.
    """
    os.close(_open(path))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)


@contextlib.contextmanager
def locked(path: Path, taken: EgsError) -> Iterator[None]:
    """As `take`, until the end of the block."""
    descriptor = take(path, taken)
    try:
        yield
    finally:
        os.close(descriptor)
