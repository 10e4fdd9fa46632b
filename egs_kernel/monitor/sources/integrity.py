"""The gate itself: every map, program, link and pin of it, against what `egs gate load` noted of them.

The loss of a link is the gravest of all findings: what it attached enforces nothing any more. Whoever changes something of
the gate by bpf(2) is told by the drift programs (drift_events.py); here is looked at what is left of it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon.watch import FOLDER as FOLDER_CHANGES
from egs_kernel.daemon.watch import Watcher
from egs_kernel.drift.observations import HostEvent
from egs_kernel.errors import EgsError
from egs_kernel.findings import Finding
from egs_kernel.gate.drift import FOLDER
from egs_kernel.gate.inventory import foreign_users, take_inventory
from egs_kernel.gate.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from egs_kernel.drift.observations import Observation
    from egs_kernel.paths import Paths

GONE: Final = "gone"
_LINK: Final = "link_"


class GateIntegrity:
    """The loaded gate. A difference is told once, and again when it is another one.

    Args:
        paths: where the gate's pins and its manifest are.
        sealed: whether the gate is: then it keeps itself, and lets nobody look.
    """

    name = "integrity"

    def __init__(self, paths: Paths, sealed: Callable[[], bool]) -> None:
        self._paths = paths
        self._sealed = sealed
        self._watcher = Watcher(partial(self._pin_changed, ""))
        self._told: dict[str, tuple[str, str]] = {}
        self._changed = False
        self._watch()

    def fileno(self) -> int:
        """Readable when a pin, or the note of what was loaded, came or went."""
        return self._watcher.fileno()

    def read(self) -> Iterator[Observation]:
        """As `sweep`, after a change."""
        self._watcher.dispatch()
        changed, self._changed = self._changed, False
        if changed:
            self._watch()
            yield from self.sweep()

    def sweep(self) -> Iterator[Observation]:
        """Every difference that was not told yet."""
        found = self._differences()
        for name, (was, now) in found.items():
            if self._told.get(name) != (was, now):
                yield HostEvent(
                    source=self.name,
                    time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                    suspicion=suspicion_of(name),
                    subject=name,
                    was=was,
                    now=now,
                )
        self._told = found

    def close(self) -> None:
        """Look at nothing any more."""
        self._watcher.close()

    def _watch(self) -> None:
        for folder in (self._paths.pins, self._paths.pins / FOLDER):
            self._watcher.add(folder, FOLDER_CHANGES, self._pin_changed)
        self._watcher.add(self._paths.run_dir, FOLDER_CHANGES, self._note_changed)

    def _pin_changed(self, _name: str) -> None:
        self._changed = True

    def _note_changed(self, name: str) -> None:
        self._changed |= name in ("", self._paths.gate_manifest.name)

    def _differences(self) -> dict[str, tuple[str, str]]:
        """What is not as it was noted; of a sealed gate what was found before."""
        if self._sealed():
            return self._told
        try:
            noted = read_manifest(self._paths.gate_manifest).objects
        except EgsError as error:
            return {"manifest": ("", error.message)} | self._lost_links()
        try:
            differences = compare_objects(noted, take_inventory(self._paths.pins))
            users = foreign_users(self._paths.pins, noted)
        except OSError as error:
            if isinstance(error, PermissionError) and self._sealed():
                return self._told  # since just now
            return {"pins": ("", f"cannot be looked at: {error}")} | self._lost_links()
        return differences | {name: ("", f"uses {maps} of the gate") for name, maps in users.items()}

    def _lost_links(self) -> dict[str, tuple[str, str]]:
        """Without the gate's folder nothing is attached."""
        return {} if self._paths.pins.is_dir() else {f"{_LINK}*": ("attached", GONE)}


def compare_objects(noted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is not as it was noted: name to what it was and what it is. Pure."""
    names = sorted(noted.keys() | found.keys())
    pairs = {name: (noted.get(name, ""), found.get(name, GONE)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def suspicion_of(name: str) -> Finding:
    """What it is when this is not as it was. Pure."""
    is_link = name.rpartition("/")[2].startswith(_LINK)
    return Finding.GATE_LINK_LOST if is_link else Finding.GATE_TAMPERED
