"""A part of the case `boot` (units.py): what egsd's capabilities are for, under a real systemd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.vm.guest.observing import EGS, egs, issue, run, until

if TYPE_CHECKING:
    from tests.vm.guest.observing import Guest

PROGRAM: Final = "/opt/agent/launched"  # cat(1)
FILES: Final = (
    "/proc/self/net/dev",
    "/proc/self/status",
    "/proc/self/limits",
    "/proc/self/cgroup",
    "/etc/shadow",
)
CONSTRAINTS: Final = """\
[syscalls]
profile = "default"
deny = ["fadvise64"]        # which cat makes, and does without

[filesystem]
base = "system"
read = ["/proc"]
degrade = ["truncate", "device-control"]

[network]
mode = "none"

[resources]
wallSeconds = 600
memory = 268435456
processes = 32
cpuPercent = 400
openFiles = 64

[process]
newPrivileges = "refused"
capabilities = "none"
umask = "0077"
"""


def constrained(guest: Guest) -> None:
    """A launch with every constraint, by root and by an ordinary user."""
    file = Path("/root/constraints.toml")
    file.write_text(CONSTRAINTS)
    words = [word for argument in (PROGRAM, *FILES) for word in ("--argv", argument)]
    artifact = issue("constrained", PROGRAM, *words, "--constraints", str(file))
    hers = Path("/home/alice/constrained.json")
    hers.write_bytes(Path(artifact).read_bytes())
    command = f"{EGS} run --artifact {{}} -- {PROGRAM} {' '.join(FILES)}"
    for user, line in (("root", command.format(artifact)), ("alice", command.format(hers))):
        said = run("su", "--login", user, "--command", line).stdout
        fresh = (
            re.search(r"^ *lo: +0 ", said, re.MULTILINE) is not None
        )  # the host's has what the console answered
        guest.check(f"{user}: a network of its own", fresh, said)
        wanted = ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "Umask:\t0077")
        guest.check(f"{user}: filter, capabilities, umask", all(line in said for line in wanted), said)
        guest.check(f"{user}: limits", "Max open files            64 " in said, said)
        guest.check(
            f"{user}: a cgroup of its own in the slice", "/egs.slice/egs-agents.slice/egs-tree-" in said, said
        )
        guest.check(f"{user}: /etc/shadow is refused", "/etc/shadow: Permission denied" in said, said)
    until(lambda: len({entry["execution"] for entry in refusals()}) == 2)
    found = {(entry["execution"], entry["word"], entry["what"]) for entry in refusals()}
    good = len(found) == 2 and {(word, what) for _, word, what in found} == {("syscalls", "fadvise64")}
    guest.check("what a filter refused is in the record, by execution", good, found)


def refusals() -> list[dict[str, str]]:
    """The entries of what constraints refused."""
    return [
        json.loads(line) for line in egs("audit", "query", "--type", "refusal", "--json").stdout.splitlines()
    ]
