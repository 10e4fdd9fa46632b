"""Attacker's goal: run a program in the scope that no artifact authorizes.

Claim T-1 of docs/threat-model.md.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.model import Reason, Tier
from tests.adversarial.arena import (
    CLONE_NEWPID,
    CLONE_NEWUSER,
    EVIDENCE,
    MS_BIND,
    NOBODY,
    Arena,
    execute,
    execveat,
    libc,
    memfd_of,
    mount,
    private_mounts,
    spawn,
    unshare,
)
from tests.harness import fork_and_be_the_child
from tests.refusals import TIER

pytestmark = pytest.mark.kernel

PTRACE_TRACEME: Final = 0
PTRACE_CONT: Final = 7


def itself(evil: Path, _folder: Path) -> None:
    execute(evil)


def a_copy(evil: Path, folder: Path) -> None:
    shutil.copy(evil, folder / "copy")
    execute(folder / "copy")


def renamed(evil: Path, folder: Path) -> None:
    evil.rename(folder / "renamed")
    execute(folder / "renamed")


def a_hard_link(evil: Path, folder: Path) -> None:
    (folder / "link").hardlink_to(evil)
    execute(folder / "link")


def a_symbolic_link(evil: Path, folder: Path) -> None:
    (folder / "symlink").symlink_to(evil)
    execute(folder / "symlink")


def bind_mounted_over_a_system_program(evil: Path, _folder: Path) -> None:
    private_mounts()
    mount(evil, "/bin/true", flags=MS_BIND)
    execute("/bin/true")


def from_a_memfd(evil: Path, _folder: Path) -> None:
    execute(memfd_of(evil), "memfd")


def by_its_descriptor(evil: Path, _folder: Path) -> None:
    execute(f"/proc/self/fd/{os.open(evil, os.O_RDONLY)}")


def after_it_was_deleted(evil: Path, _folder: Path) -> None:
    descriptor = os.open(evil, os.O_RDONLY)
    evil.unlink()
    execute(f"/proc/self/fd/{descriptor}")


def by_execveat(evil: Path, _folder: Path) -> None:
    execveat(os.open(evil.parent, os.O_PATH), evil.name)


def as_a_scripts_interpreter(evil: Path, folder: Path) -> None:
    script = folder / "script"
    script.write_text(f"#!{evil}\n")
    script.chmod(0o755)
    execute(script)


def in_a_chroot(evil: Path, folder: Path) -> None:
    shutil.copy(evil, folder / "init")
    os.chroot(folder)
    execute("/init")


def in_a_user_namespace(evil: Path, _folder: Path) -> None:
    os.setresuid(NOBODY, NOBODY, NOBODY)
    unshare(CLONE_NEWUSER)
    execute(evil)


def as_init_of_a_pid_namespace(evil: Path, _folder: Path) -> None:
    """SIGKILL does not end an init from inside of its namespace; the gate's comes from the kernel."""
    unshare(CLONE_NEWPID)
    fork_and_be_the_child()
    execute(evil)


def traced_by_its_parent(evil: Path, _folder: Path) -> None:
    """The parent has it go on at every stop, the one after its exec included."""
    child = os.fork()
    if child == 0:
        assert libc.ptrace(PTRACE_TRACEME, 0, None, None) == 0
        execute(evil)
    while os.WIFSTOPPED(os.waitpid(child, 0)[1]):
        libc.ptrace(PTRACE_CONT, child, None, None)


def from_a_thread(evil: Path, _folder: Path) -> None:
    thread = threading.Thread(target=execute, args=(evil,))
    thread.start()
    thread.join()


def as_set_user_id(evil: Path, _folder: Path) -> None:
    evil.chmod(0o4755)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    execute(evil)


def by_posix_spawn(evil: Path, _folder: Path) -> None:
    spawn(evil)


def with_another_name_in_argv(evil: Path, _folder: Path) -> None:
    execute(evil, "/bin/true")


def with_a_changed_process_name(evil: Path, _folder: Path) -> None:
    libc.prctl(15, ctypes.c_char_p(b"egsd"), 0, 0, 0)  # PR_SET_NAME
    execute(evil)


WAYS: Final = (
    itself,
    a_copy,
    renamed,
    a_hard_link,
    a_symbolic_link,
    bind_mounted_over_a_system_program,
    from_a_memfd,
    by_its_descriptor,
    after_it_was_deleted,
    by_execveat,
    as_a_scripts_interpreter,
    in_a_chroot,
    in_a_user_namespace,
    as_init_of_a_pid_namespace,
    traced_by_its_parent,
    from_a_thread,
    as_set_user_id,
    by_posix_spawn,
    with_another_name_in_argv,
    with_a_changed_process_name,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_unauthorized_program_never_runs(
    arena: Arena, place: Path, way: Callable[[Path, Path], None]
) -> None:
    """`good` is authorized meanwhile, and `evil` is not."""
    arena.permit(arena.good)
    outside, inside = new_folder(place / "outside"), new_folder(place / "inside")
    control = arena.fresh(arena.evil, outside)
    evil = arena.fresh(arena.evil, inside)

    assert arena.attempt(lambda: way(control, outside), governed=False).wrote == b"evil"

    done = arena.attempt(lambda: way(evil, inside))

    assert done.wrote == b""
    assert done.reasons == [Reason.NO_GRANT]


def test_the_same_ways_are_open_to_an_authorized_program(arena: Arena) -> None:
    """The other half of the control: a grant, and nothing else, makes the difference inside the scope."""
    arena.permit(arena.good)
    done = arena.attempt(lambda: execute(arena.good))
    assert (done.wrote, done.reasons) == (b"good", [Reason.AUTHORIZED])


def test_a_script_of_an_authorized_interpreter(arena: Arena, place: Path) -> None:
    """The kernel executes the interpreter, with the script's path among arguments that nobody authorized.

    On the tier lsm the gate sees the script itself, which the artifact names or not.
    """
    shell = arena.fresh(Path("/bin/dash"), new_folder(place / "folder"))
    allowed, evil = place / "folder/allowed", place / "folder/evil"
    for script, word in ((allowed, "good"), (evil, "evil")):
        script.write_text(f"#!{shell}\nprintf {word} >&{EVIDENCE}\n")
        script.chmod(0o755)
    arena.permit(shell, str(shell), str(allowed), subjects=(arena.measurement(allowed),))

    assert arena.attempt(lambda: execute(evil), governed=False).wrote == b"evil"
    assert arena.attempt(lambda: execute(allowed)).wrote == b"good"

    done = arena.attempt(lambda: execute(evil))

    reason = Reason.SCRIPT_UNAUTHORIZED if TIER is Tier.LSM else Reason.ARGV_MISMATCH
    assert (done.wrote, done.reasons) == (b"", [reason])


def test_by_the_dynamic_loader(arena: Arena, place: Path) -> None:
    """`ld.so PROGRAM` executes ld.so: the authorization of PROGRAM does not cover it."""
    program = arena.fresh(Path("/bin/echo"), new_folder(place / "folder"))
    loader = interpreter_of(program)
    arena.permit(program)

    def directly() -> None:
        os.dup2(EVIDENCE, 1)
        execute(program, "echo", "evil")

    def by_the_loader() -> None:
        os.dup2(EVIDENCE, 1)
        execute(loader, "ld.so", str(program), "evil")

    assert arena.attempt(directly).wrote == b"evil\n"
    assert arena.attempt(by_the_loader, governed=False).wrote == b"evil\n"

    done = arena.attempt(by_the_loader)

    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])


def interpreter_of(program: Path) -> str:
    headers = subprocess.run(
        ["readelf", "-l", str(program)], capture_output=True, text=True, check=True
    ).stdout
    return headers.split("interpreter: ")[1].split("]")[0]


def new_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o755, exist_ok=True)
    return folder
