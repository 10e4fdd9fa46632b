"""Undo a test's instance when its standard input ends: the test closed it, or died.

reaper.py EGS_ROOT CGROUP_FOLDER; each line of standard input is a process to kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from egs_kernel.gate.loader import unload_gate
from egs_kernel.paths import Paths

UNSEAL: Final = "unseal.json"
"""Below EGS_ROOT: a maintenance artifact."""


def main(root: str, cgroup: str) -> None:
    """Wait for the end, then kill, unload, remove."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes = [int(line) for line in sys.stdin]
    _unseal(root)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    folder = Path(cgroup)
    unload_gate(Paths.under(root))
    if folder.is_dir():
        clear_cgroup(folder)
        folder.rmdir()


def _unseal(root: str) -> None:
    """A test that seals leaves the artifact that lifts it: else nothing here could be undone before a reboot."""
    artifact = Path(root, UNSEAL)
    if artifact.exists():
        egs = Path(sys.executable).with_name("egs")
        environment = os.environ | {"EGS_ROOT": root}
        subprocess.run([egs, "unseal", artifact], env=environment, check=False, capture_output=True)


def clear_cgroup(folder: Path) -> None:
    """End every process in a cgroup, and remove the cgroups below it.

    Only where there is one: who is later born into a cgroup (CLONE_INTO_CGROUP) that was killed once dies of that.
    """
    if "populated 1" in (folder / "cgroup.events").read_text():
        (folder / "cgroup.kill").write_text("1")
        _wait_until_empty(folder)
    for parent, below, _ in os.walk(folder, topdown=False):
        for name in below:
            (Path(parent) / name).rmdir()


def _wait_until_empty(folder: Path) -> None:
    """cgroup.events tells by POLLPRI when `populated` changes."""
    import select  # noqa: PLC0415 - only here

    with (folder / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        for _ in range(20):
            events.seek(0)
            if "populated 0" in events.read():
                return
            poll.poll(500)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
