"""The machine that was measured, as far as it explains the figures, and what else went on."""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from egs_kernel.paths import BPFFS

CALM: Final = 1.0
"""Above this load others compete with what is measured."""


class Machine(msgspec.Struct, frozen=True):
    """What was measured on. No names: figures are about kinds of machines."""

    cpu: str
    cores: int
    virtual: bool
    memory_gib: float
    kernel: str
    system: str
    python: str
    record_on: str


def describe(record: Path) -> Machine:
    """This machine; `record` is where the daemon's record lies."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    total = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    release = re.match(r"[\d.]*\d", os.uname().release)  # without what a builder appended
    return Machine(
        cpu=cpu_model(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        virtual=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        memory_gib=round(int(total[1]) / 2**20, 1) if total else 0.0,
        kernel=release[0] if release else "",
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        python=platform.python_version(),
        record_on=filesystem_of(record),
    )


def cpu_model(cpuinfo: str) -> str:
    """The model name in a /proc/cpuinfo; on architectures that give none, the architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return "unknown"


def other_gates(ours: Path) -> list[str]:
    """Gates of other instances: they are attached to the same tracepoints, with us and without us."""
    return sorted(path.name for path in BPFFS.glob("egs*") if path.name != ours.name)


def load() -> float:
    """How many tasks ran or waited, averaged over the last minute."""
    return os.getloadavg()[0]


def disturbances(load: float, gates: list[str]) -> tuple[str, ...]:
    """What makes the figures worse than they are, in words: the load at the start, gates of other instances."""
    found = []
    if gates:
        found.append("gates of other instances were attached, on both sides of each comparison")
    if load > CALM:
        found.append(f"other work ran (load {load:.1f} at the start)")
    return tuple(found)


def end_properly(_number: int, _frame: object) -> NoReturn:
    """For SIGTERM: what was done is undone on the way out."""
    sys.exit(128 + signal.SIGTERM)
