"""Open, if not said otherwise on both tiers: what happens to an authorized program from its exec on, and around it.

Points O-1 to O-4 of docs/threat-model.md. Each test shows that the attack works. One that fails is good news: then
the point moves from "open" to a claim.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.model import Reason, Tier, Verdict
from tests.adversarial.arena import (
    CLONE_NEWUSER,
    EVIDENCE,
    MS_BIND,
    NOBODY,
    Arena,
    execute,
    libc,
    mount,
    private_mounts,
    unshare,
)
from tests.refusals import TIER

pytestmark = pytest.mark.kernel

PTRACE_TRACEME, PTRACE_POKEDATA, PTRACE_CONT = 0, 4, 7
ECHO: Final = Path("/bin/echo")


def untrusted(arena: Arena) -> int:
    """How often code was refused as nobody's."""
    return arena.gate.counters().decisions.get((Verdict.DENY, Reason.CODE_UNTRUSTED, True), 0)


def test_o1_a_dynamic_loader_of_the_callers_in_a_chroot(arena: Arena, place: Path) -> None:
    """The kernel loads PT_INTERP from the caller's root. A user namespace gives one to anybody.

    Closed on the tier lsm: the loader is not mapped, and the kernel ends an exec that fails so late.
    """
    headers = subprocess.run(["readelf", "-l", str(ECHO)], capture_output=True, text=True, check=True).stdout
    loader = Path(headers.split("interpreter: ")[1].split("]")[0])
    program = arena.fresh(ECHO, place)
    arena.permit(program, "echo")
    fake = place / loader.relative_to("/")
    fake.parent.mkdir(parents=True)
    shutil.copy(arena.evil, fake)

    def attack() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        unshare(CLONE_NEWUSER)
        os.chroot(place)
        execute(f"/{program.name}", "echo")

    before = untrusted(arena)
    done = arena.attempt(attack)

    closed = TIER is Tier.LSM
    assert (done.wrote, done.reasons) == ((b"", []) if closed else (b"evil", [Reason.AUTHORIZED]))
    assert untrusted(arena) - before == closed


def test_o2_another_script_at_the_authorized_path(arena: Arena, place: Path) -> None:
    """The gate sees the interpreter and its arguments; which file the path leads to is up to the mounts."""
    shell, script, evil = arena.fresh(Path("/bin/dash"), place), place / "script", place / "evil"
    script.write_text(f"printf good >&{EVIDENCE}\n")
    evil.write_text(f"printf evil >&{EVIDENCE}\n")
    arena.permit(shell, "sh", str(script))

    def attack() -> None:
        private_mounts()
        mount(evil, script, flags=MS_BIND)
        execute(shell, "sh", str(script))

    assert arena.attempt(lambda: execute(shell, "sh", str(script))).wrote == b"good"

    done = arena.attempt(attack)

    assert (done.wrote, done.reasons) == (b"evil", [Reason.AUTHORIZED])


def test_o3_a_tracer_changes_the_authorized_program(arena: Arena) -> None:
    """What is in the image when it starts is for its tracer to say: any process of the same user, as a rule."""
    program = arena.fresh(arena.good)
    content = program.read_bytes()
    arena.permit(program)
    symbols = subprocess.run(
        ["readelf", "-lW", str(program)], capture_output=True, text=True, check=True
    ).stdout
    load = next(line.split() for line in symbols.splitlines() if "LOAD" in line and " RW " in line)
    offset, address = int(load[1], 16), int(load[2], 16)
    word = address + content.index(b"good", offset) - offset
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

    def attack() -> None:
        child = os.fork()
        if child == 0:
            libc.ptrace(PTRACE_TRACEME, 0, None, None)
            execute(program)
        os.waitpid(child, 0)  # it stops after its exec, before its first instruction
        assert libc.ptrace(PTRACE_POKEDATA, child, word, int.from_bytes(b"evil\0\0\0\0", "little")) == 0
        libc.ptrace(PTRACE_CONT, child, None, None)
        os.waitpid(child, 0)

    done = arena.attempt(attack)

    assert (done.wrote, done.reasons) == (b"evil", [Reason.AUTHORIZED])


def test_o4_code_that_an_authorized_interpreter_reads(arena: Arena, place: Path) -> None:
    """The verifier refuses interpreters with free arguments; one that it does not know by name is not refused."""
    shell = arena.fresh(Path("/bin/dash"), place)
    arena.permit(shell)
    done = arena.attempt(lambda: execute(shell, "sh", "-c", f"printf evil >&{EVIDENCE}"))
    assert (done.wrote, done.reasons) == (b"evil", [Reason.AUTHORIZED])
