"""Parts of the case `boot` (units.py): what runs beside egsd under a real systemd: the monitor, the authority, a witness."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.vm.guest.observing import EGS, PATIENCE, egs, issue, journal, run, show, until

if TYPE_CHECKING:
    from tests.vm.guest.observing import Guest

AUTHORITY: Final = "egs-authority"
KEYS: Final = {"/var/lib/egs/log-keys": "egsd", f"/var/lib/{AUTHORITY}/issuer.key": AUTHORITY}
"""What only one process may read."""
WORK: Final = Path("/srv/work")
AGENT: Final = 'import os\nprint("the agent runs as user", os.getuid())\n'
WITNESS: Final = """\
name = "vm/w1"
listen = "127.0.0.1:9733"

[[log]]
origin = "{origin}"
keys = ["{key}"]
"""
SUBMITTED: Final = """\
[record]
witness_interval = "1s"

[[witness]]
url = "http://127.0.0.1:9733"
key = "{key}"
"""
AS_WITNESS: Final = ("setpriv", "--reuid=egs-witness", "--regid=egs-witness", "--clear-groups")


# -- the monitor -------------------------------------------------------------------------------------


def monitored(guest: Guest) -> None:
    """It watches as its unit confines it: it finds, it ends what the rules say, and the next one says what nobody watched."""
    pid = show("egs-monitor.service", "MainPID")["MainPID"]
    status = Path(f"/proc/{pid}/status").read_text()
    confined = all(line in status for line in ("NoNewPrivs:\t1", "Seccomp:\t2"))
    guest.check("egs-monitor runs under its unit's filter", confined, status)
    rules = Path("/etc/egs/drift.toml")
    found, process = moved_away()
    guest.check("a program that leaves its cgroup is found, by an event", found["source"] == "drift", found)
    guest.check("and by default only told", process.poll() is None, found)
    process.communicate("", timeout=PATIENCE)
    rules.write_text('[responses]\ncgroup_left = "terminate"\n')
    reloaded = egs("reload")
    guest.check("egs reload takes drift.toml", reloaded.returncode == 0, reloaded.stdout)
    found, process = moved_away()
    process.communicate(timeout=PATIENCE)
    until(lambda: bool(responses(found)))
    done = [(each["response"], each["verified"]) for each in responses(found)]
    good = (process.returncode, done) == (-signal.SIGKILL, [("terminate", True)])
    guest.check("with a rule it is ended", good, (process.returncode, found, done))
    rules.unlink()
    egs("reload")
    intervals = unwatched()
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: show("egs-monitor.service", "MainPID")["MainPID"] not in {"0", pid})
    said = until(lambda: unwatched() > intervals)
    until(lambda: show("egs-monitor.service", "ActiveState")["ActiveState"] == "active")
    state = show("egs-monitor.service", "ActiveState", "NRestarts")
    guest.check(
        "killed, systemd starts another one, which says what nobody watched",
        said is not None and state == {"ActiveState": "active", "NRestarts": "1"},
        (state, drift("watch")),
    )


def moved_away() -> tuple[dict[str, Any], subprocess.Popen[str]]:
    """A governed launch that root moves out of its cgroup: the finding, and the process."""
    file = issue("watched", "/opt/agent/launched", "--purpose", "a launch that is moved")
    command = (EGS, "run", "--artifact", file, "--", "/opt/agent/launched")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: str(process.pid) in egs("ps").stdout)
    Path("/sys/fs/cgroup/cgroup.procs").write_text(f"{process.pid}\n")

    def told() -> list[dict[str, Any]]:
        return [
            each
            for each in drift("finding")
            if each["finding"] == "cgroup_left" and each["pid"] == process.pid
        ]

    until(lambda: bool(told()))
    return told()[0], process


def responses(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was done about a finding."""
    return [each for each in drift("response") if each["number"] == found["number"]]


def unwatched() -> int:
    """How many intervals the record says that nobody watched."""
    return len([each for each in drift("watch") if each.get("since")])


def drift(kind: str) -> list[dict[str, Any]]:
    """The entries of one type that `egs drift` shows."""
    entries = json.loads(egs("drift", "history", "--json").stdout)["entries"]
    return [entry for entry in entries if entry["type"] == kind]


# -- the authority -----------------------------------------------------------------------------------


def issued(guest: Guest) -> None:
    """The walk of docs/authority.md by its unit: a user of its own, artifacts over its socket, keys that it cannot read."""
    WORK.mkdir(mode=0o755)
    (WORK / "agent.py").write_text(AGENT)
    (WORK / "other.py").write_text("print('got in')\n")
    made = typed("egs authority init --scope agents --agent agent.py")
    reloaded = egs("reload")
    good = (made.returncode, reloaded.returncode) == (0, 0)
    guest.check("egs authority init, and egsd knows its keys", good, made.stdout + reloaded.stdout)
    active = typed("egs policy activate ai-agent.json")
    refused = active.returncode == 1 and "were issued under another policy set" in active.stdout
    guest.check("a set that would lock out what stands is not activated", refused, active.stdout)
    active = typed("egs policy activate --anyway ai-agent.json")
    guest.check("but if somebody says so", active.returncode == 0, active.stdout)
    run("systemctl", "start", "egs-authority.service")
    until(lambda: egs("authority", "status").returncode == 0)
    state = show("egs-authority.service", "ActiveState", "SubState", "NRestarts")
    good = state == {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}
    guest.check("egs-authority.service is active (running)", good, (state, journal("egs-authority.service")))
    pid = show("egs-authority.service", "MainPID")["MainPID"]
    status = Path(f"/proc/{pid}/status").read_text()
    wanted = (
        rf"^Uid:\t{pwd.getpwnam(AUTHORITY).pw_uid}\t",
        r"^CapEff:\t0+$",
        r"^CapBnd:\t0+$",
        r"^Seccomp:\t2$",
    )
    guest.check(
        "as a user of its own, without a capability",
        all(re.search(line, status, re.MULTILINE) for line in wanted),
        status,
    )
    ran = typed("egs run -- python3 agent.py")
    guest.check(
        "egs run gets an artifact over its socket",
        (ran.returncode, ran.stdout) == (0, "the agent runs as user 0\n"),
        ran.stdout,
    )
    for what, denied in (
        ("another script", typed("egs run -- python3 other.py")),
        ("another user", typed("egs run -- python3 agent.py", "alice")),
    ):
        guest.check(
            f"{what} is denied by policy",
            denied.returncode == 126 and "[policy_denied]" in denied.stdout,
            denied.stdout,
        )
    key = json.loads(egs("authority", "status", "--json").stdout)["recordKey"]
    as_it = ("setpriv", f"--reuid={AUTHORITY}", f"--regid={AUTHORITY}", "--clear-groups")
    verified = run(*as_it, EGS, "audit", "verify", f"/var/lib/{AUTHORITY}/record", "--key", key)
    guest.check("its record verifies by its key", verified.returncode == 0, verified.stdout)
    keys_of_others(guest, pid)
    run("systemctl", "stop", "egs-authority.service")


def keys_of_others(guest: Guest, authority: str) -> None:
    """Who of egsd and the authority sees which key: in the mount namespace of its unit, even as root."""
    pids = {"egsd": show("egsd.service", "MainPID")["MainPID"], AUTHORITY: authority}
    for path, owner in KEYS.items():
        for name, pid in pids.items():
            seen = run("nsenter", f"--target={pid}", "--mount", "test", "-e", path).returncode == 0
            guest.check(
                f"{name} {'sees' if name == owner else 'does not see'} {path}", seen is (name == owner)
            )
    user = ("setpriv", f"--reuid={AUTHORITY}", f"--regid={AUTHORITY}", "--clear-groups")
    there = next(Path("/var/lib/egs/log-keys").glob("*.key"))
    refused = run(*user, "cat", str(there))
    guest.check("its user cannot read the log's key", "Permission denied" in refused.stdout, refused.stdout)


def typed(line: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    """A line typed into a shell of a user, in the folder to work in."""
    return run(
        "setpriv",
        f"--reuid={user}",
        "--init-groups",
        f"--regid={user}",
        "sh",
        "-c",
        f"cd {WORK} && PATH=/opt/egs/bin:$PATH && {line}",
    )


# -- a witness ---------------------------------------------------------------------------------------


def witnessed(guest: Guest) -> None:
    """A witness on this host, for once, and what brings it the log's checkpoints."""
    shown = json.loads(egs("audit", "key", "show", "--json").stdout)
    Path("/etc/egs/witness.toml").write_text(
        WITNESS.format(origin=shown["origin"], key=shown["verifier_key"])
    )
    run("systemctl", "start", "egs-witness.service")
    until(lambda: run(*AS_WITNESS, EGS, "witness", "key").returncode == 0)
    key = run(*AS_WITNESS, EGS, "witness", "key").stdout.strip()
    config = Path("/etc/egs/egs.toml")
    before = config.read_text()
    config.write_text(f"{before}\n{SUBMITTED.format(key=key)}")
    reloaded = run("systemctl", "reload", "egsd.service")
    guest.check("egsd takes a witness", reloaded.returncode == 0, reloaded.stdout)
    run("systemctl", "start", "egs-submit.service")
    cosigned = until(lambda: any(witness["entries"] for witness in witnesses()))
    said = journal("egs-witness.service") + journal("egs-submit.service")
    guest.check("the witness cosigns what egs-submit brings it", cosigned is not None, said)
    for unit in ("egs-witness.service", "egs-submit.service"):
        state = show(unit, "ActiveState", "NRestarts")
        guest.check(f"{unit} runs", state == {"ActiveState": "active", "NRestarts": "0"}, state)
    run("systemctl", "stop", "egs-submit.service", "egs-witness.service")
    config.write_text(before)
    run("systemctl", "reload", "egsd.service")


def witnesses() -> list[dict[str, int]]:
    """What egsd knows of its witnesses."""
    said = egs("status", "--json")
    return list(json.loads(said.stdout)["details"]["witnesses"]) if said.returncode == 0 else []
