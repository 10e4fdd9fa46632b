"""The self-test of the drift programs: what a specimen does is told, with the numbers that user space knows.

An offset that is wrong makes one of these untold, or told of somebody else.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.gate import abi
from egs_kernel.gate.drift_abi import Event, ExecFlag, Kind
from egs_kernel.gate.specimen import PROGRAM, Child, drain, fail, same

if TYPE_CHECKING:
    from egs_kernel.gate.drift import DriftGate
    from egs_kernel.gate.pins import Gate

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PTRACE_DETACH: Final = 17
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_MAP_UPDATE: Final = 2
_MOST: Final = 4096
_UID: Final = 61234
_TICK: Final = 10_000_000
_PAGE: Final = mmap.PAGESIZE
_WORD: Final = ctypes.create_string_buffer(b"untouched")
"""At the same place in a child."""

_DONE_TO: Final = (Kind.TRACED, Kind.MEMORY_WRITTEN, Kind.MEMORY_OPENED)
_OWN: Final = (
    Kind.MEMORY_OPENED,
    Kind.CODE_ANONYMOUS,
    Kind.CODE_PROTECTED,
    Kind.CODE_MAPPED,
    Kind.CREDENTIALS,
    Kind.EXEC,
)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def prove_drift(gate: Gate, drift: DriftGate) -> tuple[str, ...]:
    """Have a governed process, and this one, do what is told; what was checked, in words.

    Raises:
        GateError: SELF_TEST_FAILED, with the first difference.
    """
    drift.take(_MOST)
    slot = ctypes.c_uint32(abi.SCOPE_SELF_TEST_OBSERVE)
    program = _nameless_copy()
    gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.OBSERVE, name=b"self-test"))
    try:
        with Child(before_exec=_do_to_oneself, command=(f"/proc/self/fd/{program}", "echo")) as child:
            started = child.task.start_ticks
            gate.govern_slot(child.pid, slot.value)
            _do_to(child.pid)
            child.finish()
    finally:
        gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.UNUSED))
        os.close(program)
        drain(gate)
    events = drift.take(_MOST)
    _check_process([event for event in events if event.pid == child.pid], started)
    born = [event for event in events if event.kind == Kind.CHILD and event.by == child.pid]
    same("drift: children that were told", len(born), 1)
    _check_gate(events)
    kinds = sorted({*_DONE_TO, *_OWN, Kind.CHILD, Kind.GATE_WRITTEN})
    return tuple(f"drift: {kind.name.lower()} is told" for kind in kinds)


def _check_process(events: list[Event], started: int) -> None:
    for kind in _DONE_TO:
        _one(events, kind, by=os.getpid(), started=started)
    found = {kind: _one(events, kind, by=0, started=started) for kind in _OWN}
    file, mapped = Path(PROGRAM).stat(), found[Kind.CODE_MAPPED].file
    same("drift: file of mapped code", (mapped.inode, mapped.size), (file.st_ino, file.st_size))
    user = found[Kind.CREDENTIALS]
    same("drift: user after setresuid", (user.uid, user.euid), (_UID, _UID))
    same("drift: what a nameless program is", found[Kind.EXEC].number, ExecFlag.NAMELESS | ExecFlag.MEMFD)


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


def _do_to(pid: int) -> None:
    """Read and write the memory of this child, as a tracer and otherwise."""
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC))
    vector = _Vector(ctypes.addressof(_WORD), len(_WORD))
    places = ctypes.byref(vector), ctypes.c_ulong(1)
    if _LIBC.process_vm_writev(pid, *places, *places, ctypes.c_ulong(0)) != len(_WORD):
        fail(f"drift: process_vm_writev: {os.strerror(ctypes.get_errno())}")
    if _LIBC.ptrace(_PTRACE_SEIZE, pid, None, None) != 0:
        fail(f"drift: PTRACE_SEIZE: {os.strerror(ctypes.get_errno())}")
    _LIBC.ptrace(_PTRACE_INTERRUPT, pid, None, None)
    os.waitpid(pid, 0)
    _LIBC.ptrace(_PTRACE_DETACH, pid, None, None)


def _do_to_oneself() -> None:
    os.close(os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC))
    code = mmap.PROT_READ | mmap.PROT_EXEC
    mmap.mmap(-1, _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, code)
    memory = mmap.mmap(-1, _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _LIBC.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(_PAGE), code)
    program = os.open(PROGRAM, os.O_RDONLY | os.O_CLOEXEC)
    mmap.mmap(program, 0, mmap.MAP_PRIVATE, code)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    os.setresuid(_UID, _UID, _UID)


def _nameless_copy() -> int:
    """A program without a name in any folder."""
    copy = os.memfd_create("egs-self-test")
    os.write(copy, Path(PROGRAM).read_bytes())
    return copy
