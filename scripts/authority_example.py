"""What is behind scripts/authority-example: the five commands of docs/authority.md, as a transcript, and what is refused.

Exits 0 when every check passed, 1 otherwise. Undoes everything, also when it is interrupted.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from demo import BIN, SECONDS, Demo, Ended

from egs_kernel.errors import EgsError
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.packages import DPKG

USER: Final = "nobody"
"""A user that every host has. Installed, it is egs-authority (systemd/sysusers.d)."""
AGENT: Final = """import os
print("the agent runs as user", os.getuid(), "in", os.getcwd())
"""


class Walk(Demo):
    """The first walk: a folder to work in, and an authority beside the daemon."""

    authority: subprocess.Popen[str] | None = None

    @property
    def work(self) -> Path:
        """Where the commands are typed."""
        return self.root / "work"

    def type(self, line: str) -> Ended:
        """Run `egs` as it is shown, in the folder to work in, with what it prints."""
        print(f"\n$ {line}", flush=True)
        command = [BIN / "egs", *shlex.split(line)[1:]]
        ended = self.outside(*command, cwd=self.work, env=self.environment | {"PATH": f"{BIN}:/usr/bin:/bin"})
        print((ended.out + ended.err).replace(str(self.root), ""), end="")
        return ended

    def start_authority(self) -> None:
        """Start it, and return when it listens."""
        drop = ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups"]
        print(f"\n$ {' '.join(drop)} egs authority serve &", flush=True)
        self.authority = subprocess.Popen(
            [*drop, BIN / "egs", "authority", "serve"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=(self.root / "authority.log").open("ab"),
            text=True,
        )
        assert self.authority.stdout is not None  # noqa: S101 - for the type checker
        ready, _, _ = select.select([self.authority.stdout], [], [], SECONDS)
        if not ready:
            raise SystemExit(f"authority-example: {(self.root / 'authority.log').read_text()}")
        print(self.authority.stdout.readline().strip().replace(str(self.root), ""))

    def close(self) -> None:
        """Undo everything."""
        if self.authority is not None:
            self.authority.kill()
            self.authority.wait(SECONDS)
            if self.authority.stdout is not None:
                self.authority.stdout.close()
        super().close()


def five_commands(walk: Walk) -> None:
    """From nothing to a governed execution."""
    made = walk.type(
        f"egs authority init --scope agents --agent agent.py --user {USER} --cgroup /{walk.cgroup.name}"
    )
    print("\n$ egs gate load && egsd &", flush=True)
    walk.cgroup.mkdir()
    loaded = walk.egs("gate", "load")
    print(loaded.out, end="")
    walk.start_daemon()
    active = walk.type("egs policy activate ai-agent.json")
    walk.start_authority()
    ended = walk.type("egs run -- python3 agent.py")
    print()
    walk.check("five commands", not any(step.code for step in (made, loaded, active, ended)), ended)
    walk.check("the agent ran, governed", "the agent runs as user 0" in ended.out, ended)


def its_tool(walk: Walk) -> None:
    """The starter's other tool, which it names by its package: the authority finds out whose package the file is."""
    if not (DPKG / "info/git.list").exists():
        print("git is of no Debian package here: the tool git is not shown")
        return
    tool = walk.type("egs run -- git --version")
    print()
    walk.check("a tool by its package ran", "git version" in tool.out, tool)


def what_is_refused(walk: Walk) -> None:
    """The same agent, and what nobody permitted."""
    (walk.work / "other.py").write_text("print('got in')\n")
    other = walk.type("egs run -- python3 other.py")
    tool = walk.type("egs run -- ls")
    with (walk.work / "agent.py").open("a") as file:
        file.write("print('changed')\n")
    inside = walk.inside("/usr/bin/python3", walk.work / "agent.py")
    print()
    walk.check("a script that nobody reviewed: policy_denied", other.refused("policy_denied"), other)
    walk.check("a program that is none of its tools: policy_denied", tool.refused("policy_denied"), tool)
    walk.check("in the scope, without asking: killed before its first instruction", inside.killed, inside)
    record = walk.type("egs audit verify")
    walk.check("the record verifies", record.code == 0, record)


def main() -> int:
    """Run the whole example."""
    root = Path(tempfile.mkdtemp(prefix="egs-authority-", dir="/var/tmp"))
    root.chmod(0o755)
    walk = Walk(root, cgroup_mount() / f"egs-authority-{os.getpid()}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    print(f"A first authority, in {root} and {walk.cgroup}")
    try:
        walk.work.mkdir()
        for folder in (walk.paths.run_dir, walk.paths.state_dir):
            folder.mkdir(parents=True)
        (walk.work / "agent.py").write_text(AGENT)
        five_commands(walk)
        its_tool(walk)
        what_is_refused(walk)
    finally:
        walk.close()
    left = [str(path) for path in (walk.root, walk.cgroup, walk.paths.pins) if path.exists()]
    walk.check("nothing is left behind", not left, left)
    total = walk.passed + len(walk.failed)
    print(f"\n{walk.passed} of {total} checks passed.")
    return 0 if not walk.failed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EgsError as error:
        sys.exit(f"authority-example: {error}\n{error.next_step}")
