"""A whole running system for one test: an instance with its gate loaded, a trusted key, and the real daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from egs_kernel.audit.entries import Decision, EntryType, Exec
from egs_kernel.audit.layout import JOURNAL
from egs_kernel.audit.reader import read
from egs_kernel.daemon.watch import FILE, FOLDER, Watcher
from egs_kernel.model import Reason, Verdict
from tests import refusals
from tests.harness import BIN, COMMAND_SECONDS, PATIENCE, REPOSITORY, Instance

SECONDS: Final = 20.0 * PATIENCE

_E = TypeVar("_E", bound=EntryType)
_ISSUER: Final[dict[str, tuple[bytes, int]]] = {}
"""The files of the key that every system of the tests trusts: content and mode by name."""


class Running:
    """The system under test. Nothing here pretends: commands, daemon, gate and kernel are the real ones."""

    def __init__(self, instance: Instance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder
        self.daemon: subprocess.Popen[str] | None = None
        self._watcher = Watcher(lambda: None)
        self._trust_an_issuer()
        instance.paths.artifacts.mkdir(mode=0o755)
        instance.egs("gate", "load")
        self.start()

    def _trust_an_issuer(self) -> None:
        """By the real commands once; every other system has the same key, by the same files."""
        trust = self.instance.paths.trust
        if _ISSUER:
            trust.mkdir(mode=0o755, exist_ok=True)
            for name, (content, mode) in _ISSUER.items():
                path = (self.folder if name.startswith("issuer.") else trust) / name
                path.write_bytes(content)
                path.chmod(mode)
            return
        self.instance.egs("keys", "generate", "--name", "issuer", "--out", str(self.folder))
        public = str(self.folder / "issuer.pub")
        self.instance.egs("trust", "add", public, "--role", "issuer", "--scope", "test")
        for path in (self.folder / "issuer.key", self.folder / "issuer.pub", *trust.iterdir()):
            _ISSUER[path.name] = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)

    # -- the daemon ------------------------------------------------------------------------------

    def start(self, *prefix: str) -> None:
        """Start egsd, by a command before it, and return when it says that it serves."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.settimeout(SECONDS)
            path = self.folder / "notify"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            with (self.folder / "egsd.log").open("a") as log:
                self.daemon = subprocess.Popen(
                    [*prefix, str(BIN / "egsd"), "--foreground"],
                    env=self.instance.environment | {"NOTIFY_SOCKET": str(path)},
                    stderr=log,
                    text=True,
                )
            self.instance.reap_also(self.daemon.pid)
            while b"READY=1" not in notify.recv(4096):
                pass

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon and return its exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        return self.daemon.wait(SECONDS)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self.daemon is not None
        return self.daemon.pid

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The daemon is stopped: it notices nothing, and its grants stand for its grace."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the daemon, if it runs."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait(SECONDS)
        self._watcher.close()

    # -- what a user does ------------------------------------------------------------------------

    def copy(self, source: str, name: str) -> Path:
        """A program of our own, which no other test touches. It appears whole: nobody measures half of it."""
        path, part = self.folder / name, self.folder / f".{name}.part"
        part.write_bytes(Path(source).read_bytes())
        part.chmod(0o755)
        return part.rename(path)

    def issue(self, program: Path, *more: str, name: str = "artifact.json", key: str = "issuer") -> Path:
        """Issue an artifact for a program."""
        out = self.folder / name
        self.instance.egs(
            "issue",
            *("--key", str(self.folder / f"{key}.key"), "--scope", "test"),
            *("--program", str(program), "--out", str(out), *more),
        )
        return out

    def add(self, artifact: Path) -> str:
        """Let an artifact stand; its id."""
        return str(json.loads(self.instance.egs("artifacts", "add", str(artifact), "--json").stdout)["id"])

    def artifacts(self) -> dict[str, Any]:
        """What `egs artifacts list` says, by artifact id."""
        listed = json.loads(self.instance.egs("artifacts", "list", "--json").stdout)["artifacts"]
        return {item["id"]: item for item in listed}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`egs run` with these arguments."""
        given: dict[str, Any] = {"env": self.instance.environment, "capture_output": True, "text": True}
        command = [str(BIN / "egs"), "run", *arguments]
        return subprocess.run(command, check=False, timeout=COMMAND_SECONDS, **(given | options))

    def inside(self, *command: str) -> int:
        """Execute a command in the scope with a plain execve; its exit status."""
        done = refusals.run(
            command,
            self.instance.cgroup.enter,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
        )
        return done.returncode

    def output(self, *command: str | Path, governed: bool = True, **options: Any) -> tuple[int, str]:
        """Execute a command, in the scope or outside of it: its exit status, and what it printed. EPERM is a 126."""
        try:
            done = subprocess.run(
                [str(word) for word in command],
                preexec_fn=self.instance.cgroup.enter if governed else None,
                check=False,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                **options,
            )
        except PermissionError:
            return 126, ""
        return done.returncode, done.stdout

    def as_nobody(self, *command: str, group: int = 65534) -> subprocess.CompletedProcess[str]:
        """Run a command as a user without any rights but a group's, who can enter this checkout wherever it lies."""
        drop = ["setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups"]
        return subprocess.run(
            [*_entrance(self.folder), *drop, *command],
            env=self.instance.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            cwd="/",
        )

    # -- what came of it -------------------------------------------------------------------------

    def record(self) -> list[EntryType]:
        """Every entry of the record."""
        return [recorded.entry for recorded in read(self.instance.paths.record)]

    def entries(self, kind: type[_E]) -> list[_E]:
        """The entries of one type."""
        return [entry for entry in self.record() if isinstance(entry, kind)]

    def wait_for(self, kind: type[_E], wanted: Callable[[_E], bool]) -> _E:
        """The first entry of a type that is as wanted, as soon as it is in the record."""
        return self.wait_for_all(kind, wanted, 1)[0]

    def wait_for_all(self, kind: type[_E], wanted: Callable[[_E], bool], count: int) -> list[_E]:
        """The entries of a type that are as wanted, as soon as there are `count` of them in the record."""
        watch = self._watcher.add(self.instance.paths.record / JOURNAL, FILE | FOLDER, lambda _name: None)
        assert watch is not None
        deadline = time.monotonic() + SECONDS
        while (left := deadline - time.monotonic()) > 0:
            found = [entry for entry in self.entries(kind) if wanted(entry)]
            if len(found) >= count:
                return found
            select.select([self._watcher.fileno()], [], [], left)
            self._watcher.dispatch()
        raise AssertionError(f"{count} of {kind.__name__} did not come; the daemon said: {self.log()}")

    def wait_for_exec(self, program: Path | str, verdict: Verdict, count: int = 1) -> list[Exec]:
        """The execs of a program that were decided so, when there are `count` of them."""

        def of(entry: Exec) -> bool:
            return entry.event.filename == str(program) and entry.event.verdict is verdict

        return self.wait_for_all(Exec, of, count)

    def wait_for_refusal(self, program: Path | str, reason: Reason) -> list[Exec]:
        """The execs of a program that were refused for this reason, when there is one: also where others of it were, for others."""

        def of(entry: Exec) -> bool:
            return entry.event.filename == str(program) and entry.event.reason is reason

        return self.wait_for_all(Exec, of, 1)

    def wait_for_decisions(self, reason: Reason, count: int = 1) -> list[Decision]:
        """The decisions for this reason, when there are `count` of them."""
        return self.wait_for_all(Decision, lambda entry: entry.reason is reason, count)

    def wait_until_standing(self) -> None:
        """Return when every artifact of the folder stands: the grant follows the decision, which is in the record before."""
        deadline = time.monotonic() + SECONDS
        while any(found["state"] != "standing" for found in self.artifacts().values()):
            assert time.monotonic() < deadline, self.log()

    def wait_until_it_runs(self, program: Path) -> None:
        """Return when a program runs in the scope: also where a grant of before stands until the next one is there."""
        deadline = time.monotonic() + SECONDS
        while self.inside(str(program)) != 0:
            assert time.monotonic() < deadline, self.log()

    def wait_for_file(self, path: Path) -> None:
        """Return when something is at `path`."""
        self._wait_in(path.parent, path.exists)

    def wait_for_metric(self, *words: str, value: str = "") -> None:
        """Return when the metrics have a line with these words that ends so: they are written every few seconds."""
        path = self.instance.paths.metrics

        def said() -> bool:
            lines = path.read_text().splitlines() if path.exists() else []
            return any(line.endswith(value) and all(word in line for word in words) for line in lines)

        self._wait_in(path.parent, said)

    def _wait_in(self, folder: Path, done: Callable[[], bool]) -> None:
        self._watcher.add(folder, FOLDER, lambda _name: None)
        deadline = time.monotonic() + SECONDS
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, self.log()
            select.select([self._watcher.fileno()], [], [], left)
            self._watcher.dispatch()

    def log(self) -> str:
        """What the daemon said."""
        return (self.folder / "egsd.log").read_text()


@contextmanager
def disk_folder() -> Iterator[Path]:
    """A new folder that any user can go into, on a disk: pytest's own are closed to others, and may be on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="egs-test-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def running_on_disk(*, drift: str = "off") -> Iterator[Running]:
    """A running system in such a folder. `drift`: whether the gate tells of drift events."""
    with disk_folder() as folder:
        instance = Instance.create(folder / "egs")
        instance.configure(drift=drift)
        try:
            work = folder / "work"
            work.mkdir(mode=0o755)
            running = Running(instance, work)
            try:
                yield running
            finally:
                running.close()
        finally:
            instance.close()


def ask_raw(path: Path, content: bytes, descriptors: Sequence[int] = ()) -> socket.socket:
    """A connection on which these bytes were sent."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(SECONDS)
    client.connect(str(path))
    if descriptors:
        socket.send_fds(client, [content], list(descriptors))
    else:
        client.sendall(content)
    return client


_OPEN_A_WAY: Final = """
mount --bind "$1" "$3"
mount -t tmpfs -o mode=0755 none "$2"
mkdir -p "$1"
mount --bind "$3" "$1"
shift 3
exec "$@"
"""
"""checkout, the folder above it that only root may enter, a mount point: in a mount namespace, the way is open."""


def _entrance(folder: Path) -> list[str]:
    """What to put before a command so that anybody can enter the checkout, which may lie in somebody's own folder."""
    others = stat.S_IXOTH | stat.S_IROTH
    REPOSITORY.chmod(REPOSITORY.stat().st_mode | others)
    closed = next(
        (str(above) for above in reversed(REPOSITORY.parents) if not above.stat().st_mode & stat.S_IXOTH),
        None,
    )
    if closed is None:
        return []
    point = folder / "checkout"
    point.mkdir(exist_ok=True)
    return ["unshare", "--mount", "sh", "-ec", _OPEN_A_WAY, "sh", str(REPOSITORY), closed, str(point)]
