"""The demonstration behind scripts/quickstart: a governed scope, real programs, one observation a line.

Exits 0 when every check passed, 1 otherwise. Undoes everything, also when it is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from egs_kernel.errors import EgsError
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.loader import unload_gate
from egs_kernel.paths import Paths

BIN: Final = Path(sys.executable).parent
NOBODY: Final = 65534
SECONDS: Final = 300  # for each command: by emulation, to load the gate takes a minute
GRACE_SECONDS: Final = 2
CONFIG: Final = """\
daemon_grace = "{grace}s"
host_id = "demo-host"

[[scope]]
name = "demo"
cgroup = "/{cgroup}"
mode = "enforce"
on_missing = "kill"
"""
NO_MKDIR: Final = '[syscalls]\ndeny = ["mkdir", "mkdirat"]\n'


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str = ""

    @property
    def killed(self) -> bool:
        """Whether it died by SIGKILL without a word."""
        return self.code == -signal.SIGKILL and self.out == ""

    def refused(self, reason: str) -> bool:
        """Whether `egs run` refused it for that reason."""
        return self.code == 126 and f"[{reason}]" in self.err and self.out == ""  # noqa: PLR2004 - as a shell says it

    def __str__(self) -> str:
        said = (self.err.strip() or self.out.strip()).splitlines()
        return f"exit {self.code}" + (f": {said[0]}" if said else "")


@dataclass
class Demo:
    """One EGS_ROOT, one cgroup, one daemon."""

    root: Path
    cgroup: Path
    daemon: subprocess.Popen[bytes] | None = None
    passed: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        """Where this instance lives."""
        return Paths.under(str(self.root))

    @property
    def environment(self) -> dict[str, str]:
        """What makes a command use this instance."""
        return os.environ | {"EGS_ROOT": str(self.root)}

    # -- doing -------------------------------------------------------------------------------------

    def egs(self, *words: str | Path) -> Ended:
        """Run `egs`."""
        return self.outside(BIN / "egs", *words)

    def outside(self, *command: str | Path, **options: Any) -> Ended:
        """Run a command in no scope."""
        given: dict[str, Any] = {"env": self.environment, "timeout": SECONDS} | options
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False, **given
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def inside(self, *command: str | Path, also: Callable[[], None] = lambda: None) -> Ended:
        """Run a command in the governed scope, by a plain execve."""

        def enter() -> None:
            (self.cgroup / "cgroup.procs").write_text("0\n")
            also()

        return self.outside(*command, preexec_fn=enter)

    def issue(self, name: str, program: Path, *words: str | Path, key: str = "issuer") -> Path:
        """Have an artifact issued."""
        file = self.root / f"{name}.json"
        common = ("--key", self.root / f"{key}.key", "--scope", "demo", "--out", file)
        done = self.egs("issue", *common, "--program", program, *words)
        if done.code != 0:
            raise SystemExit(f"egs issue: {done.err}")
        return file

    def identify(self, artifact: Path) -> str:
        """The id of an artifact."""
        return str(json.loads(self.egs("show", artifact, "--json").out)["id"])

    def start_daemon(self) -> None:
        """Start the real daemon and wait until it says that it is ready (sd_notify)."""
        address = f"@egs-demo-{os.getpid()}"
        with _notify_socket(address) as ready:
            self.daemon = subprocess.Popen(
                [BIN / "egsd", "--foreground"],
                env=self.environment | {"NOTIFY_SOCKET": address},
                stderr=(self.root / "egsd.log").open("ab"),
            )
            ready()

    def kill_daemon(self) -> None:
        """SIGKILL: no chance to tidy up."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(SECONDS)
            self.daemon = None

    # -- observing ---------------------------------------------------------------------------------

    def check(self, what: str, observed: bool, detail: object = "") -> None:  # noqa: FBT001 - the observation
        """Say what was observed; anything else than success says what was seen instead."""
        if observed:
            self.passed += 1
        else:
            self.failed.append(what)
        mark = "\N{CHECK MARK}" if observed else "\N{BALLOT X}"
        note = f"  ({detail})" if detail and not observed else ""
        print(f"  {mark} {what}{note}", flush=True)

    def reasons(self, **wanted: str) -> list[str]:
        """The reasons in the record of entries that match."""
        conditions = [word for name, value in wanted.items() for word in (f"--{name}", value)]
        lines = self.egs("audit", "query", "--json", *conditions).out.splitlines()
        return [(entry.get("event") or entry).get("reason", "") for entry in map(json.loads, lines)]

    def close(self) -> None:
        """Undo everything."""
        self.kill_daemon()
        unload_gate(self.paths)
        if self.cgroup.is_dir():
            (self.cgroup / "cgroup.kill").write_text("1")
            _wait_until_empty(self.cgroup)
            self.cgroup.rmdir()
        shutil.rmtree(self.root)


def prepare(demo: Demo, grace: int = GRACE_SECONDS) -> None:
    """Keys, trust, configuration, the gate, the daemon."""
    for folder in (demo.paths.trust, demo.paths.artifacts, demo.paths.run_dir, demo.paths.state_dir):
        folder.mkdir(parents=True)
    demo.paths.config.write_text(CONFIG.format(grace=grace, cgroup=demo.cgroup.name))
    demo.cgroup.mkdir()
    for name in ("issuer", "stranger"):
        _must(demo.egs("keys", "generate", "--name", name, "--out", demo.root))
    _must(demo.egs("trust", "add", demo.root / "issuer.pub", "--role", "issuer", "--scope", "demo"))
    started = time.monotonic()
    loaded = json.loads(_must(demo.egs("gate", "load", "--json")).out)
    demo.check(f"gate loaded and proven by {len(loaded['checks'])} self-test checks", bool(loaded["checks"]))
    demo.start_daemon()
    demo.check("daemon ready", demo.egs("status").code == 0)
    print(f"    (in {time.monotonic() - started:.1f} s; tier {_tier(demo)})")


def show_the_rule(demo: Demo, echo: Path) -> None:
    """Nothing without an artifact; with one it runs."""
    print("\nIn the governed scope nothing runs without an artifact")
    demo.check("outside the scope a program runs", demo.outside(echo, "free").out == "free\n")
    ended = demo.inside(echo, "hello")
    demo.check(
        "inside the scope, without an artifact, the same program dies before its first instruction",
        ended.killed,
        ended,
    )
    ended = demo.inside("/usr/bin/env", echo, "hello")
    demo.check("whatever starts it", ended.killed, ended)
    ended = demo.inside(
        echo, "hello", also=lambda: (cgroup_mount() / "cgroup.procs").write_text("0\n") and None
    )
    demo.check("also after it left the scope's cgroup", ended.killed, ended)

    standing = demo.issue("standing", echo, "--purpose", "say things")
    verified = demo.egs("verify", standing)
    demo.check(
        "an artifact is signed, and verifies offline with public keys alone", verified.code == 0, verified
    )
    _must(demo.egs("artifacts", "add", standing))
    ended = demo.inside(echo, "hello")
    demo.check(
        "with the artifact in force the program runs, by a plain execve", ended.out == "hello\n", ended
    )


def show_launches(demo: Demo, echo: Path, mkdir: Path) -> None:
    """`egs run`: an authorization for one execution, with constraints."""
    print("\negs run: one authorization, one execution")
    armed = demo.issue("armed", echo, "--argv", "echo", "--argv", "one")
    ended = demo.egs("run", "--artifact", armed, "--argv0", "echo", "--", echo, "one")
    demo.check("egs run executes what was signed", (ended.code, ended.out) == (0, "one\n"), ended)

    (demo.root / "no-mkdir.toml").write_text(NO_MKDIR)
    free = demo.issue("mkdir", mkdir)
    bound = demo.issue("no-mkdir", mkdir, "--constraints", demo.root / "no-mkdir.toml")
    ended = demo.egs("run", "--artifact", free, "--", mkdir, demo.root / "a")
    demo.check("a program may make a folder", ended.code == 0 and (demo.root / "a").is_dir(), ended)
    ended = demo.egs("run", "--artifact", bound, "--", mkdir, demo.root / "b")
    denied = ended.code == 1 and "not permitted" in ended.err and not (demo.root / "b").exists()
    demo.check("under the signed seccomp constraint the same call fails", denied, ended)


def show_refusals(demo: Demo, echo: Path) -> None:
    """Each thing that can be wrong, and its reason."""
    print("\nRefused, each for its reason")

    def refused(what: str, artifact: Path, reason: str, *arguments: str, **options: Any) -> None:
        command = (BIN / "egs", "run", "--artifact", artifact, "--argv0", "echo", "--", echo, *arguments)
        ended = demo.outside(*command, **options)
        demo.check(f"{what}: {reason}", ended.refused(reason), ended)

    one = demo.issue("exact", echo, "--argv", "echo", "--argv", "one")
    refused("other arguments", one, "argv_mismatch", "two")
    somebody = demo.issue("user", echo, "--uid", str(NOBODY))
    refused("another user", somebody, "identity_mismatch", "x")
    past = demo.root / "brief.json"
    _wait_until_past(demo, past)
    refused("expired", past, "expired", "x")
    elsewhere = demo.issue("elsewhere", echo, "--host", "another-host")
    refused("issued for another host", elsewhere, "host_mismatch", "x")
    forged = demo.issue("forged", echo, key="stranger")
    refused("signed by a key that nobody trusts", forged, "key_untrusted", "x")
    envelope = json.loads(one.read_text())
    envelope["signatures"][0]["sig"] = json.loads(somebody.read_text())["signatures"][0]["sig"]
    swapped = demo.root / "swapped.json"
    swapped.write_text(json.dumps(envelope))
    refused("with the signature of another artifact", swapped, "signature_invalid", "one")
    once = demo.issue("once", echo, "--max-uses", "1")
    demo.egs("run", "--artifact", once, "--", echo, "x")
    refused("used up", once, "uses_exhausted", "x")


def show_revocation_and_tampering(demo: Demo, echo: Path) -> None:
    """A standing artifact that is revoked, and a binary that is changed."""
    print("\nRevoked, tampered with")
    other = echo.with_name("other-echo")
    shutil.copy(echo, other)
    standing = demo.issue("other", other, "--purpose", "to be tampered with")
    _must(demo.egs("artifacts", "add", standing))
    ended = demo.inside(other, "whole")
    demo.check("a measured program runs", ended.out == "whole\n", ended)
    with other.open("ab") as file:
        file.write(b"tampered")
    ended = demo.inside(other, "tampered")
    demo.check("one byte more and it dies", ended.killed, ended)
    ended = demo.egs("run", "--artifact", standing, "--", other, "tampered")
    demo.check("and is refused: digest_mismatch", ended.refused("digest_mismatch"), ended)

    _must(demo.egs("revoke", demo.identify(demo.root / "standing.json")))
    ended = demo.inside(echo, "revoked")
    demo.check("a revoked artifact: the next plain execve dies", ended.killed, ended)
    ended = demo.egs("run", "--artifact", demo.root / "standing.json", "--", echo, "revoked")
    demo.check("and egs run refuses: revoked", ended.refused("revoked"), ended)


def show_failing_closed(demo: Demo, echo: Path) -> None:
    """Without its daemon the gate refuses; a new daemon picks up."""
    print("\nWithout its daemon")
    again = demo.issue("again", echo, "--purpose", "after the revocation")
    _must(demo.egs("artifacts", "add", again))
    ended = demo.inside(echo, "before")
    demo.check("an authorized program runs", ended.out == "before\n", ended)
    demo.kill_daemon()
    ended = demo.inside("/usr/bin/id")
    demo.check("daemon killed: what was not authorized still dies", ended.killed, ended)
    _wait_until_stale(demo)
    ended = demo.inside(echo, "stale")
    demo.check(
        f"after {GRACE_SECONDS} s without a heartbeat everything in the scope dies", ended.killed, ended
    )
    demo.start_daemon()
    ended = demo.inside(echo, "after")
    demo.check("a new daemon picks up where the old one was", ended.out == "after\n", ended)
    ended = demo.egs("run", "--artifact", demo.root / "once.json", "--", echo, "x")
    demo.check("what was used up stays used up", ended.refused("uses_exhausted"), ended)


def show_the_record(demo: Demo) -> None:
    """Everything above is in the record, and the record is whole."""
    print("\nThe record")
    verified = demo.egs("audit", "verify")
    demo.check("the record verifies, up to its signed checkpoint", verified.code == 0, verified)
    kills = set(demo.reasons(verdict="kill"))
    wanted = {"no_grant", "daemon_stale"}
    demo.check("it has every kill of the gate", wanted <= kills, wanted - kills)
    denials = set(demo.reasons(verdict="deny"))
    wanted = {
        "argv_mismatch", "identity_mismatch", "expired", "host_mismatch", "key_untrusted", "signature_invalid",
        "uses_exhausted", "digest_mismatch", "revoked",
    }  # fmt: skip
    demo.check("it has every refusal of the daemon, with its reason", wanted <= denials, wanted - denials)
    runs = demo.reasons(verdict="allow", type="exec")
    demo.check(f"it has the {len(runs)} executions that were authorized", set(runs) == {"authorized"}, runs)


def main() -> int:
    """Run the whole demonstration."""
    root = Path(tempfile.mkdtemp(prefix="egs-quickstart-"))
    root.chmod(0o755)
    demo = Demo(root, cgroup_mount() / f"egs-quickstart-{os.getpid()}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    print(f"egs-kernel quickstart, in {root} and {demo.cgroup}\n")
    try:
        echo, mkdir = demo.root / "echo", demo.root / "mkdir"
        shutil.copy("/bin/echo", echo)
        shutil.copy("/bin/mkdir", mkdir)
        prepare(demo)
        demo.issue("brief", echo, "--valid-for", "1s")
        show_the_rule(demo, echo)
        show_launches(demo, echo, mkdir)
        show_refusals(demo, echo)
        show_revocation_and_tampering(demo, echo)
        show_failing_closed(demo, echo)
        show_the_record(demo)
    finally:
        demo.close()
    left = [str(path) for path in (demo.root, demo.cgroup, demo.paths.pins) if path.exists()]
    demo.check("nothing is left behind", not left, left)
    total = demo.passed + len(demo.failed)
    print(f"\n{demo.passed} of {total} checks passed.")
    return 0 if not demo.failed else 1


@contextlib.contextmanager
def _notify_socket(address: str) -> Iterator[Callable[[], None]]:
    """What systemd gives a Type=notify service: a socket that gets READY=1."""
    import socket  # noqa: PLC0415 - only here

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0{address[1:]}")
        notify.settimeout(SECONDS)

        def ready() -> None:
            while b"READY=1" not in notify.recv(4096):
                pass

        yield ready


def _wait_until_stale(demo: Demo) -> None:
    """Time itself is what is waited for; the gate's own clock says when it has passed."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        age = json.loads(demo.egs("gate", "status", "--json").out)["heartbeat_age"]
        if age is None or age > GRACE_SECONDS:
            return


def _wait_until_past(demo: Demo, artifact: Path) -> None:
    """Until an artifact's window has passed, as the verifier has it."""
    deadline = time.monotonic() + SECONDS
    while demo.egs("verify", artifact).code == 0 and time.monotonic() < deadline:
        pass


def _wait_until_empty(cgroup: Path) -> None:
    with (cgroup / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        for _ in range(SECONDS):
            events.seek(0)
            if re.search("^populated 0", events.read(), re.MULTILINE):
                return
            poll.poll(1000)


def _tier(demo: Demo) -> str:
    return str(json.loads(demo.egs("gate", "status", "--json").out)["tier"])


def _must(ended: Ended) -> Ended:
    if ended.code != 0:
        raise SystemExit(f"quickstart: {ended}\n{ended.err}")
    return ended


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EgsError as error:
        sys.exit(f"quickstart: {error}\n{error.next_step}")
