"""The running kernel: its settings (sysctl), its modules, and whether it is tainted.

Settings are watched as files: the kernel tells of a write to one by this mount of procfs. Writes by another mount, and
modules and taints that no event told, are for the sweeps.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon.watch import Change, Watcher
from egs_kernel.drift.observations import HostState, Lost
from egs_kernel.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egs_kernel.drift.observations import Observation

_PROC: Final = Path("/proc")
_CHANGES: Final = Change.MODIFY | Change.CLOSE_WRITE


class Sysctls:
    """Settings of the kernel, those of the network in this namespace.

    Args:
        names: which; those that this kernel does not have are not watched.
        proc: where procfs is mounted.
    """

    name = "sysctl"

    def __init__(self, names: Iterable[str], proc: Path = _PROC) -> None:
        self._paths = {name: proc / "sys" / name.replace(".", "/") for name in names}
        self._lost = 0
        self._watcher = Watcher(self._lose)
        for path in self._paths.values():
            self._watcher.add(path, _CHANGES, lambda _name: None)

    def fileno(self) -> int:
        """Readable when one was written."""
        return self._watcher.fileno()

    def read(self) -> Iterator[Observation]:
        """All of them, as they are after a write."""
        self._watcher.dispatch()
        lost, self._lost = self._lost, 0
        if lost:
            yield Lost(source=self.name, time=_now(), count=lost)
        yield from self.sweep()

    def sweep(self) -> Iterator[Observation]:
        """All of them."""
        values = {name: _read(path) for name, path in self._paths.items()}
        facts = {name: value for name, value in values.items() if value is not None}
        yield HostState(source=self.name, time=_now(), suspicion=Finding.SYSCTL_CHANGED, facts=facts)

    def close(self) -> None:
        """Let go of it."""
        self._watcher.close()

    def _lose(self) -> None:
        self._lost += 1


class KernelState:
    """Modules and taint: files that tell nobody of a change, so there are only sweeps.

    Args:
        proc: where procfs is mounted.
    """

    name = "kernel"

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc

    def fileno(self) -> int:
        """No descriptor."""
        return -1

    def read(self) -> Iterator[Observation]:
        """Nothing comes by itself."""
        return iter(())

    def sweep(self) -> Iterator[Observation]:
        """The modules, and the taint."""
        modules = _read(self._proc / "modules") or ""
        names = sorted(line.split()[0] for line in modules.splitlines() if line)
        yield HostState(
            source=self.name,
            time=_now(),
            suspicion=Finding.MODULE_LOADED,
            facts=dict.fromkeys(names, "loaded"),
        )
        taint = _read(self._proc / "sys/kernel/tainted")
        facts = {} if taint is None else {"tainted": taint}
        yield HostState(source=self.name, time=_now(), suspicion=Finding.KERNEL_TAINTED, facts=facts)

    def close(self) -> None:
        """Nothing is open."""


def _read(path: Path) -> str | None:
    """A file's text; None: this kernel has none, or does not let it be read."""
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace").strip()
    except OSError:
        return None


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
