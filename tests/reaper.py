"""Undo a test's instance when its standard input ends: the test closed it, or died.

reaper.py EGS_ROOT CGROUP_FOLDER; each line of standard input is a process to kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from egs_kernel.gate.loader import unload_gate
from egs_kernel.paths import Paths


def main(root: str, cgroup: str) -> None:
    """Wait for the end, then kill, unload, remove."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes = [int(line) for line in sys.stdin]
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    folder = Path(cgroup)
    unload_gate(Paths.under(root))
    if folder.is_dir():
        _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    (folder / "cgroup.kill").write_text("1")
    _wait_until_empty(folder)
    for parent, _, _ in os.walk(folder, topdown=False):
        Path(parent).rmdir()


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
