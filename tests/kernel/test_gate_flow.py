"""The compiled gate has a control flow that the verifiers of older kernels take, whatever kernel this is.

Until 6.2 check_cfg() accepted a loop only where a jump closes it: a plain instruction that falls through into the head
of a loop it is in is "back-edge from insn N to N+1". How LLVM lays out a loop is not ours to say, so it is checked.
"""

from __future__ import annotations

import struct
from typing import Final

import pytest

from egs_kernel.gate import loader
from egs_kernel.gate.parts import GUARDS, SKIP_GUARDS, function_of, programs_of
from egs_kernel.gate.source import source_folder
from egs_kernel.model import Tier

pytestmark = pytest.mark.kernel

FALLTHROUGH, BRANCH = 1, 2
JUMP_CLASSES: Final = (0x05, 0x06)
JUMP, CALL, EXIT = 0x00, 0x80, 0x90
MOST_INSTRUCTIONS: Final = 4096
"""Of one program, for a loader with CAP_BPF alone on any kernel."""

EXIT_PROGRAM: Final = struct.pack("<BBhi", 0x95, 0, 0, 0)


def edges_of(at: int, opcode: int, offset: int) -> list[tuple[int, int, bool]]:
    """Where an instruction leads: target, kind of edge, and whether it may close a loop."""
    if opcode & 0x07 not in JUMP_CLASSES or opcode & 0xF0 == CALL:
        return [(at + 1, FALLTHROUGH, False)]
    if opcode & 0xF0 == EXIT:
        return []
    jump = at + offset + 1
    if opcode & 0xF0 == JUMP:
        return [(jump, FALLTHROUGH, True)]
    return [(at + 1, FALLTHROUGH, True), (jump, BRANCH, True)]


def back_edges(code: bytes) -> list[tuple[int, int]]:
    """Falls into the head of a loop, as check_cfg() of Linux 6.1 walks (kernel/bpf/verifier.c)."""
    on_path, walked, taken, path, found = {0}, set[int](), dict[int, int](), [0], []

    def visit(at: int, to: int, edge: int, *, loops: bool) -> bool:
        """Whether to go on at `to`."""
        if taken.get(at, 0) >= edge:
            return False
        if to in on_path:
            if not loops:
                found.append((at, to))
            return False
        taken[at] = edge
        if to in walked:
            return False
        on_path.add(to)
        path.append(to)
        return True

    while path:
        at = path[-1]
        opcode, _, offset, _ = struct.unpack_from("<BBhi", code, 8 * at)
        if not any(visit(at, to, edge, loops=loops) for to, edge, loops in edges_of(at, opcode, offset)):
            on_path.remove(path.pop())
            walked.add(at)
    return found


def test_the_walk_knows_good_from_bad() -> None:
    add, jump_back, jump_forward = (
        struct.pack("<BBhi", *fields) for fields in ((7, 0, 0, 1), (0x15, 0, -2, 0), (5, 0, 1, 0))
    )
    assert back_edges(add + jump_back + EXIT_PROGRAM) == []
    # 0: goto 2; 1: add (falls into 2, the head); 2: if r0 == 0 goto 1; 3: exit
    conditional = struct.pack("<BBhi", 0x15, 0, -2, 0)
    assert back_edges(jump_forward + add + conditional + EXIT_PROGRAM) == [(1, 2)]


@pytest.mark.parametrize(
    "plan",
    [loader.TRACEPOINT_PLAN, loader.Plan(Tier.LSM, digests=False), loader.Plan(Tier.LSM, digests=True)],
    ids=("tracepoint", "lsm", "lsm with digests"),
)
def test_no_loop_of_the_gate_falls_into_its_own_head(
    plan: loader.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "can_skip", lambda: True)  # with what a kernel needs that can
    module = loader._compile(source_folder(), plan)
    try:
        names = (*programs_of(plan.tier), *SKIP_GUARDS, *GUARDS)
        programs = {name: module.dump_func(function_of(name).encode()) for name in names}
    finally:
        module.cleanup()
    assert {name: back_edges(code) for name, code in programs.items()} == {name: [] for name in programs}
    assert {name for name, code in programs.items() if len(code) // 8 > MOST_INSTRUCTIONS} == set()
