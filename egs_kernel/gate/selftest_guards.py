"""The self-test of the guards: an exec that the kernel skips is decided all the same; who is held and let go dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.gate.parts import TRACEPOINTS, can_skip
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.specimen import EXIT_CODE, GRANTED, SHELL, Child, arm, exec_event, fail, same
from egs_kernel.model import ExecEvent, Reason, Tier, Verdict

_TRIES: Final = 200
_PTRACE_CONT: Final = 7
_PTRACE_SEIZE: Final = 0x4206
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def prove_exec_guard(gate: Gate, pins: Path) -> Iterator[str]:
    """Where the kernel can skip the decision on an exec: it is made before the first instruction.

    Args:
        gate: the gate.
        pins: its folder. `gate_exec` is detached for a moment.

    Raises:
        GateError: SELF_TEST_FAILED; it was not, or not that one.
    """
    if not can_skip():
        return
    slot = ctypes.c_uint32(abi.SCOPE_SELF_TEST_ENFORCE)
    gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.ENFORCE, name=b"self-test"))
    gate.beat()
    (pins / "link_gate_exec").unlink()
    try:
        with _cgroup_of(gate, slot) as folder:
            for argv, known in (
                (GRANTED, (Verdict.ALLOW, Reason.AUTHORIZED, GRANTED, SHELL, EXIT_CODE, b"ran\n")),
                (("other",), (Verdict.KILL, Reason.ARGV_MISMATCH, GRANTED, SHELL, -signal.SIGKILL, b"")),
            ):
                event, code, written = _execute_skipped(gate, folder, argv)
                seen = (event.verdict, event.reason, event.argv, event.filename, code, written)
                same("an exec that the kernel skipped", seen, known)
    finally:
        _attach_exec(pins)
        gate.scope_slots.put(slot, abi.Scope(mode=abi.Mode.UNUSED))
    yield "an exec that the kernel skips is decided by the guard: with a grant it runs, without it dies and writes nothing"


@contextlib.contextmanager
def _cgroup_of(gate: Gate, slot: ctypes.c_uint32) -> Iterator[Path]:
    """A cgroup of a scope. Who is moved into it is governed, and the gate knows which exec was its last."""
    name = f"egs-self-test-{os.getpid()}"
    path = abi.CgroupPath(path=f"/{name}".encode())
    folder = cgroup_mount() / name
    gate.scope_paths.put(path, slot)
    try:
        folder.mkdir()
        yield folder
    finally:
        gate.scope_paths.delete(path)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def _execute_skipped(gate: Gate, folder: Path, argv: tuple[str, ...]) -> tuple[ExecEvent, int, bytes]:
    """An exec that is armed for these arguments: its event, how it ended, what it wrote.

    The kernel detaches `gate_exec` by itself, soon after its link is unlinked: until then nothing is skipped.
    """
    for _ in range(_TRIES):
        before = gate.counters().failures["exec_skipped"]
        with Child(command=(SHELL, *GRANTED)) as child:
            move(child.pid, folder)
            arm(gate, child, argv=argv)
            status, written = child.finish()
        event = exec_event(gate, child.pid)
        gate.disarm(child.pid)
        gate.forget(event.grant_id)
        if gate.counters().failures["exec_skipped"] > before:
            return event, os.waitstatus_to_exitcode(status), written
    return fail(f"gate_exec is still attached after {_TRIES} execs")


def _attach_exec(pins: Path) -> None:
    program = libbpf.open_pin(pins / "gate_exec")
    link = libbpf.attach_raw_tracepoint(TRACEPOINTS["gate_exec"], program)
    libbpf.pin(link, pins / "link_gate_exec")
    os.close(link)
    os.close(program)


def prove_hold(gate: Gate) -> str:
    """Hold a process, let it go as its owner would, and see it die; what was checked, in words.

    On the tier `lsm` its owner is refused that; then it is a tracer who lets it go. All that it could execute is in its
    memory by then, so that no page fault stops it.

    Raises:
        HostLacks: this kernel cannot hold.
        GateError: SELF_TEST_FAILED, it was not stopped, or it got away.
    """
    slot = abi.SCOPE_SELF_TEST_ENFORCE
    gate.scope_slots.put(
        ctypes.c_uint32(slot),
        abi.Scope(mode=abi.Mode.ENFORCE, on_missing=abi.Missing.HOLD, name=b"self-test"),
    )
    gate.beat()
    gate.holds.attach_guards()
    try:
        with Child() as child:
            gate.govern_slot(child.pid, slot)
            same("stop of a held process", child.until_stopped(), signal.SIGSTOP)
            _read_executable_memory(child.pid)
            refused = _is_refused_to_continue(child.pid)
            same("refusal to let a held process go", refused, gate.tier is Tier.LSM)
            if refused:
                _continue_as_tracer(child.pid)
            status, written = child.finish()
    finally:
        gate.holds.detach_guards()
        gate.scope_slots.put(ctypes.c_uint32(slot), abi.Scope(mode=abi.Mode.UNUSED))
    event = exec_event(gate, child.pid)
    same("verdict on a held process", (event.verdict, event.reason), (Verdict.HOLD, Reason.NO_GRANT))
    same("end of a held process that was let go", (os.WTERMSIG(status), written), (signal.SIGKILL, b""))
    return "a held process that somebody lets go dies and writes nothing"


def _is_refused_to_continue(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGCONT)
    except PermissionError:
        return True
    return False


def _continue_as_tracer(pid: int) -> None:
    _trace(_PTRACE_SEIZE, pid)
    os.waitpid(pid, 0)  # it stops for its tracer now
    _trace(_PTRACE_CONT, pid)


def _trace(request: int, pid: int) -> None:
    if _LIBC.ptrace(request, pid, None, None) != 0:
        fail(f"a tracer of a held process: {os.strerror(ctypes.get_errno())}")


def _read_executable_memory(pid: int) -> None:
    """Whoever reads another process's memory brings it in, without a fault of that process."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, modes = line.split()[:2]
            if "x" in modes and not line.endswith("[vsyscall]"):
                start, end = (int(edge, 16) for edge in span.split("-"))
                memory.seek(start)
                memory.read(end - start)
