"""From the configuration's scopes to the gate's maps, and the processes that are inside already."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterable, Mapping
from pathlib import Path

from egs_kernel.config import Config, ScopeConfig
from egs_kernel.errors import UsageError
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.cgroups import cgroup_id, cgroup_mount, cgroup_of, processes_below
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Mode, OnMissing, Reason

_MISSING = {OnMissing.KILL: abi.Missing.KILL, OnMissing.HOLD: abi.Missing.HOLD}
_MODES = {Mode.ENFORCE: abi.Mode.ENFORCE, Mode.OBSERVE: abi.Mode.OBSERVE}


def apply_scopes(gate: Gate, config: Config) -> None:
    """Make the gate govern what `config` says. Idempotent; scopes keep their slots.

    New rules are written before old ones are removed, so that nothing is ungoverned in between.

    Raises:
        UsageError: a user or a binary of a scope does not exist on this host.
        HostLacks: a cgroup scope, and no cgroup v2.
    """
    slots = _assign_slots(gate, config.scopes)
    rules = _Rules()
    for scope in config.scopes:
        rules.add(gate, scope, slots[scope.name])
    holding = any(scope.holds for scope in config.scopes)
    if holding:
        gate.holds.attach_guards()  # before the first one can be held
    for scope in config.scopes:
        raw = abi.Scope(
            mode=_MODES[scope.mode], on_missing=_MISSING[scope.on_missing], name=scope.name.encode()
        )
        gate.scope_slots.put(ctypes.c_uint32(slots[scope.name]), raw)
    rules.write(gate)
    settings = gate.settings()  # with what only a load decides, the tier
    settings.scope_kinds = int(rules.kinds)
    settings.grace_ns = config.daemon_grace * 1_000_000_000
    gate.configs.put(ctypes.c_uint32(0), settings)
    homes = {scope.cgroup: slots[scope.name] for scope in config.scopes if scope.cgroup is not None}
    _let_nobody_wait(gate, {slots[scope.name] for scope in config.scopes if scope.holds})
    if not holding and not any(task.suspended for task in gate.governed()):
        gate.holds.detach_guards()
    _retire(gate, set(slots.values()), homes)
    gate.refresh_scopes()
    for scope in config.scopes:
        if scope.cgroup is not None:
            _govern_residents(gate, _folder(scope.cgroup), slots[scope.name])


def _assign_slots(gate: Gate, scopes: Iterable[ScopeConfig]) -> dict[str, int]:
    known = {name: state.slot for name, state in gate.scopes().items()}
    free = iter(slot for slot in range(abi.MAX_SCOPES) if slot not in known.values())
    return {scope.name: known[scope.name] if scope.name in known else next(free) for scope in scopes}


class _Rules:
    """What the scope maps shall hold."""

    def __init__(self) -> None:
        self.kinds = abi.ScopeKind(0)
        self.paths: dict[bytes, int] = {}
        self.cgroups: dict[int, int] = {}
        self.files: dict[tuple[int, int], int] = {}
        self.entries: dict[tuple[int, int, bytes], int] = {}
        self.users: dict[int, int] = {}

    def add(self, gate: Gate, scope: ScopeConfig, slot: int) -> None:
        if scope.cgroup is not None:
            self._add_cgroup(scope.cgroup, slot)
        for binary in scope.binaries:
            self._add_binary(gate, scope.name, binary, slot)
        for user in scope.users:
            self._add_user(scope.name, user, slot)

    def _add_cgroup(self, cgroup: str, slot: int) -> None:
        self.kinds |= abi.ScopeKind.CGROUP
        path = cgroup.encode()
        if len(path) >= abi.CGROUP_PATH:
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"cgroup {cgroup} is longer than {abi.CGROUP_PATH - 1} bytes",
                "Choose a shorter path.",
            )
        self.paths[path] = slot
        folder = _folder(cgroup)
        if folder.is_dir():
            self.cgroups[cgroup_id(folder)] = slot

    def _add_binary(self, gate: Gate, scope: str, binary: str, slot: int) -> None:
        self.kinds |= abi.ScopeKind.BINARY
        try:
            descriptor = os.open(binary, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"scope {scope!r}: binary {binary}: {error.strerror}",
                "Name an existing program, by its absolute path.",
            ) from error
        try:
            reading = gate.read_file(descriptor)
        finally:
            os.close(descriptor)
        device = reading.identity.device
        self.files[reading.identity.inode, device] = slot
        self.entries[reading.folder_inode, device, reading.name] = slot

    def _add_user(self, scope: str, user: str, slot: int) -> None:
        self.kinds |= abi.ScopeKind.USER
        if user.isdecimal():
            self.users[int(user)] = slot
            return
        try:
            self.users[pwd.getpwnam(user).pw_uid] = slot
        except KeyError as error:
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"scope {scope!r}: no user {user!r} on this host",
                "Create the user, or give its number.",
            ) from error

    def write(self, gate: Gate) -> None:
        """Add what is missing, then remove what is not wanted any more."""
        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        _replace(
            gate.scope_paths, [(abi.CgroupPath(path=path), u32(slot)) for path, slot in self.paths.items()]
        )
        _replace(gate.scope_cgroups, [(u64(number), u32(slot)) for number, slot in self.cgroups.items()])
        _replace(
            gate.scope_files,
            [
                (abi.FileKey(inode=inode, device=device), u32(slot))
                for (inode, device), slot in self.files.items()
            ],
        )
        _replace(
            gate.scope_entries,
            [
                (abi.EntryKey(folder_inode=folder, device=device, name=name), u32(slot))
                for (folder, device, name), slot in self.entries.items()
            ],
        )
        _replace(gate.scope_users, [(u32(user), u32(slot)) for user, slot in self.users.items()])


def _replace(table: libbpf.Map[libbpf.K, libbpf.V], wanted: list[tuple[libbpf.K, libbpf.V]]) -> None:
    for key, value in wanted:
        table.put(key, value)
    keep = {bytes(key) for key, _ in wanted}  # type: ignore[call-overload]  # ctypes objects are buffers
    for key in table.keys():  # noqa: SIM118 - a BPF map, not a dict
        if bytes(key) not in keep:  # type: ignore[call-overload]  # as above
            table.delete(key)


def _let_nobody_wait(gate: Gate, holding: set[int]) -> None:
    """Kill what is held in scopes that do not hold any more: without the guards it would be anybody's to continue."""
    for task in gate.holds.held():
        if task.slot not in holding:
            gate.holds.end(task.pid, task.execution)


def _retire(gate: Gate, used: set[int], homes: Mapping[str, int]) -> None:
    """Scopes that the configuration no longer has: their processes go to others or are released; free their slots.

    Args:
        gate: with the new rules in force.
        used: the slots of the configuration.
        homes: its cgroups and their slots.
    """
    retired = {name: state.slot for name, state in gate.scopes().items() if state.slot not in used}
    # What is handed over may have forked meanwhile: until none is left.
    while leaving := [task for task in gate.governed() if task.scope in retired and not task.stopped]:
        for task in leaving:
            _leave(gate, task.pid, retired[task.scope], homes)
    for slot in retired.values():
        gate.scope_slots.put(ctypes.c_uint32(slot), abi.Scope(mode=abi.Mode.UNUSED))


def _leave(gate: Gate, pid: int, present: int, homes: Mapping[str, int]) -> None:
    """Who is in a cgroup that another scope governs now must not be ungoverned for a moment."""
    try:
        place = cgroup_of(pid)
    except ProcessLookupError:
        place = ""
    for cgroup, slot in homes.items():
        if place == cgroup or place.startswith(f"{cgroup}/"):
            gate.hand_over(pid, present, slot)
            return
    gate.ungovern(pid, present)


def _govern_residents(gate: Gate, folder: Path, slot: int) -> None:
    """Processes that were inside before the gate: repeat until a whole pass finds nobody new."""
    if not folder.is_dir():
        return
    governed = {task.pid for task in gate.governed()}
    while newcomers := set(processes_below(folder)) - governed:
        for pid in newcomers:
            gate.govern_slot(pid, slot)
        governed |= newcomers


def _folder(cgroup: str) -> Path:
    return cgroup_mount() / cgroup.lstrip("/")
