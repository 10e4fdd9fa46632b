"""What the record does to a disk: one method for each step that can fail, or that a crash can come before."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_MODE: Final = 0o640
FOLDER_MODE: Final = 0o750


class Files:
    """The disk. Every method raises OSError when the kernel refuses."""

    def open_append(self, path: Path) -> int:
        """A descriptor that writes at the end of a file, which is made when it is not there."""
        return _created(path, os.O_APPEND)

    def write(self, descriptor: int, content: bytes) -> None:
        """Write all of it. When that fails, some of it may be there."""
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def sync(self, descriptor: int) -> None:
        """Make a file's content durable."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file the name of another, which is gone then."""
        path.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it that are missing."""
        if not path.is_dir():
            self.make_folder(path.parent)
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)
            path.chmod(FOLDER_MODE)  # whatever the umask is

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def sync_folder(self, folder: Path) -> None:
        """Make durable which names a folder has."""
        with _opened(folder) as descriptor:
            os.fsync(descriptor)

    def sync_all(self, folder: Path) -> None:
        """Make everything durable that was written to the folder's file system: one call, where there are hundreds of files."""
        with _opened(folder) as descriptor:
            if _LIBC.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))

    def put(self, path: Path, content: bytes, *, synced: bool = False) -> None:
        """Write a file or put it in the place of the one that was there: a reader finds the old one or the new one.

        `synced`: so does whoever looks after a power loss. Its name is durable when its folder is synced.
        """
        fresh = path.with_name(f"{path.name}{FRESH}")
        descriptor = _created(fresh, os.O_TRUNC)
        try:
            self.write(descriptor, content)
            if synced:
                self.sync(descriptor)
        finally:
            os.close(descriptor)
        self.rename(fresh, path)


FRESH: Final = ".new"
"""What the name of a file ends in that is not whole yet; a crash may leave one."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _created(path: Path, flags: int) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)  # whatever the umask is
    return descriptor


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
