"""Attacker's goal: use the moment in which the administrator changes the scopes.

Claim T-2 of docs/threat-model.md.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from egs_kernel.config import parse_config
from egs_kernel.gate.scopes import apply_scopes
from egs_kernel.model import Reason
from tests.adversarial.arena import Arena, execute
from tests.harness import Instance

pytestmark = pytest.mark.kernel

RELOADS = 60


@pytest.fixture
def own_arena(instance: Instance, place: Path) -> Arena:
    """An arena of its own: other tests do not expect its scope to be renamed."""
    return Arena.build(place, instance)


def test_a_scope_that_is_renamed(own_arena: Arena) -> None:
    """Its processes are governed by the one name or by the other, and at no moment by none."""
    arena = own_arena
    configs = [
        parse_config(
            f'daemon_grace = "300s"\n[[scope]]\nname = "{name}"\ncgroup = "{arena.cgroup.path}"\n'.encode()
        )
        for name in ("first", "second")
    ]
    begun, begin = os.pipe()
    ended = threading.Event()

    def reload_often() -> None:
        os.read(begun, 1)
        for number in range(RELOADS):
            apply_scopes(arena.gate, configs[number % 2])
        ended.set()
        os.kill(int(arena.cgroup.procs.read_text().split()[0]), signal.SIGUSR1)

    def try_all_the_time() -> None:
        over = False

        def stop(_number: int, _frame: object) -> None:
            nonlocal over
            over = True

        signal.signal(signal.SIGUSR1, stop)
        os.write(begin, b"1")
        while not over:
            child = os.fork()
            if child == 0:
                execute(arena.evil)
            os.waitpid(child, 0)

    reloading = threading.Thread(target=reload_often)
    reloading.start()
    done = arena.attempt(try_all_the_time)
    reloading.join()
    os.close(begun)
    os.close(begin)

    assert done.wrote == b""
    assert set(done.reasons) <= {Reason.NO_GRANT, Reason.GATE_MISCONFIGURED}
    arena.gate.close()


def test_a_scope_that_is_removed_with_a_process_that_is_gone(own_arena: Arena) -> None:
    """A number that is left behind in the table does not keep the reload from coming to its end."""
    arena = own_arena
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    arena.gate.govern_slot(gone, arena.gate.scope_slot("test"))
    assert arena.attempt(lambda: execute(arena.evil)).wrote == b""
    apply_scopes(arena.gate, parse_config(b""))
    assert arena.gate.governed() == []
    assert arena.attempt(lambda: execute(arena.evil)).wrote == b"evil"
    arena.gate.close()
