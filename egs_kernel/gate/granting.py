"""The gate's tables of grants: what stands by file, what is armed by process, and what a grant refers to."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.grants import artifact_key, raw_argv, raw_grant
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.gate.libbpf import Map
    from egs_kernel.gate.subjects import Subjects
    from egs_kernel.model import Grant, TaskIdentity

CHILDREN_CROWDED: Final = 4096
"""Grants of children (half of EGS_GRANTS) from which on those that nobody can use any more are looked for."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class GrantTables:
    """The maps, by their names in the gate."""

    standing: Map[abi.StandingKey, abi.Grant]
    armed: Map[ctypes.c_uint32, abi.Grant]
    uses: Map[ctypes.c_uint64, ctypes.c_uint64]
    argvs: Map[ctypes.c_uint64, abi.Argv]

    def artifacts(self) -> set[int]:
        """The keys of the artifacts of all grants; those for children are there as long as their artifact is."""
        granted = (*self.permanent(), *(raw for _, raw in self.armed.walk()))
        return {artifact_key(bytes(raw.artifact_id).hex()) for raw in granted}

    def permanent(self) -> list[abi.Grant]:
        """What stands, for any governed process of its scope."""
        return [raw for key, raw in self.standing.walk() if not key.scope & abi.CHILDREN_OF]

    def of_children(self) -> list[tuple[abi.StandingKey, abi.Grant]]:
        """What is there for the children of artifacts."""
        return [(key, raw) for key, raw in self.standing.walk() if key.scope & abi.CHILDREN_OF]


class Granting:
    """Writes grants, what they refer to first, and takes them back. Scopes are given by their slots."""

    def __init__(self, tables: GrantTables, named: Subjects, in_use: Callable[[], set[int]]) -> None:
        self._tables = tables
        self._named = named
        self._in_use = in_use
        self._armed_ids: dict[int, int] = {}
        self._last_id = 0

    def install(self, grant: Grant, scope: int) -> int:
        """As `Gate.install`."""
        key, present = self._place(grant, scope)
        grant_id = present.grant_id if present else self._new_id()
        self.name(grant, scope)
        self._bind(grant, grant_id, renewed=present is not None)
        _write(self._tables.standing, key, raw_grant(grant, grant_id, scope, None))
        return grant_id

    def withdraw(self, grant_id: int) -> None:
        """As `Gate.withdraw`."""
        for key, raw in self._tables.standing.items():
            if raw.grant_id == grant_id:
                self._tables.standing.delete(key)
        self._unbind(grant_id)

    def arm(self, grant: Grant, task: TaskIdentity, scope: int) -> int:
        """As `Gate.arm`."""
        self.disarm(task.pid)
        self.name(grant, scope)
        grant_id = self._new_id()
        self._bind(grant, grant_id, renewed=False)
        self._armed_ids[task.pid] = grant_id
        _write(self._tables.armed, ctypes.c_uint32(task.pid), raw_grant(grant, grant_id, scope, task))
        return grant_id

    def name(self, grant: Grant, scope: int) -> None:
        """As `Gate.name`."""
        self._named.name(grant)
        if grant.children and len(self._tables.of_children()) + len(grant.children) > CHILDREN_CROWDED:
            self._sweep_children()
        for child in grant.children:
            key, _ = self._place(child, scope, of_children=True)
            _write(self._tables.standing, key, raw_grant(child, self._new_id(), scope, None))

    def withdraw_children(self, artifact_id: str) -> None:
        """As `Gate.withdraw_children`."""
        self._remove_children(lambda raw: bytes(raw.artifact_id).hex() == artifact_id)

    def disarm(self, pid: int) -> None:
        """As `Gate.disarm`."""
        self._tables.armed.delete(ctypes.c_uint32(pid))
        # The gate forgets the grant itself when the exec uses it or the process ends; what it referred to is ours.
        grant_id = self._armed_ids.pop(pid, None)
        if grant_id is not None:
            self._unbind(grant_id)

    def forget(self, grant_id: int) -> None:
        """As `Gate.forget`."""
        self._unbind(grant_id)
        self._armed_ids = {pid: armed for pid, armed in self._armed_ids.items() if armed != grant_id}

    def collect(self) -> None:
        """As `Gate.collect`."""
        tables = self._tables
        live = {raw.grant_id for _, raw in (*tables.standing.walk(), *tables.armed.walk())}
        for key in (*tables.argvs.keys(), *tables.uses.keys()):
            if key.value not in live:
                self._unbind(key.value)
        self._named.sweep()
        self._sweep_children()

    def uses_left(self, raw: abi.Grant) -> int | None:
        """Of a grant as the gate has it; None: any number."""
        if not raw.flags & abi.GrantFlag.BIND_USES:
            return None
        left = self._tables.uses.get(ctypes.c_uint64(raw.grant_id))
        return int(left.value) if left is not None else 0

    def _sweep_children(self) -> None:
        """Forget those of artifacts that neither a grant nor a governed process has."""
        in_use = self._in_use()
        self._remove_children(lambda raw: artifact_key(bytes(raw.artifact_id).hex()) not in in_use)

    def _remove_children(self, chosen: Callable[[abi.Grant], bool]) -> None:
        for key, raw in self._tables.of_children():
            if chosen(raw):
                self._tables.standing.delete(key)

    def _new_id(self) -> int:
        """Boot-time nanoseconds: unique across daemon restarts, as the pins are."""
        self._last_id = max(self._last_id + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        return self._last_id

    def _place(
        self, grant: Grant, scope: int, *, of_children: bool = False
    ) -> tuple[abi.StandingKey, abi.Grant | None]:
        inode = grant.file.inode
        if of_children:
            inode, scope = inode ^ artifact_key(grant.artifact_id), scope | abi.CHILDREN_OF
        free: abi.StandingKey | None = None
        for slot in range(abi.GRANTS_PER_FILE):
            key = abi.StandingKey(inode=inode, device=grant.file.device, scope=scope, slot=slot)
            raw = self._tables.standing.get(key)
            if raw is None:
                free = free or key
            elif bytes(raw.artifact_id).hex() == grant.artifact_id and raw.file.inode == grant.file.inode:
                return key, raw
        if free is None:
            raise GateError(
                Reason.GATE_FAILED,
                f"scope {grant.scope} has {abi.GRANTS_PER_FILE} standing artifacts for this file already",
                "Remove one of them (egs artifacts remove ID), or start it with egs run.",
            )
        return free, None

    def _bind(self, grant: Grant, grant_id: int, *, renewed: bool) -> None:
        """Write what the grant refers to, before the grant itself."""
        key = ctypes.c_uint64(grant_id)
        if grant.argv is not None:
            _write(self._tables.argvs, key, raw_argv(grant.argv))
        if grant.uses is not None:
            left = self._tables.uses.get(key) if renewed else None
            # The gate may be counting right now: never give back, at most take away.
            if left is None or grant.uses < left.value:
                _write(self._tables.uses, key, ctypes.c_uint64(grant.uses))

    def _unbind(self, grant_id: int) -> None:
        self._tables.argvs.delete(ctypes.c_uint64(grant_id))
        self._tables.uses.delete(ctypes.c_uint64(grant_id))


def _write(table: Map[K, V], key: K, value: V) -> None:
    try:
        table.put(key, value)
    except OSError as error:
        raise GateError(
            Reason.GATE_FAILED,
            f"the gate has no room for another grant: {error}",
            "Remove artifacts that are not needed.",
        ) from error
