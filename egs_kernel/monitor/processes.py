"""One process, read out of /proc: each file once, through the folder's descriptor, which no other process ever is behind."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from typing import TYPE_CHECKING, Final, Self

from egs_kernel.artifact.variables import loads_code
from egs_kernel.drift.states import Executable, Mapping, ProcessState
from egs_kernel.errors import GateError
from egs_kernel.processes import parse_start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.drift.authorized import Authorized
    from egs_kernel.drift.baselines import Baseline
    from egs_kernel.drift.states import Opened
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.model import FileIdentity
    from egs_kernel.monitor.files import Digests, Trust

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_CHUNK: Final = 1 << 16
_TICK: Final = 10_000_000
"""Nanoseconds of a clock tick (1/100 s, whatever the kernel's HZ)."""
_PAGE: Final = resource.getpagesize()
_CODE: Final = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) (..x.) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+) *(.*)$", re.MULTILINE
)
_OF_THE_KERNEL: Final = (b"[vdso]", b"[vsyscall]", b"[uprobes]", b"[vvar]", b"[vvar_vclock]", b"[sigpage]")


class Process:
    """An open /proc/PID that is the process of a task of the gate's table; close it.

    Raises:
        ProcessLookupError: it is gone, or another one bears its number.
    """

    def __init__(self, task: GovernedTask) -> None:
        try:
            self.folder = os.open(f"/proc/{task.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ProcessLookupError(f"process {task.pid} is gone") from error
        self.task = task
        try:
            stat = self.read("stat")
        except ProcessLookupError:
            self.close()
            raise
        self.start_ticks = parse_start_ticks(stat)
        self.parent = int(stat[stat.rindex(b")") + 2 :].split(None, 2)[1])
        if task.born and abs(task.born // _TICK - self.start_ticks) > 1:
            self.close()
            raise ProcessLookupError(f"process {task.pid} is another one")

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
            raise ProcessLookupError(f"process {self.task.pid} is gone: {name}: {error.strerror}") from error
        return b"".join(parts)

    def link(self, name: str) -> str:
        """What one of its links says; "": nothing."""
        try:
            return os.readlink(name, dir_fd=self.folder)
        except OSError:
            return ""


class Reader:
    """Reads processes, and keeps of each what need not be read again.

    Args:
        identify: the identity of an open file, as the gate sees it.
        digests: of files.
        trust: in files.
        sockets: what a process listens on and is connected to.
    """

    def __init__(
        self,
        identify: Callable[[int], FileIdentity],
        digests: Digests,
        trust: Trust,
        sockets: Callable[[Process], tuple[Opened, ...]],
    ) -> None:
        self._identify = identify
        self._digests = digests
        self._trust = trust
        self._sockets = sockets
        self._executables: dict[tuple[int, int, int], tuple[tuple[int, ...], Executable | None]] = {}
        self._variables: dict[tuple[int, int, int], tuple[int, tuple[str, ...]]] = {}

    def keep(self, live: set[int]) -> None:
        """Forget every other process.

        Args:
            live: process ids.
        """
        self._executables = {key: found for key, found in self._executables.items() if key[0] in live}
        self._variables = {key: found for key, found in self._variables.items() if key[0] in live}

    def look(
        self, process: Process, known: Baseline | None, said: Authorized | None, *, closely: bool = False
    ) -> ProcessState:
        """Read a process.

        Args:
            process: open.
            known: what it was executed as.
            said: what authorizes it; decides what else has to be read.
            closely: code in memory is compared with its files, too, and the environment is read again.

        Raises:
            ProcessLookupError: it is gone, or ending.
        """
        task = process.task
        status = process.read("status")
        key = (task.pid, process.start_ticks, task.execution)
        limits = None if said is None else said.resources
        limited = limits is not None and bool(limits.open_files or limits.cpu_seconds)
        files, seconds = _limits(task.pid) if limited else (None, None)
        watched = said is not None and (said.network is not None or said.drift is not None)
        return ProcessState(
            time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            pid=task.pid,
            start_ticks=process.start_ticks,
            execution=task.execution,
            inherited=task.inherited,
            uids=_four(status, b"\nUid:"),
            gids=_four(status, b"\nGid:"),
            capabilities=int(_field(status, b"\nCapEff:"), 16),
            tracer=int(_field(status, b"\nTracerPid:")),
            no_new_privs=_field(status, b"\nNoNewPrivs:") == b"1",
            seccomp_mode=int(_field(status, b"\nSeccomp:")),
            seccomp_filters=int(_field(status, b"\nSeccomp_filters:")),
            namespaces=namespaces(process),
            root=_root(process),
            cgroup=_cgroup(process.read("cgroup")),
            executable=self._executable(process, key, known),
            code=self._code(process, closely=closely),
            variables=self._environment(process, key, closely=closely),
            sockets=self._sockets(process) if watched else None,
            resident=int(_field(status, b"\nVmRSS:").removesuffix(b" kB") or 0) * 1024,
            threads=int(_field(status, b"\nThreads:")),
            open_files=files,
            processor_seconds=seconds,
        )

    def _executable(
        self, process: Process, key: tuple[int, int, int], known: Baseline | None
    ) -> Executable | None:
        try:
            status = os.stat("exe", dir_fd=process.folder)
        except OSError:
            return None
        state = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size, status.st_nlink)
        before = self._executables.get(key)
        if before is not None and before[0] == state:
            return before[1]
        found = self._read_executable(process, known)
        self._executables[key] = state, found
        return found

    def _read_executable(self, process: Process, known: Baseline | None) -> Executable | None:
        path = process.link("exe")
        try:
            descriptor = os.open("exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process.folder)
        except OSError:
            return None
        try:
            identity = self._identify(descriptor)
            same = known is not None and identity == known.event.file
            digest = "" if same else self._digests.of_open(descriptor) or ""
        except GateError:
            return None
        finally:
            os.close(descriptor)
        plain = path.removesuffix(" (deleted)")
        deleted = plain != path
        replaced = (
            deleted
            and not plain.startswith("/memfd:")
            and os.path.lexists(f"/proc/{process.task.pid}/root{plain}")
        )
        return Executable(path=path, inode=identity.inode, digest=digest, deleted=deleted, replaced=replaced)

    def _code(self, process: Process, *, closely: bool) -> tuple[Mapping, ...]:
        mappings = [each for each in _CODE.findall(process.read("maps")) if each[3] not in _OF_THE_KERNEL]
        written = _written(process, mappings) if closely else frozenset()
        found = {}
        for _place, _rights, inode, name in mappings:
            path = os.fsdecode(name)
            number = int(inode)
            of_file = path.startswith("/")
            found[path, number] = Mapping(
                path=path if number or of_file else "",
                inode=number,
                trusted=number != 0 and of_file and self._trust.is_trusted(path, number),
                written=name in written,
            )
        return tuple(found.values())

    def _environment(self, process: Process, key: tuple[int, int, int], *, closely: bool) -> tuple[str, ...]:
        known = self._variables.get(key)
        if known is None or closely:
            try:
                content = process.read("environ")
            except ProcessLookupError:
                content = b""
            if known is None or known[0] != hash(content):
                known = self._variables[key] = hash(content), _code_variables(content)
        return known[1]


def _code_variables(environment: bytes) -> tuple[str, ...]:
    names = {os.fsdecode(pair.partition(b"=")[0]) for pair in environment.split(b"\0") if pair}
    return tuple(sorted(name for name in names if loads_code(name)))


def _written(process: Process, mappings: list[tuple[bytes, bytes, bytes, bytes]]) -> frozenset[bytes]:
    """Files whose code in memory is not theirs any more: a private copy was made of a page that nobody should write."""
    content = b"\n" + process.read("smaps")
    found = set()
    for place, rights, inode, name in mappings:
        start = content.find(b"\n" + place + b" ") if rights.startswith(b"r-x") and inode != b"0" else -1
        if start < 0:
            continue
        start = content.find(b"\nAnonymous:", start)
        if int(content[start + 11 : content.index(b"kB", start)]) > 0:
            found.add(name)
    return frozenset(found)


def namespaces(process: Process) -> tuple[tuple[str, int], ...]:
    """Kind and inode of each of a process's namespaces."""
    found = []
    for kind in NAMESPACES:
        said = process.link(f"ns/{kind}")
        if said:
            found.append((kind, int(said[said.index("[") + 1 : -1])))
    return tuple(found)


def _root(process: Process) -> tuple[int, int]:
    try:
        status = os.stat("root", dir_fd=process.folder)
    except OSError as error:
        raise ProcessLookupError(f"process {process.task.pid} is gone") from error
    return status.st_dev, status.st_ino


def _cgroup(content: bytes) -> str:
    found = content.find(b"0::") if content.startswith(b"0::") else content.find(b"\n0::") + 1
    line = content[found:].partition(b"\n")[0] if found or content.startswith(b"0::") else b""
    return os.fsdecode(line.removeprefix(b"0::")).removesuffix(" (deleted)")


def _field(status: bytes, name: bytes) -> bytes:
    """The value of a field. The process chooses its name, and the kernel escapes the newline in it."""
    start = status.find(name)
    if start < 0:
        return b"0"
    start += len(name)
    return status[start : status.find(b"\n", start)].strip()


def _four(status: bytes, name: bytes) -> tuple[int, int, int, int]:
    first, second, third, fourth = _field(status, name).split()
    return int(first), int(second), int(third), int(fourth)


def _limits(pid: int) -> tuple[int | None, int | None]:
    found: list[int | None] = []
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):
        hard: int = resource.RLIM_INFINITY
        with contextlib.suppress(OSError):
            hard = resource.prlimit(pid, kind)[1]
        found.append(None if hard == resource.RLIM_INFINITY else hard)
    return found[0], found[1]
