"""A virtual machine by emulation: qemu with an overlay of the base disk, a console file, and lines from the guest."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.vm.host import must
from tests.vm.kernels import Kernel

LSM: Final = {
    "lsm": "landlock,lockdown,capability,yama,bpf",
    "tracepoint": "landlock,lockdown,capability,yama",
}
"""The kernel's list of security modules, which decides on the tier that it offers."""
MEMORY: Final = "2048"
_TAIL: Final = 60


class Hung(Exception):
    """The machine did not end in its time, or said nothing for too long."""


@dataclass
class Machine:
    """One machine: its disk outlives its boots."""

    disk: Path
    kernel: Kernel
    tier: str
    folder: Path
    job: Path | None = None
    init: str = "/sbin/init"
    more: str = ""
    processors: int = 1
    reboots: bool = False
    """Whether a reset boots again; else qemu ends."""
    processor_seconds: float = 0.0
    """What the machine has cost the host."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        must(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            str(self.disk),
            str(self._overlay),
        )

    @property
    def _overlay(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def console(self) -> Path:
        """What the kernel and PID 1 printed."""
        return self.folder / "console"

    def tail(self) -> str:
        """The console's last lines."""
        lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
        return "\n".join(lines[-_TAIL:])

    @contextlib.contextmanager
    def running(self, seconds: float) -> Iterator[Iterator[bytes]]:
        """Boot; the lines that the guest writes to its second serial port, until it is off.

        Raises:
            Hung: from the iterator, after `seconds`.
        """
        path = self.folder / "lines"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            self._process = subprocess.Popen(self._command(path), stdin=subprocess.DEVNULL)
            try:
                listener.settimeout(30)
                channel, _ = listener.accept()
                with channel:
                    yield _lines(channel, time.monotonic() + seconds)
            finally:
                self.kill()

    def kill(self) -> None:
        """End qemu: as when the power fails."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            _, self._process.returncode, used = os.wait4(self._process.pid, 0)
            self.processor_seconds += used.ru_utime + used.ru_stime
            self._process = None

    def _command(self, lines: Path) -> list[str]:
        append = f"console=ttyS0 root=/dev/vda rw init={self.init} lsm={LSM[self.tier]} panic=-1 oops=panic {self.more}"
        drives = [(self._overlay, "qcow2,cache=unsafe"), (self.kernel.modules, "raw,readonly=on")]
        if self.job is not None:
            drives.append((self.job, "raw,cache=unsafe"))
        command = [
            "setpriv", "--pdeathsig", "KILL",  # whatever happens to this process, no machine is left
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY, "-smp", str(self.processors),
            "-nodefaults", "-display", "none", "-nic", "none", "-device", "virtio-rng-pci",
            "-chardev", f"file,id=console,append=on,path={self.console}", "-serial", "chardev:console", "-serial", f"unix:{lines}",
            "-kernel", str(self.kernel.file), "-initrd", str(self.kernel.initrd),
            "-append", append,
        ]  # fmt: skip
        for path, kind in drives:
            command += ["-drive", f"file={path},if=virtio,format={kind}"]
        return command if self.reboots else [*command, "-no-reboot"]


def _lines(channel: socket.socket, deadline: float) -> Iterator[bytes]:
    """Whole lines, as they come."""
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([channel], [], [], left)[0]:
            break
        data = channel.recv(65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    raise Hung("the machine did not end in its time")
