"""Attacker's goal: execute an authorized program with arguments that nobody authorized.

Claim T-5 of docs/threat-model.md: the gate compares the arguments that the kernel has copied into the new image,
so what the caller's memory says before and after that does not matter.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.model import Reason
from tests.adversarial.arena import EVIDENCE, Arena, libc

pytestmark = pytest.mark.kernel

TRIES: Final = 100
ROUNDS: Final = 10
"""Of `TRIES` each, until the race was won: on one CPU a whole round may go by."""
ECHO: Final = Path("/bin/echo")


class Argv:
    """`echo good` for execve(2), in memory that can be changed under the kernel's hands."""

    def __init__(self) -> None:
        self.word = ctypes.create_string_buffer(b"good")
        self._argv = (ctypes.c_char_p * 3)(b"echo", ctypes.cast(self.word, ctypes.c_char_p), None)
        self._environment = (ctypes.c_char_p * 1)(None)

    def set(self, word: bytes) -> None:
        ctypes.memmove(self.word, word, len(word))

    def execute(self, program: Path) -> None:
        os.dup2(EVIDENCE, 1)
        libc.execve(bytes(program), self._argv, self._environment)
        raise OSError(ctypes.get_errno(), "execve")


def test_a_thread_rewrites_them_during_the_exec(arena: Arena) -> None:
    program = arena.fresh(ECHO)
    arena.permit(program, "echo", "good")

    def race() -> None:
        for _ in range(TRIES):
            child = os.fork()
            if child == 0:
                argv = Argv()

                def flip(argv: Argv = argv) -> None:
                    while True:
                        argv.set(b"evil")
                        argv.set(b"good")

                threading.Thread(target=flip, daemon=True).start()
                argv.execute(program)
            os.waitpid(child, 0)

    control: Counter[bytes] = Counter()
    for _ in range(ROUNDS):
        control += Counter(arena.attempt(race, governed=False).wrote.split())
        if len(control) > 1:
            break
    assert control.keys() == {b"good", b"evil"}, "the race was never won, so this shows nothing"
    seen: set[tuple[str, ...]] = set()
    for _ in range(ROUNDS):
        done = arena.attempt(race)
        said = Counter(done.wrote.split())
        assert said.keys() <= {b"good"}
        assert Counter(done.reasons) == Counter(
            {Reason.AUTHORIZED: said[b"good"], Reason.ARGV_MISMATCH: TRIES - said[b"good"]}
        )
        seen |= {event.argv for event in done.execs}
        if len(seen) > 1:
            break
    assert seen == {("echo", "good"), ("echo", "evil")}


@pytest.mark.parametrize("changed", [False, True], ids=["untouched", "rewritten"])
def test_somebody_rewrites_the_launchers_memory_between_arming_and_exec(arena: Arena, changed: bool) -> None:  # noqa: FBT001 - the parameter
    """By /proc/PID/mem, as any process of the same user can (and ptrace likewise)."""
    program = arena.fresh(ECHO)

    def attack(*, armed: bool) -> None:
        argv = Argv()
        waiting, go = os.pipe()
        launcher = os.fork()
        if launcher == 0:
            os.close(go)
            os.read(waiting, 1)
            argv.execute(program)
        if armed:
            arena.arm(launcher, program, "echo", "good")
        if changed:
            with Path(f"/proc/{launcher}/mem").open("r+b", buffering=0) as memory:
                memory.seek(ctypes.addressof(argv.word))
                memory.write(b"evil")
        os.close(go)
        os.waitpid(launcher, 0)

    control = arena.attempt(lambda: attack(armed=False), governed=False)
    done = arena.attempt(lambda: attack(armed=True))

    assert control.wrote == (b"evil\n" if changed else b"good\n")
    assert done.wrote == (b"" if changed else b"good\n")
    assert done.reasons == [Reason.ARGV_MISMATCH if changed else Reason.AUTHORIZED]
