"""Processes that the gate holds, for tests: started in the scope, stopped at their exec, told apart by what they write."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egs_kernel.audit.entries import Exec
from egs_kernel.model import Tier, Verdict
from tests.harness import Instance
from tests.refusals import TIER
from tests.running import Running

HOLD: Final = 'on_missing = "hold"'
_EXEC_FAILED: Final = 120


@dataclass
class Waiting:
    """A child of the test that executes in the scope, and the pipe that its new image writes to."""

    pid: int
    output: int

    def is_stopped(self) -> bool:
        """Wait until it stops or ends; whether it was stopped as what is held is."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP

    def goes_on(self) -> bool:
        """Wait until it goes on or ends; whether it went on. Its decision is in the record before that."""
        _, status = os.waitpid(self.pid, os.WCONTINUED)
        return os.WIFCONTINUED(status)

    def let_go(self) -> None:
        """What its owner may try.

        Raises:
            PermissionError: on the tier `lsm`; it waits on.
        """
        os.kill(self.pid, signal.SIGCONT)

    def freed(self) -> tuple[int, bytes]:
        """Its end when its owner continues it: by a guard, or where that is refused (tier `lsm`), by its owner's SIGKILL."""
        try:
            self.let_go()
        except PermissionError:
            assert TIER is Tier.LSM
            assert self.is_waiting()
            os.kill(self.pid, signal.SIGKILL)
        else:
            assert TIER is Tier.TRACEPOINT
        return self.end()

    def is_waiting(self) -> bool:
        """Whether it is stopped now, traced or not."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"

    def end(self) -> tuple[int, bytes]:
        """Wait for its end: the exit code or minus the signal, and what it wrote."""
        written = b""
        while chunk := os.read(self.output, 4096):
            written += chunk
        os.close(self.output)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), written


def execute(
    instance: Instance, program: Path, *arguments: str, before: Callable[[], object] = lambda: None
) -> Waiting:
    """Start a child that enters the scope and executes; returns at once."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.dup2(writing, 1)
            instance.cgroup.enter()
            before()
            os.execv(program, [str(program), *arguments])
        finally:
            os._exit(_EXEC_FAILED)
    os.close(writing)
    instance.reap_also(pid)
    return Waiting(pid, reading)


def holds(running: Running) -> dict[int, dict[str, Any]]:
    """What `egs holds` says, by process id."""
    listed = json.loads(running.instance.egs("holds", "--json").stdout)["holds"]
    return {hold["pid"]: hold for hold in listed}


def wait_until_held(running: Running, *waiting: Waiting) -> list[str]:
    """The ids of these holds, when the daemon knows of all of them."""
    for process in waiting:
        assert process.is_stopped()
    return [_hold_of(running, process.pid) for process in waiting]


def _hold_of(running: Running, pid: int) -> str:
    def of(entry: Exec) -> bool:
        return entry.event.pid == pid and entry.event.verdict is Verdict.HOLD

    running.wait_for(Exec, of)
    return str([entry for entry in running.entries(Exec) if of(entry)][-1].event.execution)


@contextmanager
def holding_system(instance: Instance, folder: Path, scope: str = HOLD) -> Iterator[Running]:
    """A whole system whose scope holds."""
    instance.configure(scope=scope)
    folder.mkdir(mode=0o755)
    system = Running(instance, folder)
    try:
        yield system
    finally:
        system.close()
