"""The case `sealed`: units of a sealed gate under a real systemd, over three boots.

First it is sealed by a command: what stops or replaces the daemon is refused, a crash is not the end, a maintenance
artifact lifts it. Then `sealed = true`: the machine reboots while sealed, is sealed again before anybody could have done
something, and reboots once more, unsealed, to compare how long that takes. On the tier `tracepoint` nothing can be sealed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from tests.vm.guest.observing import (
    DAEMON_CAN_TAKE,
    Guest,
    boot_number,
    egs,
    issue,
    lsm,
    observe,
    reboot_now,
    run,
    show,
    until,
    wait_for_the_gate,
)
from tests.vm.guest.units import start, was_done, was_refused

UNITS: Final = ("egs-gate.service", "egsd.service")
CONFIG: Final = Path("/etc/egs/egs.toml")
DOWN: Final = Path("/var/lib/vm-down")
"""When this machine was told to reboot, and how long the reboot before took."""
MAINTENANCES: Final = 3
STOP_SECONDS: Final = 10.0
"""That systemd tries to stop a daemon that does not get its signals: TimeoutStopSec= of egsd.service, twice."""
SLACK: Final = 5.0
"""Seconds by which two reboots of one machine differ all the same."""


def status() -> dict[str, Any]:
    """What the daemon says; empty when it does not answer."""
    try:
        answer: dict[str, Any] = json.loads(egs("status", "--json").stdout)
    except ValueError:
        return {}
    return answer


def main_pid() -> int:
    """The daemon's process id, as systemd has it; 0: none."""
    return int(show("egsd.service", "MainPID")["MainPID"])


def daemon() -> int:
    """The same.

    Raises:
        RuntimeError: none runs. (A signal to process 0 would be one to us.)
    """
    pid = main_pid()
    if not pid:
        raise RuntimeError(f"no daemon runs: {show('egsd.service', 'ActiveState', 'Result')}")
    return pid


def is_up(pid: int) -> bool:
    """Whether this process is the daemon that answers."""
    return bool(status().get("pid") == pid)


def unseal(guest: Guest, number: int) -> None:
    """Lift the seal by the maintenance artifact of this number."""
    done = egs("unseal", f"/root/maintenance-{number}.json")
    guest.check(
        f"maintenance {number} lifts the seal",
        (done.returncode, status().get("seal")) == (0, "lifted"),
        done.stdout,
    )


# -- the parts -------------------------------------------------------------------------------------


def cannot_be_sealed(guest: Guest) -> None:
    """Tier `tracepoint`."""
    wait_for_the_gate()
    done = egs("seal")
    guest.check(
        "egs seal says that this tier cannot",
        (done.returncode, "only a gate on the tier lsm" in done.stdout) == (3, True),
        done.stdout,
    )


def set_up(guest: Guest) -> None:
    """A maintenance key, artifacts for later, and a governed service that is authorized."""
    wait_for_the_gate()
    until(lambda: show("egsd.service", "ActiveState")["ActiveState"] == "active")
    egs("keys", "generate", "--name", "keeper", "--out", "/root")
    egs("trust", "add", "/root/keeper.pub", "--role", "maintenance", "--scope", "maintenance")
    reloaded = run("systemctl", "reload", "egsd.service")
    for number in range(1, MAINTENANCES + 1):
        words = ("--valid-for", "6h", "--purpose", f"maintenance {number}", "--operator", "the observer")
        out = f"/root/maintenance-{number}.json"
        egs("maintenance", "issue", "--key", "/root/keeper.key", "--host", "vm", *words, "--out", out)
    added = egs(
        "artifacts", "add", issue("governed", "/opt/agent/governed", "--purpose", "a governed service")
    )
    sealed = egs("seal")
    guest.check(
        "egs seal",
        (sealed.returncode, status().get("seal")) == (0, "sealed"),
        (reloaded.stdout, added.stdout, sealed.stdout),
    )


def governed_goes_on(guest: Guest, when: str) -> None:
    """What is authorized runs, what is not does not."""
    seen = start("vm-governed.service")
    guest.check(f"{when}, what is authorized runs", was_done(seen), seen)
    seen = start("vm-other.service")
    guest.check(f"{when}, what is not is refused", was_refused(seen), seen)


def signals(guest: Guest) -> None:
    """By root, whatever the signal."""
    pid = daemon()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGABRT):
        try:
            os.kill(pid, number)
            refused = False
        except PermissionError:
            refused = True
        guest.check(f"sealed: {number.name} to the daemon is refused", refused and is_up(pid))
    governed_goes_on(guest, "sealed")


def stop_is_refused(guest: Guest) -> None:
    """`systemctl stop`: systemd may not send the signal, and gives up; the daemon goes on."""
    pid = daemon()
    began = time.monotonic()
    done = run("systemctl", "stop", "egsd.service")
    seconds = time.monotonic() - began
    seen = show("egsd.service", "ActiveState", "Result")
    guest.note("systemctl stop egsd, sealed", f"{seconds:.1f} s; {done.returncode} {done.stdout} {seen}")
    guest.check("sealed: systemctl stop ends nothing", is_up(pid), seen)
    guest.check("sealed: it gives up in time", seconds < STOP_SECONDS + SLACK, f"{seconds:.1f} s")
    governed_goes_on(guest, "after systemctl stop")


def crash_is_not_the_end(guest: Guest) -> None:
    """By the way that stays open to root; systemd starts the next daemon, and the gate knows it."""
    pid = daemon()
    began = time.monotonic()
    group = Path(f"/proc/{pid}/cgroup").read_text().rpartition(":")[2].strip()
    Path(f"/sys/fs/cgroup{group}/cgroup.kill").write_text("1")
    until(lambda: main_pid() not in {0, pid} and is_up(main_pid()), DAEMON_CAN_TAKE)
    guest.note("a crashed daemon is back after", f"{time.monotonic() - began:.1f} s")
    guest.check(
        "sealed: after a crash systemd has another daemon, and the gate takes it for one",
        (main_pid() not in {0, pid}, status().get("seal")) == (True, "sealed"),
        show("egsd.service", "ActiveState", "MainPID", "Result"),
    )
    governed_goes_on(guest, "after a crash")


def others_restart(guest: Guest) -> None:
    """A service in a sandbox of its own, with mounts over what is kept."""
    before = show("egs-console.service", "MainPID")["MainPID"]
    done = run("systemctl", "restart", "egs-console.service")
    state = show("egs-console.service", "ActiveState", "MainPID")
    good = state["ActiveState"] == "active" and state["MainPID"] not in {"0", before}
    guest.check("sealed: another service in a sandbox restarts", good, (done.stdout, state))


def gate_stays(guest: Guest) -> None:
    """Pins, unloading, configuration."""
    pin = Path("/sys/fs/bpf/egs/gate_configs")
    try:
        pin.unlink()
        refused = False
    except PermissionError:
        refused = True
    guest.check("sealed: a pin is not unlinked", refused and pin.exists())
    done = egs("gate", "unload")
    guest.check(
        "sealed: the gate is not unloaded", done.returncode == 1 and "[sealed]" in done.stdout, done.stdout
    )
    try:
        CONFIG.write_text("")
        refused = False
    except PermissionError:
        refused = True
    guest.check("sealed: the configuration is not written", refused and CONFIG.stat().st_size > 0)


def maintenance(guest: Guest) -> None:
    """An artifact lifts it: then the daemon stops and starts as any other, and the configuration can be changed."""
    unseal(guest, 1)
    pid = int(status()["pid"])
    os.kill(pid, signal.SIGTERM)  # systemd has forgotten it: it was to stop it, and could not
    gone = until(lambda: not Path(f"/proc/{pid}").exists())
    guest.check("lifted: SIGTERM ends the daemon that systemd could not stop", gone is not None)
    run("systemctl", "start", "egsd.service")
    guest.check(
        "lifted: systemctl start starts another", is_up(main_pid()), show("egsd.service", "ActiveState")
    )
    began = time.monotonic()
    done = run("systemctl", "stop", "egsd.service")
    seen = show("egsd.service", "ActiveState", "Result")
    good = (done.returncode, seen["ActiveState"], seen["Result"]) == (0, "inactive", "success")
    guest.check("lifted: systemctl stop stops it", good, f"{time.monotonic() - began:.1f} s; {seen}")
    run("systemctl", "start", "egsd.service")
    CONFIG.write_text(f"sealed = true\n{CONFIG.read_text()}")
    run("systemctl", "reload", "egsd.service")
    done = egs("seal")
    guest.check("sealed again", (done.returncode, status().get("seal")) == (0, "sealed"), done.stdout)


def reboot(guest: Guest) -> None:
    """In order, as it is."""
    guest.note("it reboots", status().get("seal"))
    guest.explain(UNITS)
    DOWN.write_text(f"{time.time()} {' '.join(DOWN.read_text().split()[1:]) if DOWN.exists() else ''}")
    reboot_now(guest)


def seconds_down() -> float:
    """From the order to reboot to the start of this boot's kernel."""
    lines = Path("/proc/stat").read_text().splitlines()
    booted = float(next(line.split()[1] for line in lines if line.startswith("btime")))
    return booted - float(DOWN.read_text().split()[0])


def sealed_at_boot(guest: Guest) -> None:
    """By the configuration, when the daemon is ready: nothing governed started before."""
    seconds = seconds_down()
    DOWN.write_text(f"0 {seconds}")
    guest.note("the reboot while sealed took", f"{seconds:.1f} s")
    wait_for_the_gate()
    until(lambda: show("egsd.service", "ActiveState")["ActiveState"] == "active")
    guest.check("sealed = true: it is sealed when egsd is ready", status().get("seal") == "sealed", status())
    state = show("vm-enabled.service", "ActiveState", "NRestarts")
    until(lambda: show("vm-enabled.service", "ActiveState")["ActiveState"] == "active")
    guest.check("a governed service that is enabled runs at boot", state["NRestarts"] == "0", state)
    verified = egs("audit", "verify")
    guest.check("the record is whole", verified.returncode == 0, verified.stdout)
    governed_goes_on(guest, "sealed at boot")
    unseal(guest, 2)


def compared(guest: Guest) -> None:
    """How long it took to reboot, sealed and not."""
    unsealed, sealed = seconds_down(), float(DOWN.read_text().split()[1])
    seen = f"sealed {sealed:.1f} s, unsealed {unsealed:.1f} s"
    guest.note("reboot", seen)
    guest.check("a sealed machine reboots about as fast as any other", sealed <= unsealed + SLACK, seen)
    wait_for_the_gate()
    until(lambda: status().get("seal") == "sealed")
    guest.check("it is sealed again", status().get("seal") == "sealed", status())


BOOTS: Final = (
    (set_up, signals, gate_stays, crash_is_not_the_end, others_restart, stop_is_refused, maintenance, reboot),
    (sealed_at_boot, reboot),
    (compared,),
)


def main() -> None:
    """The parts of this boot."""
    boot = boot_number()
    can = "bpf" in lsm().split(",")
    observe(f"sealed, boot {boot + 1}", BOOTS[boot] if can else (cannot_be_sealed,), UNITS)


if __name__ == "__main__":
    main()
