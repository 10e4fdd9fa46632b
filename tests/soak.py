"""scripts/soak: ordinary work under governance and watched for as long as asked; a finding about it is a false one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from egs_kernel.audit.entries import Exec, FindingEntry
from tests.monitoring import Monitor
from tests.ordinary import Workload
from tests.running import running_on_disk


def main() -> int:
    """Work, then look at what was found; 1: something."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long (default 60)")
    parser.add_argument(
        "--pause", type=float, default=1.0, metavar="S", help="seconds between two rounds of work"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("soak: it loads the gate, and must be root")
    with running_on_disk(drift="auto") as running:
        monitor = Monitor(running, "")
        monitor.start()
        workload = Workload(running, java=True)
        end = time.monotonic() + options.minutes * 60
        rounds, began = 0, _resident(monitor.pid)
        try:
            while time.monotonic() < end:
                workload.work()
                rounds += 1
                time.sleep(options.pause)
        finally:
            workload.close()
        ended = _resident(monitor.pid)
        monitor.stop()
        false = [entry for entry in running.entries(FindingEntry) if entry.execution]
        execs = len(running.entries(Exec))
    for entry in false:
        sys.stdout.write(
            f"{entry.finding.value}: {entry.detail} (execution {entry.execution}, {entry.source})\n"
        )
    sys.stdout.write(
        f"{rounds} rounds, {execs} execs, {len(false)} false findings; the monitor grew from {began} to {ended} KiB\n"
    )
    return 1 if false else 0


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main())
