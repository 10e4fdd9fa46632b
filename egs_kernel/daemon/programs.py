"""Finding and measuring the programs that artifacts name or launchers ask for; hashing is done in threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from egs_kernel.artifact.interpreters import SCRIPT_HEAD, program_kind, script_interpreter
from egs_kernel.errors import EgsError, Refused
from egs_kernel.filesystems import require_tracked
from egs_kernel.measure import Opened, measure
from egs_kernel.model import FileIdentity, Measurement, ProgramKind, Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Statement, Subject

_REMEMBERED: Final = 4096
_THREADS: Final = 2
"""For launches, and as many again for what stands: who asks for launches cannot delay the other."""
MAX_PROGRAM: Final = 1 << 30
"""Bytes. A larger file is not hashed: anybody can make one, a hole costs no disk."""

A = TypeVar("A")
T = TypeVar("T")

Identify = Callable[[int], FileIdentity]


@dataclass(frozen=True)
class Program:
    """A measured program. `path` is where the kernel says it is, symbolic links resolved."""

    path: str
    measurement: Measurement
    kind: ProgramKind


class Surveyor:
    """Measures files, and remembers the measurement of a file as long as it is untouched.

    "Untouched" is exactly what the gate compares at the exec, so a remembered measurement is as good as a new one.
    """

    def __init__(
        self, identify: Identify, opened: Opened, trusted_filesystems: Callable[[], frozenset[str]]
    ) -> None:
        self._identify = identify
        self._opened = opened
        self._trusted = trusted_filesystems
        self._asked = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="egs-measure")
        self._standing = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="egs-standing")
        self._remembered: dict[FileIdentity, Measurement] = {}
        self._lock = threading.Lock()

    async def program_at(self, path: str) -> Program:
        """Measure the program at an absolute path.

        Raises:
            EgsError: there is none, it is not a regular file, or it changes all the time.
        """
        return await self._in_thread(self._standing, self._program_at, path)

    async def program_of(self, descriptor: int) -> Program:
        """Measure the program behind a descriptor that somebody opened with O_PATH.

        Raises:
            EgsError: it is not a regular file, or it changes all the time.
        """
        return await self._in_thread(self._asked, self._program_of, descriptor)

    async def interpreter_of(self, descriptor: int) -> tuple[Program, tuple[str, ...]]:
        """What the kernel executes for the script behind a descriptor, and what it puts before the script's name.

        Raises:
            EgsError: the script names no interpreter, or one that cannot be measured.
        """
        return await self._in_thread(self._asked, self._interpreter_of, descriptor)

    async def subjects_of(self, statement: Statement) -> dict[str, Measurement]:
        """What the scripts and libraries of an artifact were measured as, by path, as far as they are there."""
        names = [subject.name for subject in statement.code]
        return await self._in_thread(self._standing, self._measure_all, names) if names else {}

    async def children_of(self, statement: Statement) -> tuple[Measurement, ...]:
        """The programs that an artifact lists as children, when it lists what may be started.

        Raises:
            EgsError: one is missing, another one by now, or takes code from its arguments, which nobody bound.
        """
        constraints = statement.predicate.constraints
        if constraints is None or not constraints.lists_children:
            return ()
        return tuple([await self._child(subject) for subject in statement.children])

    async def _child(self, subject: Subject) -> Measurement:
        program = await self.program_at(subject.name)
        if program.kind is not ProgramKind.NATIVE:
            raise Refused(
                Reason.PROGRAM_UNBOUND,
                f"the child {subject.name} takes code from its arguments, and they are not bound",
                "Have it started by an artifact of its own: children = any-authorized.",
            )
        if program.measurement.digest != subject.digest.sha256:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"the child {subject.name} is another file than the one that was signed",
                "Have an artifact issued for what is there now.",
            )
        return program.measurement

    def close(self) -> None:
        """Wait for measurements under way and end the threads."""
        self._asked.shutdown(cancel_futures=True)
        self._standing.shutdown(cancel_futures=True)

    @staticmethod
    async def _in_thread(pool: ThreadPoolExecutor, function: Callable[[A], T], argument: A) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, argument)

    def _program_at(self, path: str) -> Program:
        descriptor = _open_path(path)
        try:
            return self._program_of(descriptor)
        finally:
            os.close(descriptor)

    def _program_of(self, descriptor: int) -> Program:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) and not mode & 0o111:  # else anyone could have us hash what they may not read
            raise Refused(Reason.NOT_PERMITTED, f"{path} is not executable", f"Run: chmod +x {path}")
        return self._survey(descriptor, path)

    def _survey(self, descriptor: int, path: str) -> Program:
        reading = _open_for_reading(descriptor, path)
        try:
            require_tracked(reading, path, self._trusted())
            _require_small(reading, path)
            measurement = self._measure(reading)
            kind = program_kind(path, partial(os.pread, reading))
        except OSError as error:
            raise Refused(
                Reason.NOT_FOUND, f"{path} cannot be read: {error.strerror}", "Check its disk."
            ) from error
        finally:
            os.close(reading)
        return Program(path, measurement, kind)

    def _interpreter_of(self, descriptor: int) -> tuple[Program, tuple[str, ...]]:
        reading = _open_for_reading(descriptor, "the script")
        try:
            words = script_interpreter(os.pread(reading, SCRIPT_HEAD, 0))
        except OSError as error:
            raise Refused(Reason.NOT_FOUND, f"the script cannot be read: {error.strerror}") from error
        finally:
            os.close(reading)
        return self._program_at(words[0]), words

    def _measure_all(self, names: list[str]) -> dict[str, Measurement]:
        """What cannot be measured is left out: the verifier refuses an artifact that names it."""
        found = {}
        for name in names:
            with contextlib.suppress(EgsError):
                found[name] = self._code_at(name)
        return found

    def _code_at(self, path: str) -> Measurement:
        """Whoever signed named it: it need not be executable."""
        descriptor = _open_path(path)
        try:
            return self._survey(descriptor, path).measurement
        finally:
            os.close(descriptor)

    def _measure(self, reading: int) -> Measurement:
        identity = self._identify(reading)
        known = self._remembered.get(identity)
        if known is not None and self._opened(identity) < known.time:
            return known
        measurement = measure(reading, self._identify, opened=self._opened)
        with self._lock:
            while len(self._remembered) >= _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[measurement.identity] = measurement
        return measurement


def digests_of(measured: Mapping[str, Measurement]) -> tuple[tuple[str, str], ...]:
    """The (path, SHA-256) of measured files: what an intent says of them."""
    return tuple((path, file.digest) for path, file in measured.items())


def _require_small(reading: int, path: str) -> None:
    size = os.fstat(reading).st_size
    if size > MAX_PROGRAM:
        raise Refused(
            Reason.PROGRAM_TOO_LARGE,
            f"{path} has {size} bytes; at most {MAX_PROGRAM} are measured",
            "Authorize a smaller program that loads the rest as data.",
        )


def _open_path(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"{path} cannot be opened: {error}",
            "Install the program where the artifact names it.",
        ) from error


def _open_for_reading(descriptor: int, path: str) -> int:
    """Open what an O_PATH descriptor refers to. Only then: opening a device or a pipe can do things."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Refused(Reason.NOT_FOUND, f"{path} is not a regular file", "Name a program.")
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(Reason.NOT_FOUND, f"{path} cannot be read: {error.strerror}") from error
