"""inotify: who is told when a file or folder that matters changes.

A watch belongs to an inode. Two paths can lead to one inode, so a watch has several listeners, and a file
that is replaced takes its watch with it: whoever watches a file watches its folder, too.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from enum import IntFlag
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import HostLacks
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

_EVENT: Final = struct.Struct("iIII")
_BUFFER: Final = 64 * 1024


class Change(IntFlag):
    """The kernel's numbers (inotify(7)) of what can happen to a watched file or folder."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000


FILE: Final = Change.ATTRIB | Change.MODIFY | Change.CLOSE_WRITE | Change.MOVE_SELF | Change.DELETE_SELF
FOLDER: Final = (
    Change.CREATE
    | Change.DELETE
    | Change.MOVED_FROM
    | Change.MOVED_TO
    | Change.CLOSE_WRITE
    | Change.ATTRIB
    | Change.DELETE_SELF
    | Change.MOVE_SELF
)
_MASK_ADD: Final = 0x20000000
_DONT_FOLLOW: Final = 0x02000000

Listener = Callable[[str], None]
"""Called with the name of the entry that changed, or with "" when the watched thing itself did."""


class Watcher:
    """One inotify instance. `lost` is called when the kernel dropped events: everything may have changed."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _no_inotify("inotify_init1")
        self._lost = lost
        self._listeners: dict[int, set[Listener]] = {}

    def fileno(self) -> int:
        """Readable when there is something to `dispatch`."""
        return int(self._descriptor)

    def add(self, path: Path, mask: Change, listener: Listener) -> int | None:
        """Tell `listener` of changes to `path`. None when there is nothing at `path` now.

        Raises:
            HostLacks: the kernel's limit of watches is reached.
        """
        flags = int(mask) | _MASK_ADD | _DONT_FOLLOW
        watch: int = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), flags)
        if watch < 0:
            if ctypes.get_errno() in _ABSENT:
                return None
            raise _no_inotify(f"inotify_add_watch {path}")
        self._listeners.setdefault(watch, set()).add(listener)
        return watch

    def remove(self, watch: int, listener: Listener) -> None:
        """Tell `listener` no more; the last one to leave takes the watch along."""
        listeners = self._listeners.get(watch)
        if listeners is None:
            return  # the watched thing was deleted: the kernel removed the watch
        listeners.discard(listener)
        if not listeners:
            del self._listeners[watch]
            self._libc.inotify_rm_watch(self._descriptor, watch)

    def dispatch(self) -> None:
        """Read all there is and call the listeners, each once for each entry that changed."""
        changed: dict[tuple[int, str], None] = {}
        lost = False
        while data := self._read():
            for watch, mask, name in parse_events(data):
                if mask & Change.OVERFLOW:
                    lost = True
                elif mask & Change.IGNORED:
                    self._forget(watch, changed)
                else:
                    changed[watch, name] = None
        for watch, name in changed:
            for listener in tuple(self._listeners.get(watch, ())):
                listener(name)
        if lost:
            self._lost()

    def _forget(self, watch: int, changed: dict[tuple[int, str], None]) -> None:
        """The kernel removed a watch: its thing is gone. Tell those who watched it, a last time."""
        for name in [name for number, name in changed if number == watch]:
            del changed[watch, name]
        for listener in self._listeners.pop(watch, ()):
            listener("")

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Stop watching everything."""
        os.close(self._descriptor)
        self._listeners.clear()


def watch_files(
    watcher: Watcher, paths: Iterable[Path], touched: Callable[[], None]
) -> list[tuple[int, Listener]]:
    """Call `touched` when any of these files changes or another file takes its place.

    Watched are the file, and the folder entries that lead to it: its own and every symbolic link on the way.
    Remove each (watch, listener) of the result when it is over.
    """
    watches: list[tuple[int, Listener]] = []

    def add(path: Path, mask: Change, listener: Listener) -> None:
        watch = watcher.add(path, mask, listener)
        if watch is not None:
            watches.append((watch, listener))

    def on_entry(wanted: str, name: str) -> None:
        if name in ("", wanted):
            touched()

    for path in paths:
        for folder, name in _entries_on_the_way(path):
            add(folder, FOLDER, partial(on_entry, name))
        add(path.resolve(), FILE, lambda _name: touched())
    return watches


def _entries_on_the_way(path: Path) -> list[tuple[Path, str]]:
    """(folder, name) of each symbolic link in a path, and of what the path leads to."""
    current = Path(path.anchor)
    entries = []
    for part in path.parts[1:]:
        step = current / part
        if step.is_symlink():
            entries.append((current, part))
            step = step.resolve()
        current = step
    entries.append((current.parent, current.name))
    return entries


_ABSENT: Final = frozenset({2, 20, 40})  # ENOENT, ENOTDIR, ELOOP (a symbolic link)


def parse_events(data: bytes) -> list[tuple[int, int, str]]:
    """The (watch, mask, name) of each event in what was read from inotify. Pure."""
    events = []
    offset = 0
    while offset < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, offset)
        start = offset + _EVENT.size
        name = data[start : start + length].rstrip(b"\0")
        events.append((watch, mask, os.fsdecode(name)))
        offset = start + length
    return events


def _no_inotify(what: str) -> HostLacks:
    return HostLacks(
        Reason.KERNEL_UNSUPPORTED,
        f"{what}: {os.strerror(ctypes.get_errno())}",
        "Raise fs.inotify.max_user_watches and max_user_instances (sysctl), then start egsd again.",
    )
