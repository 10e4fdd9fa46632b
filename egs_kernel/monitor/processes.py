"""One process as a sweep sees it, read out of /proc: each file once, and what cannot have changed not again."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egs_kernel.artifact.variables import loads_code
from egs_kernel.drift.states import VDSO, Executable, Mapping, ProcessState
from egs_kernel.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.drift.authorized import Authorized
    from egs_kernel.drift.baselines import Baseline
    from egs_kernel.drift.states import Opened
    from egs_kernel.model import FileIdentity
    from egs_kernel.monitor.files import Digests, Trust
    from egs_kernel.monitor.opened import Folder, Process

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_CODE: Final = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) (..x.) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+) *(.*)$", re.MULTILINE
)
_VDSO: Final = os.fsencode(VDSO)
_OF_THE_KERNEL: Final = (_VDSO, b"[vsyscall]", b"[uprobes]", b"[vvar]", b"[vvar_vclock]", b"[sigpage]")


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
            **_of_thread(process, status),
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

    def other_threads(self, process: Process, state: ProcessState) -> list[ProcessState]:
        """The process as its other threads have it, where that is not what `state` says.

        Each thread has credentials, a tracer, filters, namespaces and a root of its own.

        Args:
            process: open.
            state: what was read of it.
        """
        if state.threads == 1:
            return []
        found = set()
        with contextlib.suppress(ProcessLookupError):  # of one that ended, what was read so far
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    own = _of_thread(thread, thread.read("status"))
                    found.add(msgspec.structs.replace(state, **own))
        return list(found - {state})

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
        replaced = deleted and not plain.startswith("/memfd:") and process.has(f"root{plain}")
        return Executable(path=path, inode=identity.inode, digest=digest, deleted=deleted, replaced=replaced)

    def _code(self, process: Process, *, closely: bool) -> tuple[Mapping, ...]:
        mappings = _CODE.findall(process.read("maps"))
        written = _written(process, mappings) if closely else frozenset()
        found = {}
        for _place, _rights, inode, name in mappings:
            if name in _OF_THE_KERNEL and name not in written:
                continue
            path = os.fsdecode(name)
            number = int(inode)
            of_file = path.startswith("/")
            found[path, number] = Mapping(
                path=path if number or of_file or name in written else "",
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
    """Files, or the kernel's, whose code in memory is not theirs any more: a private copy was made of a page that nobody should write."""
    content = b"\n" + process.read("smaps")
    found = set()
    for place, rights, inode, name in mappings:
        unchanging = (rights.startswith(b"r-x") and inode != b"0") or name == _VDSO
        start = content.find(b"\n" + place + b" ") if unchanging else -1
        if start < 0:
            continue
        start = content.find(b"\nAnonymous:", start)
        if int(content[start + 11 : content.index(b"kB", start)]) > 0:
            found.add(name)
    return frozenset(found)


def _of_thread(thread: Folder, status: bytes) -> dict[str, Any]:
    """What each thread has for itself, as fields of a state."""
    return {
        "uids": _four(status, b"\nUid:"),
        "gids": _four(status, b"\nGid:"),
        "groups": tuple(map(int, _field(status, b"\nGroups:").split())),
        "capabilities": int(_field(status, b"\nCapEff:"), 16),
        "tracer": _tracer(status),
        "no_new_privs": _field(status, b"\nNoNewPrivs:") == b"1",
        "seccomp_mode": int(_field(status, b"\nSeccomp:")),
        "seccomp_filters": int(_field(status, b"\nSeccomp_filters:")),
        "namespaces": namespaces(thread),
        "root": thread.root(),
    }


def namespaces(process: Folder) -> tuple[tuple[str, int], ...]:
    """Kind and inode of each of the namespaces of a process or a thread."""
    found = []
    for kind in NAMESPACES:
        said = process.link(f"ns/{kind}")
        if said:
            found.append((kind, int(said[said.index("[") + 1 : -1])))
    return tuple(found)


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


def _tracer(status: bytes) -> int:
    """The process that traces; the kernel names its thread. One that is gone by now keeps that name."""
    thread = int(_field(status, b"\nTracerPid:"))
    if not thread:
        return 0
    try:
        return int(_field(Path(f"/proc/{thread}/status").read_bytes(), b"\nTgid:"))
    except OSError:
        return thread


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
