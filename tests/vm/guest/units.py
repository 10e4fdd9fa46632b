"""The case `boot`: looks at the units under a real systemd, one observation a line; see observing.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from tests.vm.guest.beside import issued, monitored, witnessed
from tests.vm.guest.constrained import constrained
from tests.vm.guest.observing import (
    DAEMON_CAN_TAKE,
    EGS,
    GATE_CAN_TAKE,
    PATIENCE,
    Guest,
    egs,
    issue,
    journal,
    lsm,
    observe,
    run,
    show,
    until,
    wait_for_the_gate,
)

UNITS: Final = ("egs-gate.service", "egsd.service", "egs-monitor.service", "egs-console.service")
USER: Final = "alice"
CONSOLE: Final = "http://127.0.0.1:9731"


def start(unit: str) -> dict[str, str]:
    """Start a oneshot service, wait for its end, and say how it went, and what it wrote."""
    before = written(unit)
    started = run("systemctl", "start", unit)
    until(lambda: show(unit, "ActiveState")["ActiveState"] in {"inactive", "failed"})
    seen = show(unit, "Result", "ExecMainStatus")
    return seen | {"start": started.stdout.strip(), "wrote": written(unit)[len(before) :]}


def written(unit: str) -> str:
    """What the service itself has written to the journal."""
    run("journalctl", "--sync")
    return journal(unit, "_TRANSPORT=stdout")


def was_refused(seen: dict[str, str]) -> bool:
    """Whether it did nothing: systemd's execve failed where BPF LSM refuses it, else the new image was killed."""
    end = ("exit-code", "203") if "bpf" in lsm().split(",") else ("signal", str(int(signal.SIGKILL)))
    return (seen["Result"], seen["ExecMainStatus"], seen["wrote"]) == (*end, "")


def was_done(seen: dict[str, str]) -> bool:
    """Whether it ran to a good end, and wrote what it had to."""
    return (seen["Result"], seen["wrote"]) == ("success", "governed and running\n")


# -- the parts -------------------------------------------------------------------------------------


def boot(guest: Guest) -> None:
    """The units, as they were enabled."""
    wait_for_the_gate()
    until(lambda: show("vm-enabled.service", "ActiveState")["ActiveState"] in {"active", "failed"})
    until(lambda: all(show(unit, "ActiveState")["ActiveState"] != "activating" for unit in UNITS))
    guest.note("pid 1", Path("/proc/1/comm").read_text().strip())
    guest.note("cgroups", run("findmnt", "-n", "-t", "cgroup,cgroup2").stdout.strip())
    for unit in UNITS:
        state = show(unit, "ActiveState", "SubState", "Type", "NRestarts", "Result")
        wanted = "exited" if unit == "egs-gate.service" else "running"
        good = (state["ActiveState"], state["SubState"]) == ("active", wanted)
        guest.check(f"{unit} is active ({wanted})", good and state.get("NRestarts", "0") == "0", state)
    said = journal("egs-gate.service")
    guest.check("the gate's self-test passed on this kernel", "self-test checks passed" in said, said)
    daemon = show("egsd.service", "Type", "WatchdogUSec", "WatchdogTimestampMonotonic")
    watched = daemon["WatchdogUSec"] == "5s" and int(daemon["WatchdogTimestampMonotonic"]) > 0
    guest.check("egsd notified systemd, and is watched", daemon["Type"] == "notify" and watched, daemon)
    metrics(guest)
    log(guest)


def asked(path: str) -> str:
    """What the console answers, or why it does not."""
    try:
        with urllib.request.urlopen(CONSOLE + path, timeout=5) as response:  # noqa: S310 - CONSOLE is http
            return str(response.read().decode("latin-1"))
    except OSError as error:
        return str(error)


def log(guest: Guest) -> None:
    """The record, which the console reads as a member of its group; entries are not for everybody."""
    checkpoint = asked("/log/checkpoint")
    guest.check("the console shows the log", checkpoint.startswith("egs-kernel/vm/record\n"), checkpoint)
    entries = asked("/log/tile/entries/000")
    guest.check("and no entries", "403" in entries, entries)


def metrics(guest: Guest) -> None:
    """/metrics, by a user that exists only while it runs."""
    pid = show("egs-console.service", "MainPID")["MainPID"]
    status = Path(f"/proc/{pid}/status").read_text()
    uid = int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])
    guest.check("egs-console runs as a dynamic user", 61184 <= uid <= 65519, f"uid {uid}")
    until(lambda: "egs_" in asked("/metrics"))
    answer = asked("/metrics")
    lines = [line for line in answer.splitlines() if line.startswith("egs_")]
    guest.check(
        "/metrics answers on loopback", len(lines) > 5, f"{len(lines)} samples, {(lines or [answer])[0]}"
    )


def order_at_boot(guest: Guest) -> None:
    """A governed service that is enabled: after the gate, after the daemon, and authorized at once."""
    state = show("vm-enabled.service", "ActiveState", "SubState", "Result", "NRestarts")
    good = (state["ActiveState"], state["NRestarts"]) == ("active", "0")
    guest.check("a governed service that is enabled runs at boot, at the first attempt", good, state)
    moments = {
        unit: int(show(unit, name)[name])
        for unit, name in (
            ("egs-gate.service", "ActiveEnterTimestampMonotonic"),
            ("egsd.service", "ActiveEnterTimestampMonotonic"),
            ("vm-enabled.service", "ExecMainStartTimestampMonotonic"),
        )
    }
    seen = ", ".join(f"{unit} {moment / 1e6:.2f} s" for unit, moment in moments.items())
    guest.check(
        "it was started after the gate stood and egsd was ready",
        sorted(moments.values()) == list(moments.values()),
        seen,
    )
    group = show("vm-enabled.service", "ControlGroup")["ControlGroup"]
    guest.check("in the slice's cgroup", group == "/egs.slice/egs-agents.slice/vm-enabled.service", group)


def governed_slice(guest: Guest) -> None:
    """Without an artifact and with one."""
    seen = start("vm-governed.service")
    guest.check("a governed service without an artifact is refused", was_refused(seen), seen)
    added = egs(
        "artifacts", "add", issue("governed", "/opt/agent/governed", "--purpose", "a governed service")
    )
    guest.check("egs artifacts add", added.returncode == 0, added.stdout)
    seen = start("vm-governed.service")
    guest.check("with a standing artifact it runs", was_done(seen), seen)
    seen = start("vm-other.service")
    guest.check("another service in the slice is still refused", was_refused(seen), seen)


def slice_comes_back(guest: Guest) -> None:
    """The cgroup of a slice that has nothing in it is removed, and then made again."""
    folder = Path("/sys/fs/cgroup/egs.slice/egs-agents.slice")
    before = folder.stat().st_ino
    run("systemctl", "stop", "vm-enabled.service", "egs-agents.slice", "egs.slice")
    gone = until(lambda: not folder.exists()) is not None
    seen = start("vm-other.service")
    after = folder.stat().st_ino if folder.exists() else None
    guest.check(
        "a slice whose cgroup was removed and made again is governed",
        gone and was_refused(seen),
        (before, after, seen),
    )
    seen = start("vm-governed.service")
    guest.check("and what is authorized runs in it", was_done(seen), seen)


def launches(guest: Guest) -> None:
    """`egs run`, as root and as an ordinary user, with nothing in the slice and with a service in it."""
    words = ("--argv", "/opt/agent/launched", "--argv", "/proc/self/cgroup", "--purpose", "a launch")
    everyone = issue("launched", "/opt/agent/launched", *words)
    hers = issue("launched-by-alice", "/opt/agent/launched", *words, "--user", USER)
    for file in (everyone, hers):
        Path(f"/home/{USER}", Path(file).name).write_bytes(Path(file).read_bytes())
    for state, verb in (("an idle", "stop"), ("a busy", "start")):
        run("systemctl", verb, "vm-enabled.service")
        if verb == "stop":
            run("systemctl", "stop", "egs-agents.slice")
        done = egs("run", "--artifact", everyone, "--", "/opt/agent/launched", "/proc/self/cgroup")
        inside = done.stdout.startswith("0::/egs.slice/egs-agents.slice")
        guest.check(
            f"egs run as root, into {state} slice",
            done.returncode == 0 and inside,
            (done.returncode, done.stdout),
        )
        done = as_user("egs run --artifact launched-by-alice.json -- /opt/agent/launched /proc/self/cgroup")
        inside = "0::/egs.slice/egs-agents.slice" in done.stdout
        guest.check(
            f"egs run as {USER} from her shell, into {state} slice",
            done.returncode == 0 and inside,
            (done.returncode, done.stdout),
        )
    launch_outlives_its_slice(guest)
    done = as_user("cat /proc/self/cgroup; id -un; egs run -- /opt/agent/launched /etc/hostname")
    guest.check(
        "without an authorization her launch is refused",
        done.returncode == 126,
        (done.returncode, done.stdout),
    )
    done = egs("run", "--artifact", hers, "--", "/opt/agent/launched", "/proc/self/cgroup")
    guest.check(
        "what was issued for her is refused to root",
        done.returncode == 126 and "identity" in done.stdout,
        (done.returncode, done.stdout),
    )


def launch_outlives_its_slice(guest: Guest) -> None:
    """A launch that goes on while services of its slice come and go, and systemd arranges the cgroups."""
    file = issue("waiting", "/opt/agent/launched", "--purpose", "a launch that waits")
    run("systemctl", "stop", "vm-enabled.service", "egs-agents.slice")
    with subprocess.Popen(
        (EGS, "run", "--artifact", file, "--", "/opt/agent/launched"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launched:
        until(lambda: "/opt/agent/launched" in egs("ps").stdout)
        run("systemctl", "start", "vm-enabled.service")
        state = show("vm-enabled.service", "ActiveState", "MemoryCurrent", "TasksCurrent")
        good = state["ActiveState"] == "active" and state["TasksCurrent"].isdecimal()
        guest.check("a service starts in a slice with a launch in it, with its controllers", good, state)
        run("systemctl", "stop", "egs-agents.slice")
        guest.check(
            "the launch outlives systemctl stop of the slice", launched.poll() is None, launched.returncode
        )
        said, _ = launched.communicate("still here\n", timeout=PATIENCE)
    guest.check(
        "and ends as it likes",
        (said, launched.returncode) == ("still here\n", 0),
        (said, launched.returncode),
    )
    done = run("systemctl", "start", "vm-enabled.service")
    guest.check("and the slice starts again", done.returncode == 0, done.stdout)


def as_user(line: str) -> subprocess.CompletedProcess[str]:
    """A line typed into a login shell of the ordinary user."""
    return run("su", "--login", USER, "--command", f"PATH=/opt/egs/bin:$PATH; {line}")


def commands(guest: Guest) -> None:
    """What an operator asks."""
    for words in (
        ("doctor",),
        ("status",),
        ("gate", "status"),
        ("ps",),
        ("artifacts", "list"),
        ("audit", "verify"),
    ):
        done = egs(*words)
        guest.check(f"egs {' '.join(words)}", done.returncode == 0, done.stdout)
    answer: dict[str, Any] = json.loads(egs("status", "--json").stdout)
    guest.note("egs status --json", json.dumps(answer))
    done = run("systemctl", "reload", "egsd.service")
    guest.check("systemctl reload egsd", done.returncode == 0, done.stdout)


def daemon_dies(guest: Guest) -> None:
    """SIGKILL, and a daemon that hangs."""
    for number, what in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "hangs")):
        before = show("egsd.service", "MainPID", "NRestarts")
        if before["MainPID"] == "0":
            guest.check(f"egsd {what}", False, "it does not run")
            continue
        os.kill(int(before["MainPID"]), number)
        took = until(lambda before=before: _is_back(before), DAEMON_CAN_TAKE)  # type: ignore[misc]  # bound on purpose
        after = show("egsd.service", "MainPID", "NRestarts", "ActiveState")
        seconds = "never" if took is None else f"{took:.1f} s"
        guest.check(f"egsd {what}: systemd has it running again", took is not None, f"{seconds}; {after}")
        seen = start("vm-governed.service")
        guest.check(f"egsd {what}: then what is authorized runs", was_done(seen), seen)
        seen = start("vm-other.service")
        guest.check(f"egsd {what}: and what is not is refused", was_refused(seen), seen)
    said = run("journalctl", "--boot", "--no-pager", "--output=cat", "--unit=egsd.service").stdout
    guest.check("the watchdog ended the daemon that hung", "Watchdog timeout" in said)
    done = egs("audit", "verify")
    guest.check("the record is whole after all that", done.returncode == 0, done.stdout)


def _is_back(before: dict[str, str]) -> bool:
    now = show("egsd.service", "MainPID", "ActiveState")
    return now["ActiveState"] == "active" and now["MainPID"] not in {"0", before["MainPID"]}


def services_stop(guest: Guest) -> None:
    """Stopping opens nothing; the gate stands without its units."""
    began = time.monotonic()
    done = run("systemctl", "stop", "egsd.service")
    seen = show("egsd.service", "ActiveState", "Result")
    good = (done.returncode, seen["ActiveState"], seen["Result"]) == (0, "inactive", "success")
    guest.check("systemctl stop egsd", good, f"{time.monotonic() - began:.1f} s; {seen}")
    run("systemctl", "start", "egsd.service", "vm-enabled.service")
    before = show("vm-enabled.service", "MainPID")["MainPID"]
    run("systemctl", "restart", "egs-gate.service")
    until(lambda: show("vm-enabled.service", "MainPID")["MainPID"] not in {"0", before}, GATE_CAN_TAKE)
    again = show("vm-enabled.service", "ActiveState", "MainPID")
    good = again["ActiveState"] == "active" and again["MainPID"] != before
    guest.check("restarting egs-gate restarts what runs in the slice", good, (before, again))
    run("systemctl", "stop", "egs-gate.service")
    agent = show("vm-enabled.service", "ActiveState")["ActiveState"]
    guest.check("stopping egs-gate stops what runs in the slice", agent == "inactive", agent)
    status = egs("gate", "status")
    guest.check("stopping egs-gate leaves the gate in the kernel", status.returncode == 0, status.stdout)
    seen = start("vm-other.service")
    guest.check(
        "a start in the slice starts both again, and what is not authorized is refused",
        was_refused(seen),
        seen,
    )


def no_gate_no_start(guest: Guest) -> None:
    """When the gate cannot be loaded, nothing starts in the slice."""
    run("systemctl", "stop", "vm-enabled.service", "egs-agents.slice", "egs.slice")
    run("systemctl", "stop", "egsd.service", "egs-gate.service")
    unloaded = egs("gate", "unload")
    guest.check("egs gate unload", unloaded.returncode == 0, unloaded.stdout)
    done = run("setpriv", "--no-new-privs", EGS, "gate", "load", seconds=GATE_CAN_TAKE)
    refused = done.returncode == 3 and "no_new_privs is set" in done.stdout
    guest.check("under no_new_privs the gate is not loaded, and it says why", refused, done.stdout)
    config = Path("/etc/egs/egs.toml")
    config.write_text(config.read_text() + "\nnonsense = true\n")
    seen = start("vm-governed.service")
    gate = show("egs-gate.service", "ActiveState", "Result")
    good = not seen["wrote"] and "dependency" in seen["start"] and gate["ActiveState"] == "failed"
    guest.check("the gate cannot be loaded: nothing starts in the slice", good, (seen, gate))


PARTS: Final = (
    boot,
    order_at_boot,
    governed_slice,
    slice_comes_back,
    launches,
    constrained,
    monitored,
    witnessed,
    commands,
    daemon_dies,
    services_stop,
    issued,
    no_gate_no_start,
)


if __name__ == "__main__":
    observe("boot", PARTS, UNITS)
