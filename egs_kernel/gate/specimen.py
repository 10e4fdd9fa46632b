"""The self-test's specimen: a process that executes a known program when it is told to, and what is compared."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn, Self

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.views import Reading
from egs_kernel.model import ExecEvent, GateEvent, Grant, Reason, TaskIdentity
from egs_kernel.processes import start_ticks

PROGRAM: Final = "/bin/echo"
ARGV: Final = ("egs self-test", "", "ümlaut", "x" * 600)
"""An empty argument, one that is not ASCII, and more than fits a small event."""
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "EGS_SELF_TEST": "y" * 5000, "EMPTY": ""}
"""One value longer than the gate looks at in one piece, and an empty one."""
SHELL: Final = "/bin/sh"
EXIT_CODE: Final = 7
GRANTED: Final = ("egs self-test", "-c", f"echo ran; exit {EXIT_CODE}")
TIMEOUT_SECONDS: Final = 20
_LOST: Final = 120
REFUSED: Final = 121
"""Exit codes of a specimen that could not execute: for any reason; because it was not permitted."""


class Child:
    """A process that waits to be told to execute the known program."""

    def __init__(
        self,
        prepare: Callable[[], object] = lambda: None,
        before_exec: Callable[[], None] = lambda: None,
        fork: Callable[[], int] = os.fork,
        command: tuple[str, ...] = (PROGRAM, *ARGV),
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        ready_read, ready_write = os.pipe()
        self._go_read, self._go_write = os.pipe()
        self._output, output = os.pipe()
        self._reaped = self._told = False
        self.pid = fork()
        if self.pid == 0:
            self._execute(prepare, before_exec, command, environment, ready_write, output)
        os.close(ready_write)
        os.close(output)
        os.close(self._go_read)
        if os.read(ready_read, 1) != b"1":
            fail("the self-test's child did not start")
        os.close(ready_read)

    def _execute(  # noqa: PLR0913, PLR0917 - what __init__ was given
        self,
        prepare: Callable[[], object],
        before_exec: Callable[[], None],
        command: tuple[str, ...],
        environment: Mapping[str, str],
        ready: int,
        output: int,
    ) -> None:
        try:
            signal.alarm(TIMEOUT_SECONDS)
            os.close(self._go_write)
            os.dup2(output, 1)
            prepare()
            os.write(ready, b"1")
            os.read(self._go_read, 1)
            before_exec()
            os.execve(command[0], command[1:], environment)
        except PermissionError:
            os._exit(REFUSED)
        finally:
            os._exit(_LOST)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind, whatever went wrong."""
        os.close(self._go_write)
        os.close(self._output)
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _execute_now(self) -> None:
        if not self._told:
            os.write(self._go_write, b"1")
        self._told = True

    def until_stopped(self) -> int:
        """Let it execute; the signal that stops it."""
        self._execute_now()
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self._reaped = not os.WIFSTOPPED(status)
        return os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0

    def finish(self) -> tuple[int, bytes]:
        """Let it execute, if it has not; its wait status and what it wrote."""
        self._execute_now()
        written = b""
        while chunk := os.read(self._output, 4096):
            written += chunk
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        return status, written

    @property
    def task(self) -> TaskIdentity:
        """Who it is."""
        return TaskIdentity(self.pid, start_ticks(self.pid))


def arm(
    gate: Gate, child: Child, *, artifact: str = "00" * 32, argv: tuple[str, ...] | None = GRANTED
) -> None:
    """Govern it, and let it execute the shell once: with these arguments, or with any."""
    grant = Grant(
        artifact_id=artifact,
        scope="self-test",
        file=read_file(gate, SHELL).identity,
        digest=hashlib.sha256(Path(SHELL).read_bytes()).hexdigest(),
        not_before=0,
        not_after=2**63,
        argv=tuple(argument.encode() for argument in argv) if argv is not None else None,
    )
    gate.govern_slot(child.pid, abi.SCOPE_SELF_TEST_ENFORCE)
    gate.arm_slot(grant, child.task, abi.SCOPE_SELF_TEST_ENFORCE)


def read_file(gate: Gate, path: str) -> Reading:
    """What the gate sees of a file."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return gate.read_file(descriptor)
    finally:
        os.close(descriptor)


def drain(gate: Gate) -> list[GateEvent]:
    """Every waiting event."""
    events: list[GateEvent] = []
    gate.drain(events.append)
    return events


def exec_event(gate: Gate, pid: int) -> ExecEvent:
    """The one event of the one exec of this process."""
    executed = [event for event in drain(gate) if isinstance(event, ExecEvent)]
    if len(executed) != 1:
        fail(f"{len(executed)} events for one exec")
    same("process id", executed[0].pid, pid)
    return executed[0]


def same(what: str, seen: object, known: object) -> None:
    """Go on only when the gate sees what user space knows."""
    if seen != known:
        fail(f"{what}: the gate saw {seen!r}, user space knows {known!r}")


def fail(difference: str) -> NoReturn:
    """Enforce nothing.

    Raises:
        GateError: SELF_TEST_FAILED, with the difference.
    """
    raise GateError(
        Reason.SELF_TEST_FAILED,
        f"the gate's self-test failed; nothing is enforced. {difference}",
        "Do not enforce on this kernel. Report its version (uname -a) and this message.",
    )
