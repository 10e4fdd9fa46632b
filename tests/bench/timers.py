"""Timing of fork, exec and wait: one small C process per thing to be measured, alive through all rounds.

A process that stays is the same on both sides of a comparison: same addresses, same page tables.
"""

from __future__ import annotations

import array
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness import Cgroup

END_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
"""Before a command: the kernel kills it when we end, however that is."""
_WORD: Final = 8


class Timer:
    """Starts a command again and again. Its process ends when ours does, however ours ends.

    Args:
        program: the compiled tests/programs/spawn_timer.c.
        method: "fork" or "vfork"; "refused" forks, and each exec has to fail.
        command: what to start; the first word is a path.
        cpu: keep it and what it starts on this CPU.
        cgroup: move it there; it is not governed by how it was started.
        environment: for the command.
    """

    def __init__(
        self,
        program: Path,
        method: str,
        command: Sequence[str | Path],
        *,
        cpu: int | None = None,
        cgroup: Cgroup | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        words = [str(program), method, *map(str, command)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        if cpu is not None:
            os.sched_setaffinity(self._process.pid, {cpu})
        self._command = str(command[0])
        if cgroup is not None:
            self.measure(1)  # Popen returns a moment before the exec is complete: it would be governed
            cgroup.procs.write_text(str(self._process.pid))

    def measure(self, count: int) -> list[int]:
        """Start the command `count` times: nanoseconds from before the fork until after the wait, of each.

        Raises:
            RuntimeError: the command failed; what it said is on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % count)
        data = bytearray()
        while len(data) < count * _WORD:
            part = self._process.stdout.read(count * _WORD - len(data))
            if not part:
                raise RuntimeError(f"{self._command} cannot be measured: see above")
            data += part
        times = array.array("q")
        times.frombytes(data)
        return times.tolist()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()
