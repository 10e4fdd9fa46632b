"""What the gate keeps of measured files: which of them an artifact names, and when they were last opened for writing.

Entries are written before the grant that needs them. Those that nothing needs any more stay until room is short, and
are swept then: a remembered measurement is worth having, and an entry of an artifact that is gone authorizes nothing.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Final

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.grants import artifact_key, raw_subject
from egs_kernel.gate.libbpf import BPF_NOEXIST, Map
from egs_kernel.model import FileIdentity, Grant, Measurement, Reason

SUBJECTS_CROWDED: Final = abi.SUBJECTS // 2
"""Entries of either map from which on it is swept before it takes more."""

_Name = tuple[int, int, int]
"""Artifact key, inode, device."""


class Subjects:
    """The files that artifacts name, each with what it was measured as.

    Args:
        table: the gate's map `subjects`.
        in_use: the keys of artifacts that a grant or a governed process has.
        crowded: entries from which on it is swept.
    """

    def __init__(
        self,
        table: Map[abi.SubjectKey, abi.Subject],
        in_use: Callable[[], set[int]],
        crowded: int = SUBJECTS_CROWDED,
    ) -> None:
        self._table = table
        self._in_use = in_use
        self._crowded = self._sweep_at = crowded
        self._lock = threading.Lock()
        self._known: set[_Name] = {(key.artifact, key.inode, key.device) for key, _ in table.walk()}

    def name(self, grant: Grant) -> None:
        """Write what a grant's artifact names; all of it, or nothing.

        Raises:
            GateError: no room for it.
        """
        artifact = artifact_key(grant.artifact_id)
        wanted = {(artifact, file.identity.inode, file.identity.device): file for file in grant.subjects}
        if len(self._known | wanted.keys()) > self._sweep_at:
            self.sweep()
        with self._lock:
            fresh = wanted.keys() - self._known
            try:
                for name, file in wanted.items():
                    self._write(name, file)
            except OSError as error:
                self._remove(fresh)
                raise _no_room(error) from error

    def sweep(self) -> None:
        """Forget the files of artifacts that neither a grant nor a governed process has."""
        in_use = self._in_use()
        with self._lock:
            self._remove({name for name in self._known if name[0] not in in_use})
            self._sweep_at = max(self._crowded, min(abi.SUBJECTS, 2 * len(self._known)))

    def files(self) -> set[tuple[int, int]]:
        """Inode and device of every file that is named. For any thread."""
        with self._lock:
            return {(inode, device) for _, inode, device in self._known}

    def _write(self, name: _Name, file: Measurement) -> None:
        key = _subject_key(name)
        present = self._table.get(key)
        if present is None or present.measured <= file.time:  # else somebody looked later
            self._table.put(key, raw_subject(file))
        self._known.add(name)

    def _remove(self, names: set[_Name]) -> None:
        for name in names:
            self._table.delete(_subject_key(name))
        self._known -= names


class Openings:
    """When measured files were last opened for writing. Any thread may ask.

    Args:
        table: the gate's map `measured_files`.
        named: inode and device of the files that the gate needs it of.
        crowded: entries from which on it is swept.
    """

    def __init__(
        self,
        table: Map[abi.FileKey, ctypes.c_uint64],
        named: Callable[[], set[tuple[int, int]]],
        crowded: int = SUBJECTS_CROWDED,
    ) -> None:
        self._table = table
        self._named = named
        self._crowded = self._sweep_at = crowded
        self._lock = threading.Lock()
        self._asked = {(key.inode, key.device): None for key, _ in table.walk()}
        """In the order in which they were asked for."""

    def last(self, file: FileIdentity) -> int:
        """When a file may last have been opened for writing, CLOCK_BOOTTIME nanoseconds; from now on that is noted.

        On the tier `tracepoint` nobody notes it: the time is that of the first question.

        Raises:
            GateError: no room for another file.
        """
        name = (file.inode, file.device)
        key = abi.FileKey(inode=file.inode, device=file.device)
        with self._lock:
            found = self._table.get(key)
            if found is None:
                if len(self._asked) >= self._sweep_at:
                    self._sweep()
                found = ctypes.c_uint64(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
                try:
                    self._table.put(key, found, BPF_NOEXIST)
                except OSError as error:
                    raise _no_room(error) from error
            self._asked.pop(name, None)
            self._asked[name] = None
            return int(found.value)

    def _sweep(self) -> None:
        """Forget the half that was not asked for longest, but for what the gate needs."""
        named = self._named()
        for name in list(self._asked)[: len(self._asked) // 2]:
            if name not in named:
                inode, device = name
                self._table.delete(abi.FileKey(inode=inode, device=device))
                del self._asked[name]
        self._sweep_at = max(self._crowded, min(abi.SUBJECTS, 2 * len(self._asked)))


def _subject_key(name: _Name) -> abi.SubjectKey:
    artifact, inode, device = name
    return abi.SubjectKey(artifact=artifact, inode=inode, device=device)


def _no_room(error: OSError) -> GateError:
    return GateError(
        Reason.GATE_FAILED,
        f"the gate has no room for another measured file: {error}",
        "Remove artifacts that are not needed.",
    )
