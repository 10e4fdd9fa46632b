"""What is behind scripts/agent-example: the agent of docs/examples/agent, first as it is, then under the gate.

Exits 0 when every check passed, 1 otherwise. Undoes everything, also when it is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from demo import SECONDS, Demo, Ended, prepare

from egs_kernel.errors import EgsError
from egs_kernel.gate.cgroups import cgroup_mount

EXAMPLE: Final = Path(__file__).resolve().parents[1] / "docs/examples/agent"
AGENT: Final = EXAMPLE / "agent.py"
TOOLS: Final = {"ls": (), "wc": (), "sha256sum": (), "rm": ("rm", "draft.txt")}
"""The programs that the agent may start; with all arguments, or with exactly these."""
WORKS: Final = ("ls -1", "wc -w", "sha256sum", "rm draft.txt")
REFUSED: Final = ("rm -rf", "curl", "python3 -c", "fetch")


def workplace(demo: Demo, name: str) -> Path:
    """A folder with what the agent works on."""
    folder = demo.root / name
    folder.mkdir()
    (folder / "report.txt").write_text("Rates are up, and so are we.\n")
    (folder / "draft.txt").write_text("Rates are down.\n")
    (folder / "install.sh").write_text("echo got in > installed\n")
    return folder


def results(ended: Ended) -> dict[str, str]:
    """What the agent said came of each line."""
    lines = ended.out.splitlines()
    return dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))


def of(found: dict[str, str], beginning: str) -> str:
    """What came of the line that begins so."""
    return next((result for line, result in found.items() if line.startswith(beginning)), "it was not tried")


def show_it_free(demo: Demo) -> None:
    """The agent without the gate, in a folder that is there to be lost."""
    print("\nThe agent as it is")
    folder = workplace(demo, "free")
    found = results(demo.outside("/usr/bin/python3", "-I", AGENT, folder))
    demo.check("it does its job", all(of(found, line).startswith("done") for line in WORKS), found)
    demo.check(
        "and all that it was talked into", all(of(found, line).startswith("done") for line in REFUSED), found
    )
    left = {path.name for path in folder.iterdir()}
    demo.check("its report is stolen and gone", {"stolen", "report.txt"} & left == {"stolen"}, left)


def permit(demo: Demo) -> Path:
    """One artifact for each tool, which stands; one for the agent and its constraints, for one launch."""
    for tool, argv in TOOLS.items():
        path = shutil.which(tool)
        if path is None:
            raise SystemExit(f"agent-example: this host has no {tool}")
        words = [word for argument in argv for word in ("--argv", argument)]
        artifact = demo.issue(tool, Path(path), *words, "--purpose", "a tool of the agent")
        added = demo.egs("artifacts", "add", artifact)
        if added.code != 0:
            raise SystemExit(f"agent-example: {added.err}")
    argv = [word for argument in (AGENT, demo.root / "governed") for word in ("--argv", argument)]
    constraints = ("--constraints", EXAMPLE / "agent.toml", "--max-uses", "1")
    return demo.issue("agent", AGENT, *argv, *constraints, "--purpose", "the weekly report")


def show_it_governed(demo: Demo) -> int:
    """The same agent under the gate; its execution."""
    print("\nThe same agent under the gate")
    artifact, folder = permit(demo), workplace(demo, "governed")
    ended = demo.egs("run", "--artifact", artifact, "--", AGENT, folder)
    found = results(ended)
    for line in WORKS:
        demo.check(f"{line}: works", of(found, line).startswith("done"), of(found, line))
    for line in REFUSED:
        demo.check(f"{line}: refused", of(found, line).startswith("refused"), of(found, line))
    left = sorted(path.name for path in folder.iterdir())
    demo.check("its folder has what it had, less the draft", left == ["install.sh", "report.txt"], left)
    again = demo.egs("run", "--artifact", artifact, "--", AGENT, folder)
    demo.check("a second launch is not authorized", again.refused("uses_exhausted"), again)
    return execution(demo)


def entries(demo: Demo, kind: str) -> list[dict[str, Any]]:
    """The entries of the record that are of this type."""
    said = demo.egs("audit", "query", "--type", kind, "--json").out
    return [json.loads(line) for line in said.splitlines()]


def execution(demo: Demo) -> int:
    """The agent's: the one that was started by egs run."""
    armed = (entry["event"] for entry in entries(demo, "exec") if entry["event"]["grant_kind"] == "armed")
    return int(next(event["execution"] for event in armed))


def show_what_is_known(demo: Demo, agent: int) -> None:
    """Who started what, and what became of it, out of the record."""
    print("\nWhat the record knows of it")
    refusals = [entry["what"] for entry in _awaited(demo, "refusal") if int(entry["execution"]) == agent]
    demo.check(
        "the connection that it tried to open is a refusal of its execution", refusals == ["socket"], refusals
    )
    executed = [entry["event"] for entry in entries(demo, "exec")]
    below = [event for event in executed if int(event["parent_execution"]) == agent]
    refused = {
        event["filename"].rpartition("/")[2]: event["reason"]
        for event in below
        if event["verdict"] != "allow"
    }
    wanted = {"rm": "argv_mismatch", "sh": "no_grant", "python3": "no_grant"}
    demo.check("every program that was refused is there, and why", refused == wanted, refused)
    tree = demo.egs("lineage", str(agent), "--tree")
    demo.check("and the whole tree", tree.code == 0 and "sha256sum" in tree.out, tree)
    print("\n" + "\n".join(f"    {line}" for line in tree.out.splitlines()))


def _awaited(demo: Demo, kind: str) -> list[dict[str, Any]]:
    """The kernel's messages come when it has time for them."""
    deadline = time.monotonic() + SECONDS
    while not (found := entries(demo, kind)) and time.monotonic() < deadline:
        pass
    return found


def main() -> int:
    """Run the whole example."""
    root = Path(tempfile.mkdtemp(prefix="egs-agent-", dir="/var/tmp"))
    root.chmod(0o755)
    demo = Demo(root, cgroup_mount() / f"egs-agent-{os.getpid()}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    print(f"An agent under egs-kernel, in {root} and {demo.cgroup}\n")
    try:
        prepare(demo, grace=30)
        show_it_free(demo)
        show_what_is_known(demo, show_it_governed(demo))
    finally:
        demo.close()
    left = [str(path) for path in (demo.root, demo.cgroup, demo.paths.pins) if path.exists()]
    demo.check("nothing is left behind", not left, left)
    total = demo.passed + len(demo.failed)
    print(f"\n{demo.passed} of {total} checks passed.")
    return 0 if not demo.failed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EgsError as error:
        sys.exit(f"agent-example: {error}\n{error.next_step}")
