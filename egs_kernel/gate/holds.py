"""Held processes: the marks in the gate's table, and the guards that make a mark binding (bpf/hold.bpf.c)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.errors import GateError, HostLacks
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.grants import artifact_key
from egs_kernel.gate.parts import GUARDS
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from egs_kernel.model import Grant


class HeldTask(msgspec.Struct, frozen=True):
    """A process that is stopped at its exec. `execution` is what it will be if it is let go."""

    pid: int
    execution: int
    slot: int


class HeldTasks:
    """What the gate holds; `Gate.holds` is the one instance.

    Args:
        pins: the gate's folder of pins, for the guards' links.
        programs: descriptors of the programs by name.
        tasks: the gate's table of governed processes.
    """

    def __init__(
        self, pins: Path, programs: Mapping[str, int], tasks: libbpf.Map[ctypes.c_uint32, abi.Task]
    ) -> None:
        self._pins = pins
        self._programs = programs
        self._tasks = tasks

    # -- the guards ------------------------------------------------------------------------------

    def missing_guards(self) -> list[str]:
        """The guards that are not attached."""
        return [name for name in GUARDS if not self._link(name).exists()]

    def attach_guards(self) -> None:
        """Attach and pin what is not attached yet.

        Raises:
            HostLacks: this kernel has no such tracepoint.
        """
        for name in self.missing_guards():
            if name not in self._programs:
                raise _cannot_hold(GUARDS[name], "does not let it guard")
            try:
                link = libbpf.attach_raw_tracepoint(GUARDS[name], self._programs[name])
            except OSError as error:
                why = "has none" if error.errno == errno.ENOENT else f"says {error.strerror}"
                raise _cannot_hold(GUARDS[name], why) from error
            try:
                libbpf.pin(link, self._link(name))
            except OSError as error:
                raise GateError(
                    Reason.GATE_FAILED,
                    f"the gate's guard {name} cannot be pinned: {error}",
                    "Run it as root.",
                ) from error
            finally:
                os.close(link)

    def give_up(self) -> None:
        """The guards do not guard on this kernel: nobody can attach them any more until the gate is loaded anew."""
        for name in GUARDS:
            (self._pins / name).unlink()

    def detach_guards(self) -> None:
        """Detach them. Only when nothing is held: a mark alone holds nobody."""
        for name in GUARDS:
            self._link(name).unlink(missing_ok=True)

    def _link(self, name: str) -> Path:
        return self._pins / f"link_{name}"

    # -- the held --------------------------------------------------------------------------------

    def held(self) -> list[HeldTask]:
        """Every process that is held."""
        return [
            HeldTask(key.value, task.execution, task.scope)
            for key, task in self._tasks.items()
            if task.flags & abi.TaskFlag.HELD
        ]

    def is_held(self, pid: int, execution: int) -> bool:
        """Whether this process is held, as this execution."""
        task = self._tasks.get(ctypes.c_uint32(pid))
        return task is not None and bool(task.flags & abi.TaskFlag.HELD) and task.execution == execution

    def let_go(self, pid: int, execution: int, grant: Grant) -> bool:
        """Take the mark away and continue the process; False when it is not held as that execution (any more).

        Args:
            pid: the process.
            execution: what it is from now on.
            grant: what permits it.
        """
        flags = abi.TaskFlag.REFUSE_ANONYMOUS_CODE if grant.refuse_anonymous_code else abi.TaskFlag(0)
        flags |= abi.TaskFlag.OWN_CHILDREN if grant.own_children else 0
        arguments = (pid, execution, artifact_key(grant.artifact_id), int(flags))
        with self._same_process(pid, execution) as pidfd:
            if pidfd is None or not libbpf.run_program(self._programs["release_hold"], arguments):
                return False
            return _signalled(pidfd, signal.SIGCONT)

    def end(self, pid: int, execution: int) -> bool:
        """Kill a held process; False when it is not held as that execution (any more)."""
        with self._same_process(pid, execution) as pidfd:
            return pidfd is not None and _signalled(pidfd, signal.SIGKILL)

    @contextlib.contextmanager
    def _same_process(self, pid: int, execution: int) -> Iterator[int | None]:
        """A pidfd of the held process: looked for in the table once the number cannot become another one's."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield pidfd if self.is_held(pid, execution) else None
        finally:
            os.close(pidfd)


def given_up(pins: Path) -> bool:
    """Whether a gate is loaded there that found, at its self-test, that it cannot hold."""
    return (pins / "gate_configs").exists() and not all((pins / name).exists() for name in GUARDS)


def _signalled(pidfd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False  # it ended this instant
    return True


def _cannot_hold(tracepoint: str, why: str) -> HostLacks:
    return HostLacks(
        Reason.KERNEL_UNSUPPORTED,
        f'on_missing = "hold" takes the tracepoint {tracepoint}: this kernel {why}',
        'Use on_missing = "kill" in every scope of egs.toml (holding takes an x86 kernel with CONFIG_TRACEPOINTS).',
    )
