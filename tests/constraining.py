"""Programs under constraints, and launchers that do not do what they are asked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from tests.harness import COMMAND_SECONDS, compile_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.running import Running

_LIAR: Final = """
import ctypes, os, resource, signal, sys, threading, time
from egs_kernel import apply, launch
{lie}
sys.exit(launch.main(sys.argv[1:]))
"""


class Acts:
    """tests/programs/acts.c, under an artifact with these constraints."""

    def __init__(self, running: Running, binary: Path) -> None:
        self._running = running
        self.program = running.copy(str(binary), "acts-copy")
        self.artifact = self.program

    def issue(self, constraints: str, *more: str, name: str = "acts.json") -> Path:
        """An artifact for it, with constraints in TOML; "" is none. `artifact` is the last one."""
        if constraints:
            file = self._running.folder / "constraints.toml"
            file.write_text(constraints)
            more = ("--constraints", str(file), *more)
        self.artifact = self._running.issue(self.program, *more, name=name)
        return self.artifact

    def run(self, constraints: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it with `egs run`."""
        artifact = self.issue(constraints)
        return self._running.run("--artifact", str(artifact), str(self.program), *arguments, **options)

    def output(self, constraints: str, *arguments: str, **options: Any) -> str:
        """What it printed; it must have run."""
        done = self.run(constraints, *arguments, **options)
        assert done.returncode == 0, (done, self._running.log())
        return str(done.stdout)

    def lie(self, artifact: Path, lie: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it with a launcher into which these lines were put."""
        return subprocess.run(
            [
                *(sys.executable, "-c", _LIAR.format(lie=lie)),
                *("--artifact", str(artifact), str(self.program), *arguments),
            ],
            env=self._running.instance.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )


def compile_acts(folder: Path) -> Path:
    """The program."""
    return compile_program("acts", folder, "-pthread")
