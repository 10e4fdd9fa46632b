"""scripts/soak: ordinary work under governance and watched for as long as asked; a finding about it is a false one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Final

from egs_kernel.audit.entries import Exec, FindingEntry
from egs_kernel.drift.rules import Rules
from egs_kernel.model import Verdict
from tests.monitoring import Monitor
from tests.ordinary import Workload
from tests.running import running_on_disk

_TELL_SECONDS: Final = 300.0
_WANTED: Final = ("python", "node", "java", "shell", "nginx")


def main() -> int:
    """Work, then look at what was found; 1: something."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long (default 60)")
    parser.add_argument(
        "--pause", type=float, default=1.0, metavar="S", help="seconds between two rounds of work"
    )
    parser.add_argument(
        "--interval", type=int, default=Rules().interval, metavar="S", help="seconds between two sweeps"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("soak: it loads the gate, and must be root")
    with running_on_disk(drift="auto") as running:
        monitor = Monitor(running, f'interval = "{options.interval}s"\n')
        monitor.start()
        workload = Workload(running, java=True)
        began, deadline = _resident(monitor.pid), time.monotonic() + options.minutes * 60
        rounds, told, problem = 0, time.monotonic(), ""
        try:
            while time.monotonic() < deadline:
                workload.work()
                rounds += 1
                time.sleep(options.pause)
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    found = running.entries(FindingEntry)
                    _say(
                        f"{(deadline - told) / 60:.0f} minutes to go: {rounds} rounds, {len(found)} findings"
                    )
        except AssertionError as error:
            problem = f"the work ended: {error}"
        finally:
            workload.close()
        ended = _resident(monitor.pid)
        monitor.stop()
        found = running.entries(FindingEntry)
        execs = [entry.event for entry in running.entries(Exec)]
    false = [entry for entry in found if entry.execution]
    refused = [event for event in execs if event.verdict is not Verdict.ALLOW]
    names = {event.execution: event.filename for event in execs}
    for entry in found:
        of = names.get(entry.execution, "the host")
        _say(f"{entry.finding.value}: {entry.detail} (process {entry.pid} of {of}, {entry.source})")
    for event in refused:
        _say(f"refused: {event.filename}: {event.reason.name.lower()}")
    missing = ", ".join(name for name in _WANTED if name not in workload.programs) or "nothing"
    _say(f"Linux {os.uname().release}: {', '.join(workload.programs)}; not on this machine: {missing}")
    _say(
        f"{options.minutes:g} minutes, a sweep every {options.interval} s, {rounds} rounds, {len(execs)} execs"
    )
    _say(
        f"{len(false)} false findings, {len(refused)} refused execs, {len(found) - len(false)} findings of the host"
    )
    _say(f"the monitor's memory: {began} KiB, then {ended} KiB")
    if problem:
        _say(problem)
    return 1 if false or refused or problem else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main())
