"""The self-test of the drift programs: what a specimen does is told, with the numbers that user space knows.

An offset that is wrong makes one of these untold, or told of somebody else, or of something else.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.gate import abi, drift_specimen
from egs_kernel.gate.drift_abi import Event, ExecFlag, Kind
from egs_kernel.gate.specimen import PROGRAM, Child, drain, fail, same

if TYPE_CHECKING:
    from egs_kernel.gate.drift import DriftGate
    from egs_kernel.gate.pins import Gate

_MAP_UPDATE: Final = 2
_MOST: Final = 4096
_HIGH: Final = 1 << 32
_TICK: Final = 10_000_000

_DONE_TO: Final = (Kind.TRACED, Kind.MEMORY_WRITTEN, Kind.MEMORY_OPENED)
_OWN: Final = (
    Kind.MEMORY_OPENED,
    Kind.CODE_ANONYMOUS,
    Kind.CODE_PROTECTED,
    Kind.CODE_MAPPED,
    Kind.CREDENTIALS,
    Kind.EXEC,
)


def prove_drift(gate: Gate, drift: DriftGate) -> tuple[str, ...]:
    """Have a governed process, and this one, do what is told; what was checked, in words.

    Raises:
        GateError: SELF_TEST_FAILED, with the first difference.
    """
    drift.take(_MOST)
    slot = ctypes.c_uint32(abi.SCOPE_SELF_TEST_OBSERVE)
    program, calls_32_bit = drift_specimen.nameless_copy(), drift_specimen.takes_32_bit_calls()
    gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.OBSERVE, name=b"self-test"))
    act = partial(drift_specimen.do_to_oneself, calls_32_bit=calls_32_bit)
    try:
        with Child(before_exec=act, command=(f"/proc/self/fd/{program}", "echo")) as child:
            started = child.task.start_ticks
            gate.govern_slot(child.pid, slot.value)
            drift_specimen.do_to(child.pid)
            child.finish()
    finally:
        gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.UNUSED))
        os.close(program)
        drain(gate)
    events = drift.take(_MOST)
    _check_process([event for event in events if event.pid == child.pid], started)
    _check_child([event for event in events if event.by == child.pid])
    _check_gate(events)
    kinds = sorted({*_DONE_TO, *_OWN, Kind.CHILD, Kind.GATE_WRITTEN})
    checks = [f"drift: {kind.name.lower()} is told" for kind in kinds]
    if calls_32_bit:
        _check_calls_32_bit([event for event in events if event.pid == child.pid])
        checks.append("drift: calls of 32-bit programs are told")
    return tuple(checks)


def _check_process(events: list[Event], started: int) -> None:
    for kind in _DONE_TO:
        _one(events, kind, by=os.getpid(), started=started)
    found = {kind: _one(events, kind, by=0, started=started) for kind in _OWN}
    opened = [event for event in events if event.kind == Kind.MEMORY_OPENED and event.by]
    same("drift: how often its memory was opened to be written", len(opened), 1)
    file, mapped = Path(PROGRAM).stat(), found[Kind.CODE_MAPPED].file
    same("drift: file of mapped code", (mapped.inode, mapped.size), (file.st_ino, file.st_size))
    same("drift: what a nameless program is", found[Kind.EXEC].number, ExecFlag.NAMELESS | ExecFlag.MEMFD)
    lowered, *_, last = (event for event in events if event.kind == Kind.CREDENTIALS)
    capabilities = (lowered.permitted, lowered.effective)
    same("drift: capabilities", capabilities, (drift_specimen.permitted_after(), drift_specimen.EFFECTIVE))
    ids = (last.uid, last.euid, last.gid, last.egid)
    same("drift: users and groups", ids, (*drift_specimen.USERS, *drift_specimen.GROUPS))


def _check_child(events: list[Event]) -> None:
    """It was born of the specimen, and has it trace it."""
    told = [(Kind(event.kind), event.number) for event in events]
    same("drift: what was told of the specimen's child", told, [(Kind.CHILD, 0), (Kind.TRACED, 0)])


def _check_calls_32_bit(events: list[Event]) -> None:
    became = [event for event in events if event.kind == Kind.CODE_PROTECTED]
    lengths = [event.number for event in became]
    same("drift: memory that became code", lengths, [drift_specimen.PAGE, 2 * drift_specimen.PAGE])
    low = [0 < event.address < _HIGH and event.address % drift_specimen.PAGE == 0 for event in became]
    same("drift: which of it is low", low, [False, True])


def _check_gate(events: list[Event]) -> None:
    """This process is not the daemon: what it wrote to the gate is told."""
    told = {(event.name, event.number) for event in events if event.kind == Kind.GATE_WRITTEN}
    same("drift: a map that was written", (b"scopes", _MAP_UPDATE) in told, True)
    same("drift: a program that was run", b"set_task" in {name for name, _ in told}, True)


def _one(events: list[Event], kind: Kind, *, by: int, started: int) -> Event:
    found = [event for event in events if event.kind == kind and event.by == by]
    if not found:
        fail(f"drift: {kind.name.lower()} was not told")
    same(f"drift: start of the process of {kind.name.lower()}", found[0].started // _TICK, started)
    return found[0]
