"""The drift programs, as user space sees them: their pins beside the gate's, without bcc.

`DriftGate` reads what bpf/drift.bpf.c tells, and decides nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.errors import GateError
from egs_kernel.gate import drift_abi, libbpf
from egs_kernel.gate.ring import Ring
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.model import TaskIdentity

FOLDER: Final = "drift"
"""Their pins' folder in the gate's."""

TRACEPOINTS: Final = {
    "drift_call": "sys_exit",
    "drift_child": "task_newtask",
    "drift_exec": "sched_process_exec",
    "drift_move": "cgroup_attach_task",
}
"""Attached programs and where."""

MODULE_TRACEPOINTS: Final = {"drift_module": "module_load"}
"""The same where the kernel has modules."""

RINGS: Final = ("drift_grave", "drift_ordinary")

MAPS: Final = (
    "drift_configs",
    "drift_calls",
    "drift_objects",
    "drift_writers",
    "drift_rates",
    "drift_told",
    "drift_untold",
    "drift_failures",
    *RINGS,
)

_LOAD_ANEW: Final = "Run: egs gate unload && egs gate load"


class DriftCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Since the gate was loaded.

    Attributes:
        told: events by kind.
        untold: those beyond the rate of their process, and those that found no room.
        failures: what could not be read, looked up or written, by name.
        missed: runs of the programs that the kernel skipped.
    """

    told: dict[str, int]
    untold: dict[str, int]
    failures: dict[str, int]
    missed: int


class DriftGate:
    """The loaded drift programs. One reader at a time."""

    def __init__(self, pins: Path) -> None:
        """Open the pins below `pins`, the gate's folder; see `open`."""
        folder = pins / FOLDER
        fds = {name: libbpf.open_pin(folder / name) for name in MAPS}
        self._fds = list(fds.values())
        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        self._configs = libbpf.Map(fds["drift_configs"], u32, drift_abi.Config)
        self.calls = libbpf.Map(fds["drift_calls"], u32, drift_abi.Call)
        self.objects = libbpf.Map(fds["drift_objects"], drift_abi.ObjectKey, drift_abi.Object)
        self._writers = libbpf.Map(fds["drift_writers"], u32, u64)
        self._told = libbpf.CounterMap(fds["drift_told"])
        self._untold = libbpf.CounterMap(fds["drift_untold"])
        self._failures = libbpf.CounterMap(fds["drift_failures"])
        names = [name for name in (*TRACEPOINTS, *MODULE_TRACEPOINTS) if (folder / name).exists()]
        self.programs = {name: libbpf.open_pin(folder / name) for name in names}
        self._fds += self.programs.values()
        self._rings = [Ring(fds[name], libbpf.map_info(fds[name]).max_entries) for name in RINGS]
        self._poll = select.epoll()
        for name in RINGS:
            self._poll.register(fds[name], select.EPOLLIN)

    @classmethod
    def open(cls, pins: Path) -> DriftGate:
        """Open the drift programs of a loaded gate.

        Args:
            pins: the gate's folder.

        Raises:
            GateError: GATE_NOT_LOADED: the gate was loaded without them; GATE_VERSION_MISMATCH: with another version's;
                GATE_FAILED: it is not whole, or cannot be opened.
        """
        folder = pins / FOLDER
        if not (folder / "drift_configs").exists():
            raise GateError(
                Reason.GATE_NOT_LOADED,
                f"no drift programs are loaded ({folder} has none)",
                'See drift.events in egs.toml ("auto" or "required"), then run: egs gate unload && egs gate load',
            )
        try:
            gate = cls(pins)
        except OSError as error:
            reason = Reason.GATE_VERSION_MISMATCH if error.errno in _FOREIGN else Reason.GATE_FAILED
            raise GateError(reason, f"cannot open the drift programs: {error}", _LOAD_ANEW) from error
        config = gate._configs.get(ctypes.c_uint32(0))
        if config is None or config.abi_version != drift_abi.ABI_VERSION:
            found = 0 if config is None else config.abi_version
            gate.close()
            raise GateError(
                Reason.GATE_VERSION_MISMATCH,
                f"the drift programs speak ABI {found}, this version {drift_abi.ABI_VERSION}",
                _LOAD_ANEW,
            )
        return gate

    def fileno(self) -> int:
        """Readable while events wait."""
        return self._poll.fileno()

    def take(self, most: int) -> list[drift_abi.Event]:
        """Events that wait, in the order of their time, and their room is free again.

        Args:
            most: of each of the two kinds of rings; the rest waits on.
        """
        events: list[drift_abi.Event] = []
        for ring in self._rings:
            events += [drift_abi.Event.from_buffer_copy(data) for data in ring.take(most)]
            ring.release(ring.position)
        return sorted(events, key=lambda event: event.time)

    def trust(self, task: TaskIdentity) -> None:
        """What this process changes of the gate from now on is not told."""
        self._writers.put(ctypes.c_uint32(task.pid), ctypes.c_uint64(task.start_ticks))

    def distrust(self, pid: int) -> None:
        """Take that back."""
        self._writers.delete(ctypes.c_uint32(pid))

    def writers(self) -> dict[int, int]:
        """Process id → start in clock ticks of those whose changes are not told."""
        return {key.value: start.value for key, start in self._writers.items()}

    def counters(self) -> DriftCounters:
        """What was told, and what was not."""
        failures = self._failures.read()
        return DriftCounters(
            told=_by_kind(self._told.read()),
            untold=_by_kind(self._untold.read()),
            failures={failure.name.lower(): failures[failure] for failure in drift_abi.Failure},
            missed=sum(libbpf.program_info(fd).recursion_misses for fd in self.programs.values()),
        )

    def reset_counters(self) -> None:
        """Forget what was counted so far: the self-test is no history."""
        for counters in (self._told, self._untold, self._failures):
            counters.reset()

    def tags(self) -> dict[str, str]:
        """Program → the kernel's tag of its instructions, hex."""
        return {name: bytes(libbpf.program_info(fd).tag).hex() for name, fd in sorted(self.programs.items())}

    def close(self) -> None:
        """Let go of it; the programs stay loaded."""
        self._poll.close()
        for ring in self._rings:
            ring.close()
        for descriptor in self._fds:
            os.close(descriptor)


_FOREIGN: Final = frozenset({errno.EPROTO, errno.ENOENT})


def _by_kind(totals: list[int]) -> dict[str, int]:
    return {kind.name.lower(): totals[kind] for kind in drift_abi.Kind if totals[kind]}
