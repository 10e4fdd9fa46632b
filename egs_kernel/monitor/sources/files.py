"""Files that were measured, and the names that lead to them: written, replaced, removed, led elsewhere."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon.watch import Listener, Watcher, watch_files
from egs_kernel.drift.observations import FileEvent, Lost
from egs_kernel.errors import HostLacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from egs_kernel.drift.observations import Observation

_State = tuple[str, int, int, int, int, int]
_GONE: Final[_State] = ("", 0, 0, 0, 0, 0)


class WatchedFiles:
    """inotify on each file and on every folder entry on the way to it (daemon/watch.py).

    Args:
        named: the paths of the files to watch; asked at each sweep.
    """

    name = "files"

    def __init__(self, named: Callable[[], Iterable[str]] = tuple) -> None:
        self._named = named
        self._watcher = Watcher(self._lose)
        self._watches: dict[str, list[tuple[int, Listener]]] = {}
        self._states: dict[str, _State] = {}
        self._touched: dict[str, None] = {}
        self._lost = 0

    def follow(self, paths: Iterable[str]) -> None:
        """Watch these, too, from now on until a sweep finds that nobody names them."""
        for path in paths:
            if path not in self._watches:
                self._watch(path)
                self._states[path] = _state(path)

    def fileno(self) -> int:
        """Readable when one was touched."""
        return self._watcher.fileno()

    def read(self) -> Iterator[Observation]:
        """Those that were touched."""
        self._watcher.dispatch()
        touched, self._touched = self._touched, {}
        yield from self._losses()
        for path in touched:
            if path in self._watches:
                yield self._renew(path)

    def sweep(self) -> Iterator[Observation]:
        """Those that are not what they were, whether an event came or not."""
        wanted = set(self._named())
        self.follow(sorted(wanted))
        for path in self._watches.keys() - wanted:
            self._leave(path)
            del self._watches[path], self._states[path]
        yield from self.read()
        for path, known in list(self._states.items()):
            if _state(path) != known:
                yield self._renew(path)

    def close(self) -> None:
        """Watch nothing any more."""
        self._watcher.close()

    def _renew(self, path: str) -> FileEvent:
        """Another file may be there, by another way: watch that one."""
        self._leave(path)
        self._watch(path)
        state = self._states[path] = _state(path)
        return FileEvent(
            source=self.name,
            time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            path=path,
            gone=state == _GONE,
        )

    def _watch(self, path: str) -> None:
        self._watches[path] = []
        try:
            self._watches[path] = watch_files(self._watcher, [Path(path)], partial(self._touch, path))
        except (HostLacks, OSError):
            self._lost += 1  # the kernel's limit of watches, or a loop of links: its sweep sees it

    def _leave(self, path: str) -> None:
        for watch, listener in self._watches[path]:
            self._watcher.remove(watch, listener)

    def _touch(self, path: str) -> None:
        self._touched[path] = None

    def _lose(self) -> None:
        self._lost += 1

    def _losses(self) -> Iterator[Observation]:
        lost, self._lost = self._lost, 0
        if lost:
            yield Lost(source=self.name, time=time.clock_gettime_ns(time.CLOCK_BOOTTIME), count=lost)


def _state(path: str) -> _State:
    """What a path leads to, and the file there, as far as that shows without reading it."""
    try:
        real = Path(path).resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):
        return _GONE
    return str(real), status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mode
