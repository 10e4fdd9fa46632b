"""A record for tests, with keys beside it; and a disk that fails, crashes or loses power at any step."""

from __future__ import annotations

import os
import shutil
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.files import FRESH, Files
from egs_kernel.audit.logkeys import LogKeys
from egs_kernel.audit.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGIN = "egs-kernel/test/record"


@cache
def log_keys(folder: Path) -> LogKeys:
    """The keys of the record in `folder`, where an instance has them: beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return LogKeys.open(folder.parent / "log-keys", ORIGIN, time.time)


def open_record(folder: Path, **options: Any) -> Record:
    """`Record.open`, with those keys."""
    return Record.open(folder, log_keys(folder), **options)


def abandon(opened: Record) -> None:
    """What the kernel does for a process that is gone: its descriptors are closed, its lock is let go."""
    opened._closed.set()
    opened._segments.close()
    os.close(opened._guard)


def path_of(descriptor: int) -> Path:
    """Which file a descriptor is of."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class Crash(BaseException):
    """The machine or the process is gone: nothing after this happens."""


class Disk(Files):
    """The disk, as a test wants it. It notes what a power loss would leave, and syncs nothing for real.

    `before`: called before each step with its number and name, and raises what should happen there. `signed`: every checkpoint
    that was signed, those that were never to be seen included.
    """

    def __init__(
        self, folder: Path, before: Callable[[int, str], None] = lambda _number, _name: None
    ) -> None:
        self.steps: list[str] = []
        self.signed: list[bytes] = []
        self._before = before
        self._folder = folder
        self._grave = folder.parent / "grave"  # inodes that are kept, so that no number is used twice
        self._grave.mkdir(exist_ok=True)
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int | None]] = {}
        self.sync_everything()

    # -- steps ---------------------------------------------------------------------------------------

    def write(self, descriptor: int, content: bytes) -> None:
        if path_of(descriptor).name == CHECKPOINT + FRESH:
            self.signed.append(content)
        try:
            self._step("write")
        except BaseException:
            super().write(descriptor, content[: len(content) // 2])
            raise
        super().write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        path = path_of(descriptor)
        self._keep(path)
        self._contents[path.stat().st_ino] = path.read_bytes()

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        self._step("rename")
        self._keep(path)
        self._keep(target)
        super().rename(path, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        self._keep(path)
        super().unlink(path)

    def make_folder(self, path: Path) -> None:
        self._step("make_folder")
        super().make_folder(path)

    def remove_folder(self, path: Path) -> None:
        self._step("remove_folder")
        super().remove_folder(path)

    def sync_folder(self, folder: Path) -> None:
        self._step("sync_folder")
        self._names[folder] = self._list(folder)

    def sync_all(self, folder: Path) -> None:  # noqa: ARG002 - there is but one
        self._step("sync_all")
        self.sync_everything()

    def _step(self, name: str) -> None:
        self.steps.append(name)
        self._before(len(self.steps) - 1, name)

    # -- what a power loss leaves ----------------------------------------------------------------------

    def sync_everything(self) -> None:
        """Note all that is there as durable."""
        for path in [self._folder, *self._folder.rglob("*")]:
            if path.is_dir():
                self._names[path] = self._list(path)
            elif path.exists():
                self._keep(path)
                self._contents[path.stat().st_ino] = path.read_bytes()

    def lose_power(self, *, names_survive: bool) -> None:
        """Leave in the folder what was synced.

        `names_survive`: names that were not synced are there all the same (file systems write them when they like),
        of files that have their length and zeros where nothing was synced.
        """
        files = {int(path.name): path.read_bytes() for path in self._grave.iterdir()}
        names = dict(self._names)
        if names_survive:
            for path in self._folder.rglob("*"):
                self._keep(path)
            files = {int(path.name): path.read_bytes() for path in self._grave.iterdir()}
            names = {
                path: self._list(path) for path in [self._folder, *self._folder.rglob("*")] if path.is_dir()
            }
        shutil.rmtree(self._folder)
        self._rebuild(self._folder, names, files, names_survive=names_survive)

    def _rebuild(
        self,
        folder: Path,
        names: dict[Path, dict[str, int | None]],
        files: dict[int, bytes],
        *,
        names_survive: bool,
    ) -> None:
        folder.mkdir(mode=0o750)
        for name, inode in names.get(folder, {}).items():
            if inode is None:
                self._rebuild(folder / name, names, files, names_survive=names_survive)
                continue
            content = self._contents.get(inode, b"")
            if names_survive:
                content = content[: len(files[inode])].ljust(len(files[inode]), b"\0")
            (folder / name).write_bytes(content)

    def _keep(self, path: Path) -> None:
        if path.is_file() and not (kept := self._grave / str(path.stat().st_ino)).exists():
            kept.hardlink_to(path)

    @staticmethod
    def _list(folder: Path) -> dict[str, int | None]:
        return {path.name: None if path.is_dir() else path.stat().st_ino for path in folder.iterdir()}
