"""Attacker's goal: get out of the scope first, then run what is not authorized.

Claim T-2 of docs/threat-model.md. tests/kernel/test_gate_scopes.py has more: child cgroups of any depth,
daemons, cgroups that are removed and made again, birth into the scope.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.model import Reason
from tests.adversarial.arena import (
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_PARENT,
    NOBODY,
    Arena,
    clone,
    execute,
    mount,
    private_mounts,
    unshare,
)
from tests.harness import Cgroup, fork_and_be_the_child

pytestmark = pytest.mark.kernel


def place_of_this_process() -> str:
    content = Path("/proc/self/cgroup").read_text()
    return next(line.removeprefix("0::") for line in content.splitlines() if line.startswith("0::"))


def to_the_root_cgroup() -> None:
    (cgroup_mount() / "cgroup.procs").write_text("0\n")
    assert place_of_this_process() == "/"


def in_a_new_cgroup_namespace() -> None:
    """The scope's cgroup looks like the root of the tree from in there."""
    unshare(CLONE_NEWCGROUP)
    assert place_of_this_process() == "/"


def by_a_cgroup_mount_of_its_own() -> None:
    private_mounts()
    mount("none", "/mnt", "cgroup2")
    Path("/mnt/cgroup.procs").write_text("0\n")
    assert place_of_this_process() == "/"


def by_double_fork_and_a_new_session() -> None:
    """Its ancestors are gone, its session and group are its own, its parent is init."""
    fork_and_go_on()
    os.setsid()
    fork_and_go_on()
    parent = os.getppid()
    to_the_root_cgroup()
    while os.getppid() == parent and parent != 1:
        os.sched_yield()


def fork_and_go_on() -> None:
    if os.fork():
        os._exit(0)


def by_another_user() -> None:
    to_the_root_cgroup()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def by_a_user_and_pid_namespace() -> None:
    to_the_root_cgroup()
    unshare(CLONE_NEWUSER | CLONE_NEWPID)
    fork_and_be_the_child()
    assert os.getpid() == 1


def as_its_parents_sibling() -> None:
    """CLONE_PARENT: the new process is a child of the attacker's parent."""
    fork_and_be_the_child()
    to_the_root_cgroup()
    if clone(CLONE_PARENT, exit_signal=0):
        os._exit(0)


def by_a_thread_that_leaves() -> None:
    thread = threading.Thread(target=to_the_root_cgroup)
    thread.start()
    thread.join()


WAYS: Final = (
    to_the_root_cgroup,
    in_a_new_cgroup_namespace,
    by_a_cgroup_mount_of_its_own,
    by_double_fork_and_a_new_session,
    by_another_user,
    by_a_user_and_pid_namespace,
    as_its_parents_sibling,
    by_a_thread_that_leaves,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whoever_was_inside_stays_governed(arena: Arena, way: Callable[[], None]) -> None:
    def attack() -> None:
        way()
        execute(arena.evil)

    assert arena.attempt(attack, governed=False).wrote == b"evil"

    done = arena.attempt(attack)

    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])


@contextmanager
def sibling(arena: Arena) -> Iterator[Cgroup]:
    """A cgroup beside the scope's, which nobody governs."""
    folder = arena.cgroup.folder.with_name(f"{arena.cgroup.folder.name}-sibling")
    folder.mkdir()
    try:
        yield Cgroup(f"/{folder.name}", folder)
    finally:
        folder.rmdir()


def test_a_child_that_is_born_outside(arena: Arena) -> None:
    """clone3 with CLONE_INTO_CGROUP: it never was in the scope's cgroup."""
    with sibling(arena) as outside:

        def attack() -> None:
            if clone(CLONE_INTO_CGROUP, cgroup=os.open(outside.folder, os.O_PATH)) == 0:
                assert place_of_this_process() == outside.path
                execute(arena.evil)
            os.wait()

        assert arena.attempt(attack, governed=False).wrote == b"evil"
        done = arena.attempt(attack)
    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])


def test_an_accomplice_outside_moves_it_out(arena: Arena) -> None:
    """Somebody else, with the right to do so, takes the process out of the scope's cgroup."""
    with sibling(arena) as outside:
        asked, asking = os.pipe()
        accomplice = os.fork()
        if accomplice == 0:
            os.close(asking)
            while pid := os.read(asked, 4):
                move(int.from_bytes(pid), outside.folder)
                os.kill(int.from_bytes(pid), signal.SIGUSR1)
            os._exit(0)
        os.close(asked)

        def attack() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            os.write(asking, os.getpid().to_bytes(4))
            signal.sigwait([signal.SIGUSR1])
            assert place_of_this_process() == outside.path
            execute(arena.evil)

        control, done = arena.attempt(attack, governed=False), arena.attempt(attack)
        os.close(asking)
        os.waitpid(accomplice, 0)
    assert control.wrote == b"evil"
    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])


def test_whoever_is_moved_in_is_governed_with_all_of_its_threads(arena: Arena) -> None:
    """And not only the thread that enters."""

    def attack() -> None:
        entered = threading.Event()

        def wait_and_execute() -> None:
            entered.wait()
            execute(arena.evil)

        other = threading.Thread(target=wait_and_execute)
        other.start()
        arena.cgroup.enter()
        entered.set()
        other.join()

    def control() -> None:
        thread = threading.Thread(target=execute, args=(arena.evil,))
        thread.start()
        thread.join()

    assert arena.attempt(control, governed=False).wrote == b"evil"

    done = arena.attempt(attack, governed=False)

    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])
