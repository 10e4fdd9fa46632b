"""The gate, as user space sees it: pinned maps and programs, no bcc.

`Gate` is the daemon's only door to the kernel. It writes what the verifier made (grants), reads what the gate
did (events, counters), and decides nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from egs_kernel.errors import GateError, HostLacks, Refused
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.events import file_identity, parse_event
from egs_kernel.gate.granting import Granting, GrantTables
from egs_kernel.gate.holds import HeldTasks
from egs_kernel.gate.parts import GUARDS, MAPS, links_of, programs_of
from egs_kernel.gate.ring import Ring
from egs_kernel.gate.seal import Seal, sealed_error
from egs_kernel.gate.subjects import Openings, Subjects
from egs_kernel.gate.views import GateCounters, GovernedTask, Reading, ScopeState, StandingGrant
from egs_kernel.model import (
    FileIdentity,
    GateEvent,
    Grant,
    Mode,
    Reason,
    TaskIdentity,
    Tier,
    Verdict,
)
from egs_kernel.processes import start_ticks

_RELEASE: Final = 0xFFFFFFFF
CLOCK_GRAIN: Final = 20_000_000
"""Nanoseconds that the kernel's messages may be dated off: they have the time of the last tick, in milliseconds."""
_UNLOAD_AND_LOAD: Final = "Run: egs gate unload && egs gate load"


class Gate:
    """A loaded gate. Not for several processes to write at once; `egsd` holds a lock."""

    def __init__(self, pins: Path) -> None:
        """Open the pins below `pins`; see `open`."""
        fds = {name: _open(pins / name) for name in MAPS}
        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        self.configs = libbpf.Map(fds["gate_configs"], u32, abi.Config)
        config = self.settings()
        self.tier = Tier.LSM if config.tier == abi.Tier.LSM else Tier.TRACEPOINT
        self.digests = bool(config.digests)
        self._programs = {name: _open(pins / name) for name in programs_of(self.tier)}
        self._programs |= {name: _open(pins / name) for name in GUARDS if (pins / name).exists()}
        self.subjects = libbpf.Map(fds["subjects"], abi.SubjectKey, abi.Subject)
        self.measured_files = libbpf.Map(fds["measured_files"], abi.FileKey, u64)
        self.library_folders = libbpf.Map(fds["library_folders"], abi.FileKey, u32)
        self._heartbeats = libbpf.Map(fds["heartbeats"], u32, u64)
        self.scope_slots = libbpf.Map(fds["scopes"], u32, abi.Scope)
        self.scope_cgroups = libbpf.Map(fds["scope_cgroups"], u64, u32)
        self.scope_paths = libbpf.Map(fds["scope_paths"], abi.CgroupPath, u32)
        self.scope_files = libbpf.Map(fds["scope_files"], abi.FileKey, u32)
        self.scope_entries = libbpf.Map(fds["scope_entries"], abi.EntryKey, u32)
        self.scope_users = libbpf.Map(fds["scope_users"], u32, u32)
        self._tasks = libbpf.Map(fds["tasks"], u32, abi.Task)
        self._ended_tasks = libbpf.Map(fds["ended_tasks"], u32, abi.EndedTask)
        self.holds = HeldTasks(pins, self._programs, self._tasks)
        self.seal = Seal(pins, self._programs) if self.tier is Tier.LSM else None
        self.grants = GrantTables(
            libbpf.Map(fds["standing_grants"], abi.StandingKey, abi.Grant),
            libbpf.Map(fds["armed_grants"], u32, abi.Grant),
            libbpf.Map(fds["grant_uses"], u64, u64),
            libbpf.Map(fds["grant_argvs"], u64, abi.Argv),
        )
        self.named = Subjects(self.subjects, self._artifacts_in_use)
        self._granting = Granting(self.grants, self.named, self._artifacts_in_use)
        self.openings = Openings(self.measured_files, self.named.files)
        self._variables = libbpf.Map(fds["code_variables"], u32, abi.Variables)
        self._readings = libbpf.Map(fds["readings"], u32, abi.Reading)
        self._decisions = libbpf.CounterMap(fds["decisions"])
        self._failures = libbpf.CounterMap(fds["failures"])
        self._fds = (*self._programs.values(), *fds.values())
        self._fds += self.seal.descriptors if self.seal else ()
        self._ring = Ring(fds["events"], libbpf.map_info(fds["events"]).max_entries)
        self._names: dict[int, str] = {}
        self._reading_lock = threading.Lock()

    @classmethod
    def open(cls, pins: Path) -> Gate:
        """Open a loaded gate.

        Raises:
            GateError: GATE_NOT_LOADED, or GATE_VERSION_MISMATCH when another version's pins lie there.
            Refused: SEALED; this process is not the daemon of a sealed gate.
        """
        try:
            if not (pins / "gate_configs").exists():
                raise GateError(
                    Reason.GATE_NOT_LOADED,
                    f"no gate is loaded ({pins} does not exist)",
                    "Run as root: egs gate load",
                )
            gate = cls(pins)
        except OSError as error:
            if error.errno in (errno.EPROTO, errno.ENOENT):
                raise _other_version(pins, str(error)) from error
            if error.errno == errno.EPERM and os.geteuid() == 0:
                raise sealed_error("only its daemon opens it; ask it (egs status)") from error
            raise GateError(
                Reason.GATE_FAILED, f"cannot open the gate: {error}", "Run it as root."
            ) from error
        found = gate.settings().abi_version
        if found != abi.ABI_VERSION:
            gate.close()
            raise _other_version(pins, f"it speaks ABI {found}, this version {abi.ABI_VERSION}")
        missing = [name for name in links_of(gate.tier) if not (pins / f"link_{name}").exists()]
        if missing:
            gate.close()
            raise GateError(
                Reason.GATE_FAILED, f"the gate is not whole: {', '.join(missing)} detached", _UNLOAD_AND_LOAD
            )
        gate.refresh_scopes()
        return gate

    def close(self) -> None:
        """Close every descriptor; the gate stays loaded."""
        self._ring.close()
        for descriptor in self._fds:
            os.close(descriptor)

    # -- the daemon's sign of life ---------------------------------------------------------------

    def beat(self) -> None:
        """Tell the gate that the daemon is alive; without it the gate refuses everything after `daemon_grace`."""
        self._heartbeats.put(ctypes.c_uint32(0), ctypes.c_uint64(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

    def stop_beating(self) -> None:
        """Make the gate refuse everything in scope at once."""
        self._heartbeats.put(ctypes.c_uint32(0), ctypes.c_uint64(0))

    def heartbeat_age(self) -> float:
        """Seconds since the last beat; infinity when there was none."""
        beat = self._heartbeats.get(ctypes.c_uint32(0))
        if beat is None or beat.value == 0:
            return float("inf")
        return (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - beat.value) / 1e9

    # -- measuring -------------------------------------------------------------------------------

    def identify(self, fd: int) -> FileIdentity:
        """The identity of an open file, read by the gate's own code.

        Raises:
            GateError: the kernel did not answer.
        """
        return self.read_file(fd).identity

    def read_file(self, fd: int) -> Reading:
        """As `identify`, with the folder entry by which the file was opened."""
        with self._reading_lock:
            nonce = time.monotonic_ns()
            libbpf.run_program(self._programs["read_file"], (fd, nonce))
            raw = self._readings.get(ctypes.c_uint32(0))
        if raw is None or raw.nonce != nonce or not raw.found or raw.failed:
            raise GateError(
                Reason.GATE_FAILED, f"the gate cannot read the identity of descriptor {fd}", _UNLOAD_AND_LOAD
            )
        return Reading(identity=file_identity(raw.file), folder_inode=raw.folder_inode, name=raw.name)

    # -- the environment -------------------------------------------------------------------------

    def refuse_variables(self, table: abi.Variables) -> None:
        """Say which environment variables make an exec refused (gate/variables.py makes the table)."""
        self._variables.put(ctypes.c_uint32(0), table)

    # -- grants ----------------------------------------------------------------------------------

    def install(self, grant: Grant) -> int:
        """Install a standing grant; its id. The same artifact for the same file replaces, and keeps its uses.

        Raises:
            GateError: no room for it.
        """
        return self._granting.install(grant, self.scope_slot(grant.scope))

    def withdraw(self, grant_id: int) -> None:
        """Remove a standing grant; the next exec that needs it is refused."""
        self._granting.withdraw(grant_id)

    def standing(self) -> list[StandingGrant]:
        """Every standing grant in the gate."""
        return [
            StandingGrant(
                grant_id=raw.grant_id,
                artifact_id=bytes(raw.artifact_id).hex(),
                scope=self._names.get(raw.scope, f"#{raw.scope}"),
                file=file_identity(raw.file),
                uses_left=self._granting.uses_left(raw),
            )
            for raw in self.grants.permanent()
        ]

    def arm(self, grant: Grant, task: TaskIdentity) -> int:
        """Let one process execute once what the grant says; the grant's id.

        Raises:
            GateError: no room for it.
        """
        return self.arm_slot(grant, task, self.scope_slot(grant.scope))

    def arm_slot(self, grant: Grant, task: TaskIdentity, scope: int) -> int:
        """As `arm`, in the scope of that slot."""
        return self._granting.arm(grant, task, scope)

    def name(self, grant: Grant) -> None:
        """Write what a grant's artifact names, for a process that is let go without the grant itself.

        Raises:
            GateError: no room for it.
        """
        self._granting.name(grant, self.scope_slot(grant.scope))

    def withdraw_children(self, artifact_id: str) -> None:
        """What runs under this artifact starts nothing more of what it names."""
        self._granting.withdraw_children(artifact_id)

    def disarm(self, pid: int) -> None:
        """Take an armed grant back, if it is still there."""
        self._granting.disarm(pid)

    def collect(self) -> None:
        """Free what belongs to grants that are gone: a daemon that died had no time to. Not while arming."""
        self._granting.collect()

    def forget(self, grant_id: int) -> None:
        """Free what belongs to an armed grant that an exec has consumed."""
        self._granting.forget(grant_id)

    def armed(self) -> dict[int, int]:
        """What is armed now: grant ids by process id."""
        return {key.value: raw.grant_id for key, raw in self.grants.armed.items()}

    # -- governed processes ----------------------------------------------------------------------

    def govern(self, task: TaskIdentity, scope: str) -> None:
        """Put a process under a scope. The first scope of a process stays.

        Raises:
            GateError: it cannot be tracked, or is under another scope (SCOPE_MISMATCH).
            Refused: LAUNCHER_LOST; it has gone, whoever bears its number now.
        """
        slot, key = self.scope_slot(scope), ctypes.c_uint32(task.pid)
        _require_alive(task)
        before = self._tasks.get(key)
        self.govern_slot(task.pid, slot)
        present = self._tasks.get(key)
        try:
            _require_alive(task)  # else its successor may have been marked in its place
        except Refused:
            if before is None:
                self.ungovern(task.pid, slot)
            raise
        if present is not None and present.scope != slot:
            where = self._names.get(present.scope, f"#{present.scope}")
            raise GateError(
                Reason.SCOPE_MISMATCH,
                f"process {task.pid} is already governed by scope {where}",
                f"Start it outside of scope {where}, or use an artifact for scope {where}.",
            )

    def govern_slot(self, pid: int, slot: int) -> None:
        """As `govern`, by slot number.

        Raises:
            GateError: it cannot be tracked.
        """
        if libbpf.run_program(self._programs["set_task"], (pid, slot)) != 0:
            raise GateError(
                Reason.TASKS_FULL,
                f"process {pid} cannot be tracked: {abi.TASKS} processes are governed",
                "Stop some of them.",
            )

    def assume(self, pid: int, **fields: int) -> None:
        """Change what the gate has of a governed process (abi.Task); for the self-test."""
        key = ctypes.c_uint32(pid)
        task = self._tasks.get(key) or abi.Task()
        for name, value in fields.items():
            setattr(task, name, value)
        self._tasks.put(key, task)

    def ungovern(self, pid: int, present: int) -> None:
        """Stop governing a process: its scope, which has the slot `present`, was removed from the configuration."""
        self.hand_over(pid, present, _RELEASE)

    def hand_over(self, pid: int, present: int, slot: int) -> None:
        """Have another scope govern a process, at no moment by none; nothing when it is not in `present`."""
        libbpf.run_program(self._programs["set_task"], (pid, slot | (present + 1) << 32))

    def governed(self) -> list[GovernedTask]:
        """Every governed process."""
        return [self._view(key.value, task) for key, task in self._tasks.items()]

    def governed_task(self, pid: int) -> GovernedTask | None:
        """A governed process; None: nobody governs it."""
        task = self._tasks.get(ctypes.c_uint32(pid))
        return None if task is None else self._view(pid, task)

    def _view(self, pid: int, task: abi.Task) -> GovernedTask:
        return GovernedTask(
            pid=pid,
            scope=self._names.get(task.scope, f"#{task.scope}"),
            execution=task.execution,
            inherited=bool(task.flags & abi.TaskFlag.INHERITED),
            held=bool(task.flags & abi.TaskFlag.HELD),
            suspended=bool(task.flags & abi.TaskFlag.SUSPENDED),
            artifact=task.artifact,
            born=task.started,
        )

    def restrain(self, pid: int, execution: int, how: abi.Restrain, key: int = 0) -> bool:
        """Mark a process of a tree that drifted, or take that back; False: it is not of that execution (any more).

        Args:
            pid: the process.
            execution: that it belongs to.
            how: what becomes of it. Stop it before it is suspended: from then on it dies when it comes to user space.
            key: for a quarantine, the key of an artifact that no grant has.
        """
        return bool(libbpf.run_program(self._programs["restrain_task"], (pid, execution, int(how), key)))

    def guard(self) -> bool:
        """Attach the guards of what is suspended, as far as this kernel has them; whether all of them are there."""
        with contextlib.suppress(HostLacks):
            self.holds.attach_guards()
        return not self.holds.missing_guards()

    def scope_of(self, pid: int) -> str | None:
        """The scope that governs a process; None when none does."""
        task = self._tasks.get(ctypes.c_uint32(pid))
        return None if task is None else self._names.get(task.scope, f"#{task.scope}")

    def execution_of(self, pid: int, time: int) -> tuple[int, str] | None:
        """The execution that a process belonged to at a time, 0 before it executed anything, and its scope.

        Also of a process that has ended, as long as a few thousand others did not end since. None: nobody governed it.

        Args:
            pid: its number, which may be another one's by now.
            time: CLOCK_BOOTTIME nanoseconds.
        """
        key = ctypes.c_uint32(pid)
        task: abi.Task | abi.EndedTask | None = self._tasks.get(key)
        if task is None:
            task = self._ended_tasks.get(key)
            if task is not None and time > task.time + CLOCK_GRAIN:
                return None
        return None if task is None else (task.execution, self._names.get(task.scope, f"#{task.scope}"))

    # -- scopes ----------------------------------------------------------------------------------

    def scopes(self) -> dict[str, ScopeState]:
        """The scopes that the gate enforces or observes, by name."""
        cgroups = {slot.value: key.path.decode() for key, slot in self.scope_paths.items()}
        states = {}
        for key, raw in self.scope_slots.items():
            if raw.mode != abi.Mode.UNUSED and key.value < abi.MAX_SCOPES:
                mode = Mode.ENFORCE if raw.mode == abi.Mode.ENFORCE else Mode.OBSERVE
                name = raw.name.decode()
                states[name] = ScopeState(key.value, name, mode, cgroups.get(key.value))
        return states

    def refresh_scopes(self) -> None:
        """Read the scopes' names again; after they were configured."""
        self._names = {state.slot: name for name, state in self.scopes().items()}
        self._names |= {abi.SCOPE_SELF_TEST_OBSERVE: "self-test", abi.SCOPE_SELF_TEST_ENFORCE: "self-test"}

    def scope_slot(self, name: str) -> int:
        """The slot of a scope.

        Raises:
            GateError: SCOPE_UNKNOWN.
        """
        for slot, known in self._names.items():
            if known == name:
                return slot
        raise GateError(
            Reason.SCOPE_UNKNOWN,
            f"the gate has no scope {name!r}",
            "Add it to egs.toml, then run: egs reload",
        )

    # -- what the gate did -----------------------------------------------------------------------

    def drain(self, handle: Callable[[GateEvent], None]) -> int:
        """Hand every waiting event to `handle` and free its room; their number."""
        events, position = self.take_events()
        for event in events:
            handle(event)
        self.free_events(position)
        return len(events)

    def take_events(self) -> tuple[list[GateEvent], int]:
        """Every event that was not taken yet, and the position to free when they are safe.

        Until then they keep their room, also when this process dies: the next one takes them again.

        Raises:
            GateError: no gate of this version wrote them.
        """
        events = [parse_event(data, self._names, self.tier) for data in self._ring.take()]
        return events, self._ring.position

    def free_events(self, position: int) -> None:
        """Free the room of events up to a position that `take_events` gave."""
        self._ring.release(position)

    def counters(self) -> GateCounters:
        """Decisions, failures and skipped runs since the gate was loaded."""
        decisions: dict[tuple[Verdict, Reason, bool], int] = {}
        for index, count in enumerate(self._decisions.read()):
            if count:
                kind, reason = divmod(index, abi.GATE_REASONS)
                decisions[Verdict(kind % 4), Reason(reason), kind < len(Verdict)] = count
        totals = self._failures.read()
        return GateCounters(
            decisions=decisions,
            failures={failure.name.lower(): totals[failure] for failure in abi.Failure},
            missed=sum(libbpf.program_info(fd).recursion_misses for fd in self._programs.values()),
        )

    def reset_counters(self) -> None:
        """Forget what was counted so far: the self-test is no history."""
        self._decisions.reset()
        self._failures.reset()

    def programs(self) -> dict[str, str]:
        """Program → the kernel's tag (a digest of its instructions), hex."""
        return {name: bytes(libbpf.program_info(fd).tag).hex() for name, fd in sorted(self._programs.items())}

    # -- inside ----------------------------------------------------------------------------------

    def settings(self) -> abi.Config:
        """The gate's settings, as they are now.

        Raises:
            GateError: they cannot be read.
        """
        config = self.configs.get(ctypes.c_uint32(0))
        if config is None:
            raise GateError(Reason.GATE_FAILED, "the gate's configuration cannot be read", _UNLOAD_AND_LOAD)
        return config

    def _artifacts_in_use(self) -> set[int]:
        """Keys of the artifacts of all grants, and of what runs: in this order, an exec turns one into the other."""
        return self.grants.artifacts() | {task.artifact for _, task in self._tasks.walk()}


def _require_alive(task: TaskIdentity) -> None:
    try:
        if start_ticks(task.pid) == task.start_ticks:
            return
    except ProcessLookupError:
        pass
    raise Refused(Reason.LAUNCHER_LOST, f"process {task.pid} has gone")


def _open(path: Path) -> int:
    return libbpf.open_pin(path)


def _other_version(pins: Path, why: str) -> GateError:
    return GateError(
        Reason.GATE_VERSION_MISMATCH,
        f"the gate pinned at {pins} is another version's: {why}",
        _UNLOAD_AND_LOAD,
    )
