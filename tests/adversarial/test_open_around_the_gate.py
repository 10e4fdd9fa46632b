"""Open, if not said otherwise on both tiers: who helps from outside of the scope, and what root can do to the gate itself.

Points O-5 to O-10 of docs/threat-model.md. Each test shows that the attack works. One that fails is good news: then
the point moves from "open" to a claim.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path

import pytest

from egs_kernel.errors import GateError
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.cgroups import move
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Reason, Tier
from tests.adversarial.arena import (
    EVIDENCE,
    SECONDS,
    Arena,
    execute,
    mount,
    private_mounts,
)
from tests.harness import Instance
from tests.refusals import KILLED, REFUSED, TIER

pytestmark = pytest.mark.kernel


@pytest.fixture
def own_arena(instance: Instance, place: Path) -> Arena:
    """An arena of its own: its gate does not survive."""
    return Arena.build(place, instance)


def test_o5_somebody_outside_executes_it(arena: Arena) -> None:
    """A service outside of the scope that starts programs for others: cron, a container daemon, sshd, a shell."""
    asked, asking = os.pipe()

    def governed() -> None:
        os.write(asking, b"please")

    def service() -> None:
        child = os.fork()
        if child == 0:
            arena.cgroup.enter()
            governed()
            os._exit(0)
        assert os.read(asked, 6) == b"please"
        os.waitpid(child, 0)
        execute(arena.evil)

    done = arena.attempt(service, governed=False)
    os.close(asked)
    os.close(asking)

    assert (done.wrote, done.reasons) == (b"evil", [])


def test_o6_the_kernel_executes_it(arena: Arena, place: Path) -> None:
    """Helpers that the kernel starts for root (core_pattern, release_agent, modprobe) are nobody's children."""
    if "cgroup" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("this kernel has no cgroup v1, whose release_agent is the helper of this test")
    fifo, agent, mounted = place / "fifo", place / "agent", place / "mounted"
    os.mkfifo(fifo)
    mounted.mkdir()
    agent.write_text(f"#!/bin/sh\nprintf evil > {fifo}\n")
    agent.chmod(0o755)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def attack() -> None:
        private_mounts()
        name = f"egs{os.getpid()}"
        mount(name, mounted, "cgroup", data=f"none,name={name}")
        (mounted / "release_agent").write_text(str(agent))
        (mounted / "child").mkdir()
        (mounted / "child/notify_on_release").write_text("1")
        (mounted / "child/cgroup.procs").write_text("0\n")
        (mounted / "cgroup.procs").write_text("0\n")
        (mounted / "child").rmdir()

    done = arena.attempt(attack)

    poll = select.poll()
    poll.register(reading, select.POLLIN)
    assert poll.poll(SECONDS * 1000)
    said = os.read(reading, 10)
    os.close(reading)
    assert (said, done.reasons) == (b"evil", [])


def test_o7_who_is_moved_in_goes_on_with_what_it_runs(arena: Arena) -> None:
    """The scope governs what is executed from then on, not the image that a process already has."""

    def move_it_in() -> None:
        asked, asking = os.pipe()
        answered, answering = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(asked, 8)
            os.dup2(answering, EVIDENCE)
            os.close(asking)
            execute(arena.good_waits)
        os.close(asked)
        os.write(asking, b"1")
        assert os.read(answered, 4) == b"good", "it runs"
        move(child, arena.cgroup.folder)
        assert arena.gate.scope_of(child) == "test"
        os.write(asking, b"1")
        os.write(EVIDENCE, os.read(answered, 4))
        os.close(asking)
        os.waitpid(child, 0)

    done = arena.attempt(move_it_in, governed=False)

    assert (done.wrote, done.reasons) == (b"good", [])


def test_o8_root_detaches_the_gate(own_arena: Arena) -> None:
    """Inside of the scope or outside. The daemon notices within a second and authorizes nothing more."""
    arena = own_arena
    pins = arena.instance.paths.pins

    def attack() -> None:
        for link in pins.glob("link_*_exec"):  # on the tier lsm there are two
            link.unlink()
        arena.gate.close()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:  # the kernel lets go of the program a little later
            child = os.fork()
            if child == 0:
                execute(arena.evil)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != REFUSED.code:
                return

    assert arena.attempt(lambda: execute(arena.evil)).wrote == b""
    assert arena.attempt(attack).wrote == b"evil"
    arena.gate.close()
    with pytest.raises(GateError, match=r"gate_exec.* detached"):
        Gate.open(pins)


def test_o8_root_writes_the_gate_s_maps(own_arena: Arena) -> None:
    """A grant that no verifier made."""
    arena = own_arena

    def attack() -> None:
        forged = Gate.open(arena.instance.paths.pins)
        descriptor = os.open(arena.evil, os.O_PATH)
        grant = arena.grant(arena.good)
        assert grant.file != forged.identify(descriptor)
        arena.permit(arena.evil)
        execute(arena.evil)

    done = arena.attempt(attack)
    assert (done.wrote, done.reasons) == (b"evil", [Reason.AUTHORIZED])
    arena.gate.close()


def test_o9_a_refused_exec_has_happened(arena: Arena) -> None:
    """No EPERM: whoever executes something unauthorized dies, with everything that it had not written yet.

    Closed on the tier lsm.
    """

    def attack() -> None:
        try:
            os.execv(arena.evil, ["evil"])
        except PermissionError:
            os.write(EVIDENCE, b"an error was returned")

    done = arena.attempt(attack)

    expected = (b"an error was returned", 0) if TIER is Tier.LSM else (b"", KILLED.code)
    assert (done.wrote, done.code) == expected


def test_o10_a_process_that_could_not_be_tracked_and_left(own_arena: Arena) -> None:
    """When the table of processes is full they are found by their cgroup: not when they are elsewhere by then."""
    arena = own_arena
    tasks = libbpf.Map(libbpf.open_pin(arena.instance.paths.pins / "tasks"), ctypes.c_uint32, abi.Task)
    for number in range(abi.TASKS):
        tasks.put(ctypes.c_uint32(2**31 + number), abi.Task())

    def attack() -> None:
        root = arena.cgroup.folder.parent / "cgroup.procs"
        root.write_text("0\n")
        execute(arena.evil)

    done = arena.attempt(attack)
    os.close(tasks.descriptor)
    assert (done.wrote, done.reasons) == (b"evil", [])
    arena.gate.close()
