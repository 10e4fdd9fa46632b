"""What files are now: hashed once for each state that they are in."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

_LIMIT: Final = 4096
"""States of files that are remembered."""

_Key = tuple[int, int, int, int]


class Digests:
    """SHA-256 of files, remembered by device, inode, change time and size."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}
        self.hashed = 0

    def of_path(self, path: str) -> str | None:
        """The digest of what a path leads to; "": nothing; None: it cannot be read now."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError:
            return None
        try:
            return self.of_open(descriptor)
        finally:
            os.close(descriptor)

    def of_known(self, path: str) -> str | None:
        """As `of_path`, without opening a file that is in a state that is known already."""
        try:
            key = _key(Path(path).stat())
        except OSError:
            return self.of_path(path)
        return self._known.get(key) or self.of_path(path)

    def of_open(self, descriptor: int) -> str | None:
        """The digest of an open file; None: it is no regular one, cannot be read, or is being written."""
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return None
        key = _key(before)
        if key not in self._known:
            try:
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                return None
            if _key(os.fstat(descriptor)) != key:
                return None  # the next sweep finds it at rest, or still moving
            self.hashed += 1
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = digest
        return self._known[key]


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size


class Trust:
    """Whose files are root's alone: whoever maps one as code maps what root put there. Looked at once in each sweep."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, int], bool] = {}
        self._folders: dict[Path, bool] = {}

    def refresh(self) -> None:
        """Forget what was seen."""
        self._files.clear()
        self._folders.clear()

    def is_trusted(self, path: str, inode: int) -> bool:
        """Whether the file of this number is at the path, and nobody but root could put it there.

        One that was removed or replaced since (a package was upgraded) is judged by its folder.
        """
        found = self._files.get((path, inode))
        if found is None:
            found = self._files[path, inode] = self._look(path, inode)
        return found

    def _look(self, path: str, inode: int) -> bool:
        plain = Path(path.removesuffix(" (deleted)"))
        if not self._folder(plain.parent):
            return False
        if str(plain) != path:
            return True
        try:
            status = plain.stat()
        except OSError:
            return False
        return status.st_ino == inode and _is_roots(status)

    def _folder(self, folder: Path) -> bool:
        found = self._folders.get(folder)
        if found is None:
            try:
                found = _is_roots(folder.stat()) and (folder.parent == folder or self._folder(folder.parent))
            except OSError:
                found = False
            self._folders[folder] = found
        return found


def _is_roots(status: os.stat_result) -> bool:
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
