"""What an observer in a machine with systemd needs: commands, units, and a line of JSON for each observation.

Only Python's standard library: it is Debian's own python3, and no part of the product is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

EGS: Final = "/opt/egs/bin/egs"
KEY: Final = "/root/issuer.key"
CHANNEL: Final = "/dev/ttyS1"
PATIENCE: Final = 300.0
"""Seconds, for a command or for what is waited for: emulated, on a crowded host, that is minutes."""
GATE_CAN_TAKE: Final = 900.0
"""Seconds, as system.py has it; loading the gate takes about 35 s under emulation on the tier lsm, and minutes on a crowded host."""
DAEMON_CAN_TAKE: Final = 240.0
"""Seconds; for the watchdog (5 s) and another daemon, which hashes what stands before it is ready: 5 s, and 45 s on a crowded host."""
POLL: Final = 0.2
GOES_ON: Final = Path("/run/vm-goes-on")
"""There: the machine boots again when its observer ends."""


class Guest:
    """Does things in the machine and says what it saw. Each observation counts as a test."""

    def __init__(self, channel: TextIO, case: str) -> None:
        self._channel = channel
        self._case = case
        self._since = time.monotonic()
        self._observations = 0
        self.failed = False

    def tell(self, **line: Any) -> None:
        """Write one line to the host."""
        self._channel.write(json.dumps(line) + "\n")
        self._channel.flush()

    def note(self, what: str, seen: object) -> None:
        """Something for the person who reads it."""
        self.tell(note=what, seen=str(seen))

    def check(self, what: str, observed: bool, seen: object = "") -> None:  # noqa: FBT001 - the observation
        """One observation."""
        now = time.monotonic()
        line: dict[str, Any] = (
            {"outcome": "passed"} if observed else {"outcome": "failed", "detail": str(seen)}
        )
        self.tell(test=f"{self._case}: {what}", seconds=round(now - self._since, 1), **line)
        self._since = now
        self._observations += 1
        self.failed |= not observed

    def attempt(self, part: Callable[[Guest], None]) -> None:
        """One part; the others go on when it breaks."""
        try:
            part(self)
        except Exception:  # noqa: BLE001 - reported to the host, as a failure
            self.check(f"{part.__name__} goes to its end", False, traceback.format_exc())

    def explain(self, units: Sequence[str]) -> None:
        """What units had to say in this boot, and what was tried on a sealed gate, if something failed."""
        for unit in units if self.failed else ():
            self.note(f"journal of {unit}", journal(unit)[-6000:])
        if self.failed:
            self.note("attempts", egs("audit", "query", "--type", "attempt").stdout[-3000:])

    def count(self) -> None:
        """Say how many observations there were, as far as this boot goes."""
        self.tell(more_tests=self._observations)


def observe(case: str, parts: Sequence[Callable[[Guest], None]], units: Sequence[str]) -> None:
    """Attempt all parts, then say what units had to say if something failed; the last word to the host."""
    with Path(CHANNEL).open("w") as channel:
        guest = Guest(channel, case)
        guest.tell(machine={"release": run("uname", "-r").stdout.strip(), "lsm": lsm()})
        for part in parts:
            guest.attempt(part)
        guest.explain(units)
        guest.count()
        guest.tell(end=int(guest.failed))
    sys.exit(int(guest.failed))


def lsm() -> str:
    """The kernel's active security modules."""
    return Path("/sys/kernel/security/lsm").read_text().strip()


def run(*command: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run a command; both streams in one text."""
    return subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )


def egs(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `egs` as root, outside every scope."""
    return run(EGS, *words)


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit."""
    lines = run("systemctl", "show", unit, f"--property={','.join(names)}").stdout.splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> float | None:
    """Seconds until it was reached; None when it was not in time."""
    started = time.monotonic()
    while not reached():
        if time.monotonic() - started > seconds:
            return None
        time.sleep(POLL)
    return time.monotonic() - started


def journal(unit: str, *words: str) -> str:
    """What the unit has said in this boot."""
    return run("journalctl", "--boot", "--no-pager", "--output=cat", f"--unit={unit}", *words).stdout


def boot_number() -> int:
    """How often this machine has booted before; counts, for certain, this one."""
    counter = Path("/var/lib/vm-boots")
    boot = int(counter.read_text()) if counter.exists() else 0
    with counter.open("w") as file:
        file.write(str(boot + 1))
        file.flush()
        os.fsync(file.fileno())
    return boot


def reboot_now(guest: Guest) -> None:
    """Reboot in order. This process ends by it."""
    guest.count()
    GOES_ON.touch()
    run("systemctl", "reboot")
    time.sleep(PATIENCE)


def wait_for_the_gate() -> None:
    """Return when egs-gate.service has come to an end, good or bad."""
    until(
        lambda: show("egs-gate.service", "ActiveState")["ActiveState"] in {"active", "failed"}, GATE_CAN_TAKE
    )


def issue(name: str, program: str, *words: str) -> str:
    """Have an artifact for the scope issued.

    Raises:
        RuntimeError: it was not.
    """
    file = f"/root/{name}.json"
    done = egs("issue", "--key", KEY, "--scope", "agents", "--program", program, *words, "--out", file)
    if done.returncode != 0:
        raise RuntimeError(done.stdout)
    return file
