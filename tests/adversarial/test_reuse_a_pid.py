"""Attacker's goal: be the process that somebody else was armed for, or was governed as, by bearing its number.

Claims T-6 and T-7 of docs/threat-model.md.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from egs_kernel.errors import Refused
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks
from tests.adversarial.arena import Arena, clone, execute

pytestmark = pytest.mark.kernel


def launcher() -> int:
    """A process that waits to be armed."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def succeed(pid: int, act: Callable[[], object]) -> None:
    """Do something in a new process with this number."""
    if clone(0, set_tid=pid) == 0:
        assert os.getpid() == pid
        act()
    os.waitpid(pid, 0)


def test_the_successor_of_an_armed_process(arena: Arena) -> None:
    """It ends before its exec; its number passes to another process inside the scope."""
    program = arena.fresh(arena.good)

    def attack(*, reuse: bool) -> None:
        armed = launcher() if reuse else os.getpid()
        arena.arm(armed, program, str(program))
        if not reuse:
            execute(program)
        end(armed)
        succeed(armed, lambda: execute(program))

    control, done = arena.attempt(lambda: attack(reuse=False)), arena.attempt(lambda: attack(reuse=True))

    assert (control.wrote, control.reasons) == (b"good", [Reason.AUTHORIZED])
    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])


def test_a_grant_that_is_armed_too_late(arena: Arena) -> None:
    """The launcher has gone and its number is taken when the daemon writes the grant."""
    program = arena.fresh(arena.good)

    def attack() -> None:
        gone = launcher()
        task = TaskIdentity(gone, start_ticks(gone))
        end(gone)
        while start_ticks(os.getpid()) and _ticks_now() <= task.start_ticks:
            os.sched_yield()  # a process of the same clock tick could not be told apart

        def execute_as_the_successor() -> None:
            arena.gate.arm(arena.grant(program, str(program)), task)
            execute(program)

        succeed(gone, execute_as_the_successor)

    done = arena.attempt(attack)

    assert (done.wrote, done.reasons) == (b"", [Reason.IDENTITY_MISMATCH])


def _ticks_now() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        return start_ticks(child)
    finally:
        end(child)


def governed_too_late(arena: Arena) -> int:
    """The number of a process that ended in the very moment in which it was put into the scope."""
    gone = launcher()
    end(gone)
    arena.gate.govern_slot(gone, arena.gate.scope_slot("test"))
    return gone


def test_a_process_that_is_gone_leaves_no_mark_on_its_number(arena: Arena) -> None:
    """Whoever gets its number is not governed."""
    gone = governed_too_late(arena)

    done = arena.attempt(lambda: succeed(gone, lambda: execute(arena.evil)), governed=False)

    assert (done.wrote, done.reasons) == (b"evil", [])


def test_such_a_mark_does_not_hide_a_process_of_the_scope(arena: Arena) -> None:
    """The other way round: a number with an old mark, borne by a process that is born inside."""
    gone = governed_too_late(arena)

    done = arena.attempt(lambda: succeed(gone, lambda: execute(arena.evil)))

    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])
    assert gone not in {process.pid for process in arena.gate.governed()}


def test_a_successor_is_not_governed_in_place_of_its_predecessor(arena: Arena) -> None:
    """The launcher has gone and somebody else bears its number when the daemon puts it into the scope."""
    bystander = launcher()
    predecessor = TaskIdentity(bystander, start_ticks(bystander) - 1)
    with pytest.raises(Refused) as caught:
        arena.gate.govern(predecessor, "test")
    assert caught.value.reason is Reason.LAUNCHER_LOST
    assert arena.gate.scope_of(bystander) is None
    arena.gate.govern(TaskIdentity(bystander, start_ticks(bystander)), "test")
    assert arena.gate.scope_of(bystander) == "test"
    end(bystander)
