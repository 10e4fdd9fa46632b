"""What is measured: a loaded gate that can be attached and detached within milliseconds, and a real daemon."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from egs_kernel.audit.reader import Reader
from egs_kernel.gate import libbpf
from egs_kernel.gate.parts import TRACEPOINTS
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Verdict
from tests.harness import BIN, PATIENCE, Instance

START_SECONDS: Final = 30.0 * PATIENCE
_LOOK_SECONDS: Final = 0.005


class Memory(msgspec.Struct, frozen=True):
    """A process's memory in MiB: resident, its share of it (PSS), and what is its alone (USS)."""

    rss: float
    pss: float
    uss: float


class Attachment:
    """Attaches the gate's programs to their tracepoints, or detaches them.

    That is all that a load adds to an exec and an unload takes away, and takes milliseconds instead of the
    second that compiling and proving take; so both states can be measured next to each other, many times.
    """

    def __init__(self, gate: Gate, pins: Path) -> None:
        self._gate = gate
        self._pins = pins
        self._programs = {name: libbpf.open_pin(pins / name) for name in TRACEPOINTS}

    def attach(self) -> None:
        """Attach and pin, as the loader does."""
        for name, program in self._programs.items():
            link = libbpf.attach_raw_tracepoint(TRACEPOINTS[name], program)
            libbpf.pin(link, self._pins / f"link_{name}")
            os.close(link)

    def detach(self) -> None:
        """Remove the links. The kernel lets go of them a moment later: see `decided`."""
        for name in self._programs:
            (self._pins / f"link_{name}").unlink()

    def decided(self) -> int:
        """Execs that the gate has decided since it was loaded: tells whether it is attached."""
        return sum(self._gate.counters().decisions.values())

    def governed(self) -> int:
        """Processes that the gate tracks."""
        return len(self._gate.governed())

    def refusals(self) -> str:
        """What the gate refused since it was loaded, by reason, in words."""
        decisions = self._gate.counters().decisions.items()
        found = [
            f"{count} {reason.code}"
            for (verdict, reason, _), count in decisions
            if verdict is not Verdict.ALLOW
        ]
        return ", ".join(found) or "nothing"

    def costs(self) -> dict[str, tuple[int, int]]:
        """Program → (runs, nanoseconds in it), counted while `counting_run_time` is in force."""
        infos = {name: libbpf.program_info(fd) for name, fd in self._programs.items()}
        return {name: (info.run_cnt, info.run_time_ns) for name, info in infos.items()}

    def close(self) -> None:
        """Let the programs go."""
        for descriptor in self._programs.values():
            os.close(descriptor)


class Daemon:
    """A real egsd of an instance, started and ready. `pause` takes it off the machine, `resume` puts it back."""

    def __init__(self, instance: Instance) -> None:
        self._record = instance.paths.record
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            address = str(instance.root / "ready")
            ready.bind(address)
            ready.settimeout(START_SECONDS)
            self._process = subprocess.Popen(
                [str(BIN / "egsd")], env=instance.environment | {"NOTIFY_SOCKET": address}
            )
            instance.reap_also(self._process.pid)
            ready.recv(64)

    def pause(self) -> None:
        """Stop it and wait until it is stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)
        os.waitpid(self._process.pid, os.WCONTINUED)

    def recorded(self) -> int:
        """Durable entries in its record."""
        return Reader(self._record).size

    def wait_for_record(self, size: int) -> None:
        """Return when the record has so many entries.

        Raises:
            RuntimeError: it did not get there.
        """
        deadline = time.monotonic() + START_SECONDS
        while self.recorded() < size:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the record has {self.recorded()} entries, not {size}")
            time.sleep(_LOOK_SECONDS)

    def cpu_seconds(self) -> float:
        """CPU time so far, in steps of 10 ms."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """What it takes now."""
        return parse_smaps(Path(f"/proc/{self._process.pid}/smaps_rollup").read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait(START_SECONDS)


def parse_smaps(content: str) -> Memory:
    """Memory from a /proc/PID/smaps_rollup. Pure."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", content, re.MULTILINE)}
    return Memory(
        rss=kib["Rss"] / 1024,
        pss=kib["Pss"] / 1024,
        uss=(kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
    )


def wait_for_grants(gate: Gate, count: int) -> None:
    """Return when so many standing grants are installed.

    Raises:
        RuntimeError: they are not.
    """
    deadline = time.monotonic() + START_SECONDS
    while len(gate.standing()) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(gate.standing())} standing grants are installed, not {count}")
        time.sleep(_LOOK_SECONDS)
