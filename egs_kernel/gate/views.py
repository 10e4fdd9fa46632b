"""What the gate has, as user space sees it: typed copies of its maps' entries."""

from __future__ import annotations

import msgspec

from egs_kernel.model import FileIdentity, Mode, Reason, Verdict


class GovernedTask(msgspec.Struct, frozen=True):
    """A process that the gate tracks. `execution` 0: it has not executed anything since it is governed.

    `artifact` is the key of what it runs under (gate/grants.py); `born` its start, CLOCK_BOOTTIME nanoseconds, 0: not known.
    """

    pid: int
    scope: str
    execution: int
    inherited: bool
    held: bool = False
    suspended: bool = False
    artifact: int = 0
    born: int = 0

    @property
    def stopped(self) -> bool:
        """Whether it dies when it comes to user space."""
        return self.held or self.suspended


class ScopeState(msgspec.Struct, frozen=True):
    """A scope as the gate has it."""

    slot: int
    name: str
    mode: Mode
    cgroup: str | None


class GateCounters(msgspec.Struct, frozen=True):
    """Totals since the gate was loaded. Decisions by (verdict, reason, enforced)."""

    decisions: dict[tuple[Verdict, Reason, bool], int]
    failures: dict[str, int]
    missed: int
    """Times a program was skipped by the kernel because it was already running on that CPU."""


class StandingGrant(msgspec.Struct, frozen=True):
    """A standing grant as the gate has it."""

    grant_id: int
    artifact_id: str
    scope: str
    file: FileIdentity
    uses_left: int | None


class Reading(msgspec.Struct, frozen=True):
    """What the gate sees of an open file: its identity and the folder entry it was opened by."""

    identity: FileIdentity
    folder_inode: int
    name: bytes
