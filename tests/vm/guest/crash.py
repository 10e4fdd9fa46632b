"""The case `crash`: the machine dies twice in the middle of governed work, and starts again from the same disk.

The first time by its own reset without a sync (sysrq b), the second time as if the power failed (the host kills it),
with half a frame at the end of the record's journal. One program is authorized and starts over and over, another one is not and
tries as often; it leaves a mark when it runs.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from tests.vm.guest.observing import (
    Guest,
    boot_number,
    egs,
    issue,
    observe,
    run,
    show,
    until,
    wait_for_the_gate,
)

STATE: Final = Path("/var/lib/vm-crash")
MARK: Final = STATE / "intruded"
NOTED: Final = STATE / "noted"
JOURNAL: Final = Path("/var/lib/egs/record/journal")
UNITS: Final = ("egs-gate.service", "egsd.service", "vm-worker.service", "vm-intruder.service")
GOVERNED: Final = ("vm-worker.service", "vm-intruder.service")
SEVERAL: Final = 5
"""Execs of each kind that make a boot's work."""

UNIT: Final = """\
[Unit]
Description=Starts {program} over and over
StartLimitIntervalSec=0
[Service]
Slice=egs-agents.slice
ExecStart=/opt/agent/{program} {argument}
Restart=always
RestartSec=200ms
[Install]
WantedBy=multi-user.target
"""


def execs(verdict: str, program: str) -> list[dict[str, Any]]:
    """The record's execs of a program that were decided so, of all boots."""
    done = egs("audit", "query", "--json", "--type", "exec", "--verdict", verdict)
    entries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"]["filename"] == f"/opt/agent/{program}"]


def working(before: tuple[int, int] = (0, 0)) -> bool:
    """Whether both programs were tried several times since `before`."""
    return all(new >= old + SEVERAL for new, old in zip(work(), before, strict=True))


def work() -> tuple[int, int]:
    """How often the worker was allowed, and the intruder refused."""
    return len(execs("allow", "worker")), len(execs("kill", "intruder")) + len(execs("deny", "intruder"))


def note_the_record() -> None:
    """Keep the record's last entry, on the disk for certain."""
    with NOTED.open("wb") as file:
        file.write(egs("audit", "tail", "--json", "-n", "1").stdout.strip().encode())
        file.flush()
        os.fsync(file.fileno())


# -- the parts -------------------------------------------------------------------------------------


def set_up(guest: Guest) -> None:
    """The two services, from now on at every boot."""
    wait_for_the_gate()
    STATE.mkdir(mode=0o777)
    for name, program, argument in (("worker", "echo", "work"), ("intruder", "touch", str(MARK))):
        Path("/opt/agent", name).write_bytes(Path("/usr/bin", program).read_bytes())
        Path("/opt/agent", name).chmod(0o755)
        unit = UNIT.format(program=name, argument=argument)
        Path(f"/etc/systemd/system/vm-{name}.service").write_text(unit)
    added = egs("artifacts", "add", issue("worker", "/opt/agent/worker", "--purpose", "work"))
    run("systemctl", "enable", "--now", *GOVERNED)
    seen = until(working)
    guest.check(
        "governed work goes on, and what is not authorized is refused",
        seen is not None,
        (added.stdout, work()),
    )
    guest.check("it left no mark", not MARK.exists())


def reset(guest: Guest) -> None:
    """Now, and without a sync of anything."""
    note_the_record()
    guest.count()
    Path("/proc/sysrq-trigger").write_text("b")
    time.sleep(60)


def came_back(guest: Guest) -> None:
    """After a crash: gate first, the record whole, nobody slipped through."""
    wait_for_the_gate()
    until(lambda: show("egsd.service", "ActiveState")["ActiveState"] == "active")
    gate = int(show("egs-gate.service", "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
    verified = egs("audit", "verify")
    guest.check("the record is whole", verified.returncode == 0, verified.stdout)
    noted = NOTED.read_text()
    found = egs("audit", "show", "--json", str(json.loads(noted)["seq"])).stdout.strip()
    guest.check("what was in it before the crash is", found == noted, (noted, found))
    before = work()
    seen = until(lambda: working(before))
    guest.check("governed work goes on by itself, and refusing too", seen is not None, (before, work()))
    first = first_start()
    guest.check("no governed unit was started before the gate stood", 0 < gate < first, (gate, first))
    guest.check("what is not authorized left no mark", not MARK.exists())


def first_start() -> int:
    """When systemd first did anything about a governed unit in this boot: microseconds since its start."""
    units = [f"--unit={unit}" for unit in GOVERNED]
    lines = run("journalctl", "--boot", "--no-pager", "--output=json", *units).stdout.splitlines()
    return min(
        (int(json.loads(line)["__MONOTONIC_TIMESTAMP"]) for line in lines if line.startswith("{")), default=0
    )


def lose_power(guest: Guest) -> None:
    """Half a frame at the journal's end, as of an append that a crash cut off; then the host pulls the plug."""
    note_the_record()
    os.kill(int(show("egsd.service", "MainPID")["MainPID"]), signal.SIGSTOP)
    with max(JOURNAL.iterdir()).open("ab") as file:
        file.write(b"\x93egs2\r\n\x1a half a fra")
        file.flush()
        os.fsync(file.fileno())
    guest.count()
    guest.tell(host="pull the plug")
    time.sleep(60)


def torn_tail(guest: Guest) -> None:
    """The half frame was set aside, and the record says so."""
    gaps = egs("audit", "query", "--json", "--type", "gap").stdout
    guest.check("the torn tail is set aside, and the record says so", '"cause":"torn_tail"' in gaps, gaps)


def control(guest: Guest) -> None:
    """The intruder is able to leave its mark where nothing governs it."""
    run("/opt/agent/intruder", str(MARK))
    guest.check("outside of the scope the same program leaves its mark", MARK.exists())


BOOTS: Final = ((set_up, reset), (came_back, lose_power), (came_back, torn_tail, control))


def main() -> None:
    """The parts of this boot."""
    boot = boot_number()
    observe(f"crash, boot {boot + 1}", BOOTS[boot], UNITS)


if __name__ == "__main__":
    main()
