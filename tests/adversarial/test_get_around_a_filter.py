"""Attacker's goal: make a call that the artifact refuses, or be refused without anybody learning of it.

Claim T-27 and the open point O-19 of docs/threat-model.md.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec, Outcome, Refusal
from tests.harness import BIN
from tests.worker import INT80, SIGSYS, add_worker, run, said

if TYPE_CHECKING:
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

DEFAULT: Final = '[syscalls]\nprofile = "default"\n'
NO_NETWORK: Final = '[syscalls]\nprofile = "no-network"\n'
CHROOT: Final = "told(lambda: os.chroot('/'))"
OWN_FILTER: Final = """
class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]
def add_filter(refused, answer):
    SYS_seccomp = 317 if os.uname().machine == "x86_64" else 277
    code = (Instruction * 4)((0x20, 0, 0, 0), (0x15, 0, 1, refused), (0x06, 0, 0, answer), (0x06, 0, 0, 0x7FFF0000))
    if libc.syscall(SYS_seccomp, 1, 0, ctypes.byref(Program(4, code))) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
SYS_chroot = 161 if os.uname().machine == "x86_64" else 51
"""
WAYS: Final = {
    "from a thread": "t = threading.Thread(target=lambda: told(lambda: os.chroot('/'))); t.start(); t.join()",
    "from a child": "told(lambda: os.waitpid(p, 0)[1] if (p := os.fork()) else os._exit(leave()))",
    "with a filter of its own that allows everything": f"{OWN_FILTER}\nadd_filter(9999, 0x7FFF0000)\n{CHROOT}",
    "asking itself whether it may": f"{OWN_FILTER}\nadd_filter(SYS_chroot, 0x7FFC0000)\n{CHROOT}",
    "as a 64-bit number with other upper bits": (
        "SYS_chroot = 161 if os.uname().machine == 'x86_64' else 51\n"
        "told(lambda: 'EPERM' if libc.syscall(ctypes.c_long(1 << 32 | SYS_chroot), b'/') < 0 else None)"
    ),
}
LEAVE: Final = """
def leave():
    try:
        os.chroot("/")
    except PermissionError:
        return 1
    return 0
"""


@pytest.fixture(scope="module", autouse=True)
def worker(system: Running) -> None:
    """The attacker."""
    add_worker(system)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_call_another_way(system: Running, way: str) -> None:
    source = LEAVE + WAYS[way]
    assert said(system, "", source)[-1] in ("None", "0")
    assert said(system, DEFAULT, source)[-1] in ("EPERM", "256")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has other conventions")
def test_the_same_call_by_another_convention_of_the_processor(system: Running) -> None:
    """By i386's gate, and with x32's bit in its number; and what i386 names alone where i386 is allowed."""
    chroot, socketcall = INT80.replace("NUMBER", "61"), INT80.replace("NUMBER", "102")
    x32 = "told(lambda: libc.syscall(ctypes.c_long(0x40000000 | 161), b'/'))"
    assert run(system, DEFAULT, chroot).returncode == SIGSYS
    assert run(system, DEFAULT, x32).returncode == SIGSYS
    with_i386 = f'{NO_NETWORK}architectures = ["i386"]\n'
    assert run(system, with_i386, chroot).stdout.strip() in ("-1", "")  # EPERM; a kernel without i386 kills
    assert run(system, with_i386, socketcall).stdout.strip() in ("-1", "")
    assert run(system, with_i386, x32).returncode == SIGSYS


def test_a_program_that_it_starts(system: Running) -> None:
    """One that has an artifact of its own, without any constraint: the filter is inherited all the same."""
    tool = system.copy("/usr/sbin/chroot", "tool")
    system.add(system.issue(tool, name="tool.json"))
    source = f"import subprocess; print(subprocess.run([{str(tool)!r}, '/', '/nonexistent']).returncode)"
    free, constrained = run(system, "", source), run(system, DEFAULT, source)
    assert "No such file" in free.stderr or "failed to run" in free.stderr
    assert "not permitted" in constrained.stderr


def refusals_of(system: Running, source: str) -> list[str]:
    """What the record says that a program was refused, when it has ended."""
    pid, *_, last = said(system, DEFAULT, f"print(os.getpid())\n{source}")
    assert last == "EPERM"
    execution = system.wait_for(Exec, lambda entry: entry.event.pid == int(pid)).event.execution
    system.wait_for(Outcome, lambda entry: entry.event.execution == execution)
    # The refusal of another program comes after whatever this one's is.
    assert said(system, DEFAULT, "told(lambda: 'EPERM' if libc.unshare(0) < 0 else None)")[-1] == "EPERM"
    system.wait_for(Refusal, lambda entry: entry.what == "unshare" and entry.execution > execution)
    return [entry.what for entry in system.entries(Refusal) if entry.execution == execution]


def test_o19_who_refuses_itself_first_is_not_seen(system: Running) -> None:
    assert refusals_of(system, CHROOT) == ["chroot"]
    silent = f"{OWN_FILTER}\nadd_filter(SYS_chroot, 0x00050001)\n{CHROOT}"
    assert refusals_of(system, silent) == []


def test_being_refused_without_end_keeps_nobody_else_waiting(system: Running) -> None:
    """Two processes do nothing else, and the kernel tells of each time; others are launched meanwhile."""
    worker = str(system.folder / "worker")
    artifact = system.folder / "endless.json"
    constraints = system.folder / "endless.toml"
    constraints.write_text('[syscalls]\nprofile = "default"\n')
    system.issue(Path(worker), "--constraints", str(constraints), name=artifact.name)
    endless = "import os\nwhile True:\n    try: os.chroot('/')\n    except OSError: pass"
    command = [str(BIN / "egs"), "run", "--artifact", str(artifact), "--", worker, "-I", "-c", endless]
    before = launch_seconds(system)
    attackers = [subprocess.Popen(command, env=system.instance.environment) for _ in range(2)]
    try:
        for attacker in attackers:
            system.instance.reap_also(attacker.pid)
            system.wait_for(Refusal, lambda entry, pid=attacker.pid: entry.pid == pid)  # type: ignore[misc]
        during = launch_seconds(system)
        assert json.loads(system.instance.egs("status", "--json").stdout)["heartbeat_age"] < 3
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
    assert during < 20 * before + 1


def launch_seconds(system: Running) -> float:
    """How long a launch takes: the quickest of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert said(system, "", "pass") == []
        times.append(time.perf_counter() - started)
    return min(times)
