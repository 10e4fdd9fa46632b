"""The gate's drift events as observations: what governed processes do and what is done to them, and to the gate itself."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.observations import HostEvent, Lost, ProcessEvent
from egs_kernel.findings import Finding
from egs_kernel.gate.drift_abi import Event, ExecFlag, Kind
from egs_kernel.gate.events import file_identity
from egs_kernel.gate.inventory import WRITERS
from egs_kernel.model import FileIdentity, TaskIdentity
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.drift.observations import Observation
    from egs_kernel.gate.drift import DriftGate

BATCH: Final = 512
"""Events of each ring that one `read` takes; the rest keeps it readable."""
_TICK: Final = 10_000_000
_SECOND: Final = 1_000_000_000
_REMEMBERED: Final = 1024
_NO_FILE: Final = FileIdentity(0, 0, 0, 0, 0, 0)
_NAMESPACES: Final = {
    0x80: "time",
    0x20000: "mnt",
    0x2000000: "cgroup",
    0x4000000: "uts",
    0x8000000: "ipc",
    0x10000000: "user",
    0x20000000: "pid",
    0x40000000: "net",
}
_COMMANDS: Final = {
    2: "map update",
    3: "map delete",
    10: "program run",
    21: "map take",
    22: "map freeze",
    25: "map batch take",
    26: "map batch update",
    27: "map batch delete",
}


class DriftEvents:
    """Reads the drift programs' ring buffers.

    Args:
        gate: the drift programs; closed with this.
        daemon: who is egsd now: it writes to the gate all the time. Asked when somebody does that is not known.
        proc: where procfs is mounted.
    """

    name = "drift"

    def __init__(
        self, gate: DriftGate, daemon: Callable[[], TaskIdentity | None], proc: Path = Path("/proc")
    ) -> None:
        self._gate = gate
        self._daemon = daemon
        self._proc = proc
        self._since = _now()
        self._untold = self._count()
        self._anonymous: dict[tuple[int, int], tuple[int, int]] = {}
        gate.trust(TaskIdentity(os.getpid(), start_ticks(os.getpid())))

    def fileno(self) -> int:
        """Readable while events wait."""
        return self._gate.fileno()

    def read(self) -> Iterator[Observation]:
        """What happened, in the order in which it did."""
        for event in self._gate.take(BATCH):
            yield from self._observations(event)

    def sweep(self) -> Iterator[Observation]:
        """What could not be told: beyond a process's rate, without room, or skipped by the kernel."""
        untold = self._count()
        if untold > self._untold:
            yield Lost(source=self.name, time=_now(), count=untold - self._untold)
        self._untold = untold

    def close(self) -> None:
        """Let go of it."""
        self._gate.distrust(os.getpid())
        self._gate.close()

    def _count(self) -> int:
        """Without changes of the gate: of whoever makes so many the first are told, and a daemon that starts makes them."""
        counters = self._gate.counters()
        untold = {
            kind: count for kind, count in counters.untold.items() if kind != Kind.GATE_WRITTEN.name.lower()
        }
        return sum(untold.values()) + counters.missed

    def _observations(self, event: Event) -> Iterator[Observation]:
        kind = Kind(event.kind)
        if kind is Kind.GATE_WRITTEN:
            yield from self._of_gate(event)
        elif kind is Kind.MODULE:
            yield self._of_host(event, Finding.MODULE_LOADED, _text(event.name), "loaded")
        elif event.execution:
            yield from self._of_execution(kind, event)

    def _of_execution(self, kind: Kind, event: Event) -> Iterator[Observation]:
        """Of a process that has executed something under the gate: of any other nothing was authorized, as of a launcher."""
        if kind in (Kind.CHILD, Kind.CHILD_APART):
            yield from self._of_child(event)
        elif kind is Kind.EXEC:
            yield from self._of_exec(event)
        elif kind is Kind.CREDENTIALS:
            yield from self._of_credentials(event)
        elif kind is Kind.CODE_PROTECTED:
            yield self._of_protected(event)
        else:
            finding, name = _simple(kind, event)
            yield self._of(event, finding, name)

    def _of(self, event: Event, finding: Finding, name: str, number: int | None = None) -> ProcessEvent:
        file = file_identity(event.file)
        return ProcessEvent(
            source=self.name,
            time=event.time,
            suspicion=finding,
            pid=event.pid,
            start_ticks=event.started // _TICK,
            execution=event.execution,
            by=event.by,
            file=None if file == _NO_FILE else file,
            name=name,
            number=event.number if number is None else number,
        )

    def _of_host(self, event: Event, finding: Finding, subject: str, now: str) -> HostEvent:
        who = f"by process {event.by} ({_text(event.comm)}, user {event.uid})"
        return HostEvent(
            source=self.name, time=event.time, suspicion=finding, subject=subject, now=f"{now} {who}"
        )

    def _of_gate(self, event: Event) -> Iterator[Observation]:
        """What egsd and this process write is their work; what was before, nobody watched, and that is told."""
        subject = _text(event.name)
        if event.time < self._since or self._is_known(event.by, subject):
            return
        command = _COMMANDS.get(event.number, f"bpf command {event.number}")
        yield self._of_host(event, Finding.GATE_TAMPERED, subject, command)

    def _is_known(self, pid: int, subject: str) -> bool:
        """Whether this process may write there. A daemon that started since is trusted from now on."""
        if pid == os.getpid():
            return True
        daemon = self._daemon()
        if subject == WRITERS:
            self._drop_strangers(daemon)
            return False
        if daemon is None or daemon.pid != pid:
            return False
        self._gate.trust(daemon)
        return True

    def _drop_strangers(self, daemon: TaskIdentity | None) -> None:
        """Only this process says who is trusted."""
        known = {os.getpid(), 0 if daemon is None else daemon.pid}
        for pid in self._gate.writers().keys() - known:
            self._gate.distrust(pid)

    def _of_child(self, event: Event) -> Iterator[Observation]:
        yield self._of(event, Finding.CHILD_UNEXPECTED, "", 0)
        if event.number:
            yield self._of(event, Finding.NAMESPACE_CHANGED, _namespaces(event.number))
        if event.address:
            yield self._of(event, Finding.CGROUP_LEFT, self._cgroup(event.pid), event.address)

    def _of_exec(self, event: Event) -> Iterator[Observation]:
        """The exec itself is the gate's to decide and egsd's to record."""
        if event.number & (ExecFlag.MEMFD | ExecFlag.NAMELESS):
            yield self._of(event, Finding.MEMFD_EXECUTED, _text(event.name))
        if event.uid != 0:
            yield from self._raised(event)

    def _of_credentials(self, event: Event) -> Iterator[Observation]:
        """Those that are a user's own from the beginning, the baseline knows: then somebody has to look."""
        raised = list(self._raised(event))
        yield from raised or [self._of(event, Finding.CREDENTIALS_RAISED, "", event.euid)]

    def _raised(self, event: Event) -> Iterator[Observation]:
        """What a user's own process may not become. Whoever has it from the beginning, the baseline knows."""
        if 0 in (event.uid, event.euid) or (event.egid == 0 and event.gid != 0):
            ids = f"user {event.uid}, effective {event.euid}, group {event.egid}"
            yield self._of(event, Finding.CREDENTIALS_RAISED, ids, event.euid)
        if event.permitted and event.euid != 0:
            yield self._of(
                event, Finding.CAPABILITIES_RAISED, f"permitted {event.permitted:#x}", event.permitted
            )

    def _of_protected(self, event: Event) -> ProcessEvent:
        """Memory that was made code: what it is of says the process's map, if it is still there.

        Compilers at run time do this all the time. Of a process that has just made code of no file the map is not read
        again within a second: it is the same observation once more.
        """
        process = (event.pid, event.started)
        second, address = self._anonymous.get(process, (-1, 0))
        if second != event.time // _SECOND:
            path = self._mapped(event)
            if path:
                return self._of(event, Finding.CODE_MAPPED, path)
            if len(self._anonymous) >= _REMEMBERED:
                self._anonymous.clear()
            address = event.address
            self._anonymous[process] = (event.time // _SECOND, address)
        return self._of(event, Finding.ANONYMOUS_CODE, f"{address:#x}", 0)

    def _mapped(self, event: Event) -> str:
        """The file of the memory at an event's address; "": none, or nobody can say any more.

        Where the first thread has ended, its map is empty, and those of the others are not.
        """
        folder = self._proc / str(event.pid)
        try:
            if start_ticks(event.pid) != event.started // _TICK:
                return ""
            for maps in (folder / "maps", *folder.glob("task/*/maps")):
                if lines := maps.read_text(errors="backslashreplace").splitlines():
                    return _file_at(event.address, lines)
        except (OSError, ProcessLookupError):
            pass  # it has ended
        return ""

    def _cgroup(self, pid: int) -> str:
        """Where a process is in the version 2 hierarchy; "": it has ended."""
        try:
            lines = (self._proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                return ""
            raise
        return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _simple(kind: Kind, event: Event) -> tuple[Finding, str]:
    """Kinds that say it all themselves."""
    return {
        Kind.TRACED: (Finding.TRACED, "ptrace"),
        Kind.MEMORY_OPENED: (Finding.MEMORY_WRITTEN, "/proc/PID/mem was opened for writing"),
        Kind.MEMORY_WRITTEN: (Finding.MEMORY_WRITTEN, "process_vm_writev"),
        Kind.NAMESPACE: (Finding.NAMESPACE_CHANGED, _namespaces(event.number)),
        Kind.ROOT: (Finding.ROOT_CHANGED, "chroot or pivot_root"),
        Kind.CODE_MAPPED: (Finding.CODE_MAPPED, _text(event.name)),
        Kind.CODE_ANONYMOUS: (
            Finding.ANONYMOUS_CODE,
            f"{event.address:#x}"
            if event.address
            else "all that it may read (personality), or shared memory",
        ),
        Kind.CGROUP: (Finding.CGROUP_LEFT, _text(event.name)),
    }[kind]


def _file_at(address: int, lines: list[str]) -> str:
    for line in lines:
        place, _, rest = line.partition(" ")
        first, _, end = place.partition("-")
        if int(first, 16) <= address < int(end, 16):
            path = (rest.split(maxsplit=4) + [""] * 5)[4].strip()
            return path if path.startswith("/") else ""
    return ""


def _namespaces(flags: int) -> str:
    return ", ".join(name for flag, name in _NAMESPACES.items() if flags & flag) or "setns"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
