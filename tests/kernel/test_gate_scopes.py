"""The scope follows the process, not only its place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.model import ExecEvent, GateEvent, Reason
from tests.harness import PATIENCE, fork_and_be_the_child
from tests.refusals import DENIED, REFUSED, run

if TYPE_CHECKING:
    from egs_kernel.gate.pins import Gate
    from tests.harness import Instance

pytestmark = pytest.mark.kernel

SECONDS: Final = 30 * PATIENCE
NOBODY: Final = 65534


def end_of(*prepare: Callable[[], Any], command: tuple[str, ...] = ("/bin/true",), **options: Any) -> int:
    """How a process ends that does these things and then executes."""

    def do_all() -> None:
        for step in prepare:
            step()

    return int(run(command, do_all, timeout=SECONDS, **options).returncode)


def leave(instance: Instance) -> None:
    (cgroup_mount() / "cgroup.procs").write_text("0\n")
    assert Path("/proc/self/cgroup").read_text().endswith("0::/\n")


def test_outside_every_scope(gate: Gate) -> None:
    assert end_of() == 0
    assert gate.counters().decisions == {}
    assert gate.governed() == []


def test_inside(gate: Gate, instance: Instance) -> None:
    assert end_of(instance.cgroup.enter) == REFUSED.code


def test_in_a_child_cgroup(gate: Gate, instance: Instance) -> None:
    assert end_of(instance.cgroup.child("a").child("b").enter) == REFUSED.code


def test_in_a_child_cgroup_of_any_depth(gate: Gate, instance: Instance) -> None:
    place = instance.cgroup
    for _ in range(80):
        place = place.child("d")
    assert end_of(place.enter) == REFUSED.code


def test_after_moving_to_a_child_cgroup(gate: Gate, instance: Instance) -> None:
    child = instance.cgroup.child("child")
    assert end_of(instance.cgroup.enter, child.enter) == REFUSED.code


def test_after_leaving_the_cgroup(gate: Gate, instance: Instance) -> None:
    assert end_of(instance.cgroup.enter, lambda: leave(instance)) == REFUSED.code


def test_a_child_that_leaves_the_cgroup(gate: Gate, instance: Instance) -> None:
    steps = (instance.cgroup.enter, fork_and_be_the_child, lambda: leave(instance))
    assert end_of(*steps) == REFUSED.code


def test_a_child_of_a_process_that_left(gate: Gate, instance: Instance) -> None:
    steps = (instance.cgroup.enter, lambda: leave(instance), fork_and_be_the_child)
    assert end_of(*steps) == REFUSED.code


def test_a_daemonized_grandchild_with_another_parent(gate: Gate, instance: Instance, tmp_path: Path) -> None:
    """fork, setsid, fork, leave the cgroup, wait for the new parent, execute."""
    read, write = os.pipe()

    def daemonize() -> None:
        instance.cgroup.enter()
        if os.fork():
            os._exit(0)
        os.setsid()
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        leave(instance)
        os.close(read)
        while os.getppid() == parent:
            os.sched_yield()
        os.dup2(write, 1)

    assert end_of(daemonize, command=("/bin/echo", "ran"), pass_fds=(write,)) == 0
    os.close(write)
    assert os.read(read, 10) == b""
    os.close(read)
    assert [event.reason for event in executed(gate)] == [Reason.NO_GRANT]


def test_born_into_the_cgroup(gate: Gate, instance: Instance) -> None:
    """clone3 with CLONE_INTO_CGROUP: no move ever happens."""
    done = subprocess.run(
        [sys.executable, "-c", _CLONE_INTO_CGROUP, str(instance.cgroup.folder), str(DENIED)],
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == REFUSED.code & 0xFF
    assert [event.reason for event in executed(gate)] == [Reason.NO_GRANT]


_CLONE_INTO_CGROUP: Final = """
import ctypes, os, signal, struct, sys
CLONE_INTO_CGROUP, SYS_clone3 = 0x200000000, 435
folder = os.open(sys.argv[1], os.O_PATH)
arguments = ctypes.create_string_buffer(struct.pack("11Q", CLONE_INTO_CGROUP, 0, 0, 0, 17, 0, 0, 0, 0, 0, folder))
libc = ctypes.CDLL(None, use_errno=True)
child = libc.syscall(SYS_clone3, arguments, 88)
assert child >= 0, os.strerror(ctypes.get_errno())
if child == 0:
    try:
        os.execv("/bin/true", ["true"])
    except PermissionError:
        os._exit(int(sys.argv[2]))
_, status = os.waitpid(child, 0)
os._exit((-os.WTERMSIG(status)) & 0xFF if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
"""


def test_a_process_that_was_inside_before_the_gate(instance: Instance) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            instance.cgroup.enter()
            os.write(write, b"1")
            signal.pause()
        finally:
            os._exit(1)
    instance.reap_also(child)
    assert os.read(read, 1) == b"1"
    gate = instance.load_gate()
    try:
        assert {task.pid for task in gate.governed()} == {child}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert gate.governed() == []
        gate.close()
        os.close(read)
        os.close(write)


def test_a_removed_and_recreated_cgroup(gate: Gate, instance: Instance) -> None:
    before = instance.cgroup.id
    instance.cgroup.folder.rmdir()
    instance.cgroup.folder.mkdir()
    assert instance.cgroup.id != before
    assert end_of(instance.cgroup.enter) == REFUSED.code


def test_the_first_scope_stays(instance: Instance) -> None:
    """Nobody gets out of an enforced scope by entering one that only observes."""
    lax = instance.cgroup.folder.with_name(f"{instance.cgroup.folder.name}-lax")
    try:
        lax.mkdir()
        more = f'[[scope]]\nname = "lax"\ncgroup = "/{lax.name}"\nmode = "observe"\n'
        instance.configure(more=more)
        gate = instance.load_gate()
        gate.beat()
        enter_lax = (lax / "cgroup.procs").write_text
        assert end_of(lambda: enter_lax("0\n")) == 0
        assert end_of(instance.cgroup.enter, lambda: enter_lax("0\n")) == REFUSED.code
        gate.close()
    finally:
        lax.rmdir()


def test_root_is_denied_like_anyone_and_so_is_nobody(gate: Gate, instance: Instance) -> None:
    drop = lambda: os.setresuid(NOBODY, NOBODY, NOBODY)  # noqa: E731 - two one-liners side by side
    assert end_of(instance.cgroup.enter) == REFUSED.code
    assert end_of(instance.cgroup.enter, drop) == REFUSED.code


def test_a_scope_of_a_user(instance: Instance) -> None:
    user = 54321
    instance.configure(more=f'[[scope]]\nname = "user"\nusers = ["{user}"]\n')
    gate = instance.load_gate()
    gate.beat()
    assert end_of(lambda: os.setresuid(user, user, user)) == REFUSED.code
    assert end_of(lambda: os.setresuid(user, 0, 0)) == REFUSED.code
    assert end_of(lambda: os.setresuid(0, user, 0)) == REFUSED.code
    assert end_of(lambda: os.setresuid(user + 1, user + 1, user + 1)) == 0
    assert {event.scope for event in executed(gate)} == {"user"}
    gate.close()


def test_a_scope_of_a_binary_and_its_children(instance: Instance, tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shutil.copy("/bin/dash", shell)
    instance.configure(more=f'[[scope]]\nname = "shell"\nbinaries = ["{shell}"]\nmode = "observe"\n')
    gate = instance.load_gate()
    gate.beat()
    assert end_of(command=(str(shell), "-c", "/bin/true; exec /bin/false")) == 1
    assert [(event.scope, Path(event.filename).name) for event in executed(gate)] == [
        ("shell", "shell"),
        ("shell", "true"),
        ("shell", "false"),
    ]
    gate.close()


def test_a_governed_binary_that_is_replaced_linked_or_renamed(instance: Instance, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    instance.configure(more=f'[[scope]]\nname = "program"\nbinaries = ["{program}"]\n')
    gate = instance.load_gate()
    gate.beat()
    other = tmp_path / "other"
    shutil.copy("/bin/true", other)
    assert end_of(command=(str(other),)) == 0
    link = tmp_path / "link"
    link.hardlink_to(program)
    assert end_of(command=(str(link),)) == REFUSED.code
    program.rename(tmp_path / "renamed")
    assert end_of(command=(str(tmp_path / "renamed"),)) == REFUSED.code
    other.rename(program)
    assert end_of(command=(str(program),)) == REFUSED.code
    gate.close()


def test_a_scope_that_the_configuration_drops(gate: Gate, instance: Instance) -> None:
    config = instance.paths.config.read_text()
    instance.paths.config.write_text(config[: config.index("[[scope]]")])
    instance.egs("gate", "load")
    assert end_of(instance.cgroup.enter) == 0
    assert gate.governed() == []


def executed(gate: Gate) -> list[ExecEvent]:
    events: list[GateEvent] = []
    gate.drain(events.append)
    return [event for event in events if isinstance(event, ExecEvent)]
