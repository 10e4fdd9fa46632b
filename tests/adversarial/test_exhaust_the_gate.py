"""Attacker's goal: fill what the gate remembers in, so that it forgets, or lets pass what it cannot record.

Claim T-8 of docs/threat-model.md: every table that is full refuses. It is denial of service, for the scope, and
says so in its counters; it is never an exec.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from egs_kernel.gate import abi, libbpf
from egs_kernel.model import Reason, Verdict
from tests.adversarial.arena import Arena, execute, spawn
from tests.harness import Instance

pytestmark = pytest.mark.kernel

RING_BYTES = 1024 * 4096
"""EGS_RING_PAGES of 4 KiB."""
GENERATIONS = 20


@pytest.fixture
def own_arena(instance: Instance, place: Path) -> Arena:
    """An arena of its own: a gate that was full once is never quite the same."""
    return Arena.build(place, instance)


def table(arena: Arena, name: str) -> int:
    return libbpf.open_pin(arena.instance.paths.pins / name)


def test_the_ring_buffer_is_full(arena: Arena) -> None:
    """Refused execs fill it as well as permitted ones. Then nothing runs until the daemon has taken them."""
    good = arena.fresh(arena.good)
    arena.permit(good)
    large, small = RING_BYTES // 4096, 16

    def flood(large: int, small: int) -> None:
        for argument, number in (("a" * 4000, large), ("a", small)):
            for _ in range(number):
                spawn(arena.evil, argument)
        execute(good)

    before = arena.gate.counters().failures["event"]
    assert arena.attempt(lambda: flood(10, 10)).wrote == b"good"

    done = arena.attempt(lambda: flood(large, small))

    counters = arena.gate.counters()
    assert done.wrote == b""
    assert counters.decisions[Verdict.KILL, Reason.AUDIT_UNAVAILABLE, True] == 1, "the authorized one"
    assert len(done.execs) + counters.failures["event"] - before == large + small + 1, "none is forgotten"
    assert arena.attempt(lambda: execute(good)).wrote == b"good"


def test_forking_beyond_the_limit(arena: Arena) -> None:
    """Who forks beyond it dies. Its child goes on, is governed, and dies when it forks."""
    counts = libbpf.Map(table(arena, "task_counts"), ctypes.c_uint32, ctypes.c_uint64)
    zero = ctypes.c_uint32(0)

    def fork_on_and_on() -> None:
        for _ in range(GENERATIONS):
            if os.fork():
                os.wait()
                os._exit(0)
        execute(arena.evil)

    assert arena.attempt(fork_on_and_on, governed=False).wrote == b"evil"
    present = counts.get(zero)
    assert present is not None
    counts.put(zero, ctypes.c_uint64(present.value + abi.TASKS_SOFT))
    try:
        done = arena.attempt(fork_on_and_on)
    finally:
        counts.put(zero, ctypes.c_uint64(0))
        os.close(counts.descriptor)
    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])
    assert arena.gate.counters().failures["fork_refused"] == GENERATIONS


def test_the_table_of_processes_is_full(own_arena: Arena) -> None:
    """A process that cannot be tracked is found by its cgroup, and may not even execute what is authorized."""
    arena = own_arena
    good = arena.fresh(arena.good)
    arena.permit(good)
    assert arena.attempt(lambda: execute(good)).wrote == b"good"
    tasks = libbpf.Map(table(arena, "tasks"), ctypes.c_uint32, abi.Task)
    nobody = [ctypes.c_uint32(2**31 + number) for number in range(abi.TASKS)]
    for key in nobody:
        tasks.put(key, abi.Task())

    def with_a_child() -> None:
        if os.fork() == 0:
            execute(arena.evil)
        os.wait()

    evil, child = arena.attempt(lambda: execute(arena.evil)), arena.attempt(with_a_child)
    authorized = arena.attempt(lambda: execute(good))
    outside = arena.attempt(lambda: execute(arena.evil), governed=False)
    for key in nobody:
        tasks.delete(key)
    os.close(tasks.descriptor)

    assert (evil.wrote, evil.reasons) == (b"", [Reason.NO_GRANT])
    assert (child.wrote, child.reasons) == (b"", [Reason.NO_GRANT])
    assert (authorized.wrote, authorized.reasons) == (b"", [Reason.TASKS_FULL])
    assert outside.wrote == b"evil"
    assert arena.gate.counters().failures["task_insert"] > 0
    assert arena.attempt(lambda: execute(good)).wrote == b"good"
    arena.gate.close()
