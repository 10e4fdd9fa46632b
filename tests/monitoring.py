"""A running system with its monitor, and governed programs that drift when they are told to."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.audit.entries import BaselineEntry, Exec, FindingEntry, ResponseEntry
from egs_kernel.findings import Finding
from tests.harness import BIN
from tests.running import SECONDS

if TYPE_CHECKING:
    from tests.running import Running

PYTHON: Final = Path(sys.executable).resolve()
OBEYS: Final = (
    "import ctypes,mmap,os,signal,socket,sys,time;kept=[];libc=ctypes.CDLL(None,use_errno=True);print('up',flush=True);"
    "[(exec(line,globals()),print('done',flush=True)) for line in sys.stdin]"
)
"""Does what its standard input says, line by line."""


class Monitor:
    """`egs-monitor` of a system, with these rules."""

    def __init__(self, running: Running, rules: str = 'interval = "1s"\n') -> None:
        self._running = running
        self._process: subprocess.Popen[str] | None = None
        self.rules(rules)

    def rules(self, content: str) -> None:
        """Write drift.toml."""
        self._running.instance.paths.drift_rules.write_text(content)

    def start(self, *prefix: str) -> None:
        """Start it, by a command before it, and return when it watches."""
        path = self._running.folder / "monitor-notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.settimeout(SECONDS)
            notify.bind(str(path))
            with (self._running.folder / "monitor.log").open("a") as log:
                self._process = subprocess.Popen(
                    [*prefix, str(BIN / "egs-monitor"), "--foreground"],
                    env=self._running.instance.environment | {"NOTIFY_SOCKET": str(path)},
                    stderr=log,
                    text=True,
                )
            self._running.instance.reap_also(self._process.pid)
            while b"READY=1" not in notify.recv(4096):
                pass

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(SECONDS)

    def end(self) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def log(self) -> str:
        """What it said."""
        return (self._running.folder / "monitor.log").read_text()

    def finding(self, finding: Finding, pid: int, word: str = "") -> FindingEntry:
        """The finding about a process, as soon as it is recorded."""
        try:
            return self._running.wait_for(
                FindingEntry,
                lambda entry: entry.finding is finding and pid in (entry.pid, 0) and word in entry.detail,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; the monitor said: {self.log()}; found: {self.all()}") from error

    def response(self, found: FindingEntry) -> ResponseEntry:
        """What was done about it."""
        return self._running.wait_for(ResponseEntry, lambda entry: entry.number == found.number)

    def all(self) -> list[tuple[str, int, str]]:
        """Every finding about a process."""
        return [
            (entry.finding.value, entry.pid, entry.detail)
            for entry in self._running.entries(FindingEntry)
            if entry.execution
        ]

    def begun(self, pid: int) -> int:
        """The execution of a process, when the monitor has seen it begin."""
        executed = self._running.wait_for(
            Exec, lambda entry: entry.event.pid == pid and entry.event.execution > 0
        )
        number = executed.event.execution
        self._running.wait_for(BaselineEntry, lambda entry: entry.execution == number)
        return number


class Obedient:
    """A governed Python that does what it is told, under an artifact of its own."""

    def __init__(
        self,
        running: Running,
        name: str,
        *,
        constraints: str = "",
        more: tuple[str, ...] = (),
        key: str = "issuer",
        stands: bool = True,
    ) -> None:
        self.running = running
        self.program = running.copy(str(PYTHON), name)
        if constraints:
            file = running.folder / f"{name}.toml"
            file.write_text(constraints)
            more = (*more, "--constraints", str(file))
        words = [part for word in self.command for part in ("--argv", word)]
        self.artifact = running.issue(self.program, *words, *more, name=f"{name}.json", key=key)
        self.artifact_id = running.add(self.artifact) if stands else ""
        self.process: subprocess.Popen[str] | None = None

    @property
    def command(self) -> list[str]:
        """Its arguments."""
        return [str(self.program), "-ISs", "-c", OBEYS]

    def start(
        self,
        prepare: Callable[[], None] | None = None,
        *,
        command: list[str] | None = None,
        **options: Any,
    ) -> int:
        """Start it in the scope, by another command if one is given; its process id."""

        def enter() -> None:
            self.running.instance.cgroup.enter()
            if prepare is not None:
                prepare()

        self.process = subprocess.Popen(
            command or self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=enter,
            text=True,
            **options,
        )
        self.running.instance.reap_also(self.process.pid)
        self._expect("up")
        return self.process.pid

    def launch(self) -> int:
        """Start it by `egs run`; its process id."""
        self.process = subprocess.Popen(
            [str(BIN / "egs"), "run", "--artifact", str(self.artifact), "--", *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.running.instance.environment,
            text=True,
        )
        self.running.instance.reap_also(self.process.pid)
        self._expect("up")
        return self.process.pid

    def tell(self, line: str) -> None:
        """Have it do something."""
        self.say(line)
        self._expect("done")

    def say(self, line: str) -> None:
        """As `tell`, without waiting for it."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def _expect(self, word: str) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == f"{word}\n", (said, self.process.poll(), self.running.log())

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            with suppress(ProcessLookupError, BrokenPipeError):
                self.process.kill()
            self.process.communicate(timeout=SECONDS)
            self.process = None


def as_nobody_who_may_set_groups() -> None:
    """For `Obedient.start`: another user, with one capability that lasts beyond the exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, setgid = (ctypes.c_uint32 * 2)(0x20080522, 0), 1 << 6
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    libc.capset(header, (ctypes.c_uint32 * 6)(setgid, setgid, setgid, 0, 0, 0))
    libc.prctl(47, 2, 6, 0, 0)  # PR_CAP_AMBIENT_RAISE


def text_of(pid: int) -> int:
    """An address in the code of the program that a process executes."""
    program = str(Path(f"/proc/{pid}/exe").readlink())
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[5] == program and "x" in fields[1]:
            return int(fields[0].partition("-")[0], 16)
    raise AssertionError(f"process {pid} has no code of {program}")
