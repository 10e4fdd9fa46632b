"""An instance whose drift events a test reads, and programs that drift in it."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from egs_kernel.drift.observations import Observation, ProcessEvent
from egs_kernel.gate.drift import DriftGate
from egs_kernel.monitor.sources.drift_events import DriftEvents
from tests.harness import COMMAND_SECONDS, Instance, compile_program


@dataclass
class Watched:
    """An instance that only observes, with drift programs, and their reader."""

    instance: Instance
    events: DriftEvents
    program: Path

    def told(self) -> list[Observation]:
        """Everything since the last time."""
        found: list[Observation] = []
        while select.select([self.events], [], [], 0)[0]:
            found += self.events.read()
        return found

    def told_of(self, pid: int) -> list[ProcessEvent]:
        return [event for event in self.told() if isinstance(event, ProcessEvent) and event.pid == pid]

    def run(self, *words: str, governed: bool = True, enter: Callable[[], None] | None = None) -> int:
        """Run the program; its process id. It has to succeed at what it does."""
        if (
            words[0].endswith("32")
            and subprocess.run([str(self.program), "protects32"], check=False).returncode
        ):
            pytest.skip("this kernel takes no calls of 32-bit programs")
        enter = enter or (self.instance.cgroup.enter if governed else None)
        process = subprocess.Popen([str(self.program), *words], preexec_fn=enter, start_new_session=True)
        assert process.wait(COMMAND_SECONDS) == 0, words
        return process.pid

    @contextmanager
    def victim(self, *, governed: bool = True) -> Iterator[tuple[int, str]]:
        """A process that waits, and an address of its memory."""
        enter = self.instance.cgroup.enter if governed else None
        with subprocess.Popen(
            [str(self.program), "waits"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        ) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            self.told()
            yield process.pid, address
            process.kill()


@contextmanager
def watched_instance(folder: Path) -> Iterator[Watched]:
    """Load it, and open the events. Its scope only observes, so that programs run without artifacts."""
    instance = Instance.create(folder / "egs")
    try:
        instance.configure(mode="observe", drift="required")
        instance.load_gate().close()
        events = DriftEvents(DriftGate.open(instance.paths.pins), lambda: None)
        yield Watched(instance, events, compile_program("drifts", folder))
        events.close()
    finally:
        instance.close()
