"""An open /proc/PID: a folder's descriptor, which no other process ever is behind.

The first thread of a process may end before the others. Then the kernel shows nothing of the process in its folder (no
memory, no namespaces, no root), and all of it in the folder of each thread that goes on.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING, Final, Self

from egs_kernel.processes import parse_start_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.gate.views import GovernedTask

_CHUNK: Final = 1 << 16
_TICK: Final = 10_000_000
"""Nanoseconds of a clock tick (1/100 s, whatever the kernel's HZ)."""
_PAGE: Final = resource.getpagesize()
_ENDED: Final = (b"Z", b"X")


class Folder:
    """An open folder of /proc, of a process or of a thread; close it.

    Raises:
        ProcessLookupError: it is gone.
    """

    def __init__(self, path: str, below: int | None = None) -> None:
        self._path = path
        self.folder = self._open(path, below)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str) -> bytes:
        """One of its files.

        Raises:
            ProcessLookupError: it is gone.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)
            try:
                parts = [os.read(descriptor, _CHUNK)]
                while parts[-1] and (len(parts) > 1 or len(parts[0]) >= _PAGE // 2):
                    parts.append(os.read(descriptor, _CHUNK))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._gone(error) from error
        return b"".join(parts)

    def link(self, name: str) -> str:
        """What one of its links says; "": nothing."""
        try:
            return os.readlink(name, dir_fd=self.folder)
        except OSError:
            return ""

    def has(self, name: str) -> bool:
        """Whether there is anything of this name, also below one of its links."""
        try:
            os.stat(name, dir_fd=self.folder, follow_symlinks=False)
        except OSError:
            return False
        return True

    def root(self) -> tuple[int, int]:
        """Device and inode of its root folder.

        Raises:
            ProcessLookupError: it is gone.
        """
        try:
            status = os.stat("root", dir_fd=self.folder)
        except OSError as error:
            raise self._gone(error) from error
        return status.st_dev, status.st_ino

    def _open(self, path: str, below: int | None) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=below)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> ProcessLookupError:
        return ProcessLookupError(f"{self._path} is gone: {error.strerror}")


class Process(Folder):
    """The process of a task of the gate's table.

    `folder` is that of its first thread, or, where that one has ended, of one that goes on.

    Raises:
        ProcessLookupError: it is gone, or another one bears its number.
    """

    def __init__(self, task: GovernedTask) -> None:
        super().__init__(f"/proc/{task.pid}")
        self.task = task
        self._group = self.folder
        try:
            stat = self.read("stat")
        except ProcessLookupError:
            self.close()
            raise
        state, parent, *_ = _fields(stat)
        self.start_ticks = parse_start_ticks(stat)
        self.parent = int(parent)
        if task.born and abs(task.born // _TICK - self.start_ticks) > 1:
            self.close()
            raise ProcessLookupError(f"process {task.pid} is another one")
        if state in _ENDED:
            self._go_to_a_thread()

    def close(self) -> None:
        """Let go of it."""
        if self.folder != self._group:
            os.close(self.folder)
        os.close(self._group)

    def threads(self) -> Iterator[Folder]:
        """Its threads; each is closed again. One that ends meanwhile is none.

        Raises:
            ProcessLookupError: it is gone.
        """
        descriptor = self._open("task", self._group)
        try:
            for number in os.listdir(descriptor):  # noqa: PTH208 - of a folder that is open
                with contextlib.suppress(ProcessLookupError), Folder(number, descriptor) as thread:
                    yield thread
        except OSError as error:
            raise self._gone(error) from error
        finally:
            os.close(descriptor)

    def _go_to_a_thread(self) -> None:
        """To one that goes on; when none does, this is what there is."""
        with contextlib.suppress(ProcessLookupError):
            for thread in self.threads():
                if _state_of(thread) not in _ENDED:
                    self.folder = os.dup(thread.folder)
                    return


def _state_of(thread: Folder) -> bytes:
    try:
        return _fields(thread.read("stat"))[0]
    except ProcessLookupError:
        return _ENDED[0]


def _fields(stat: bytes) -> list[bytes]:
    """What comes behind the name, which may hold anything: state, parent and the rest."""
    return stat[stat.rindex(b")") + 2 :].split(None, 2)
