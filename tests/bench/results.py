"""What one run found, and the goals that it is held against."""

from __future__ import annotations

from typing import Final

import msgspec

from tests.bench.execs import Execs, Program
from tests.bench.fapolicyd import Peer
from tests.bench.launches import Launch
from tests.bench.loading import Loading
from tests.bench.machine import Machine
from tests.bench.subject import Memory
from tests.bench.verifying import Verifying

UNGOVERNED: Final = 1.02
GOVERNED: Final = 1.05
LAUNCH_MS: Final = 20.0
RSS_MIB: Final = 48.0
LOAD_SECONDS: Final = 3.0
VERIFICATIONS: Final = 3000.0


class DaemonFigures(msgspec.Struct, frozen=True):
    """Memory when idle after the start, and after `execs` governed execs and all launches; CPU per exec."""

    idle: Memory
    after: Memory
    execs: int
    cpu_us: float


class Results(msgspec.Struct, frozen=True):
    """One run of the benchmark."""

    date: str
    version: str
    machine: Machine
    disturbances: tuple[str, ...]
    loading: Loading
    execs: tuple[Execs, ...]
    programs: dict[str, Program]
    launches: tuple[Launch, ...]
    daemon: DaemonFigures
    verifying: tuple[Verifying, ...]
    fapolicyd: Peer | str
