"""T-19, T-20: put other code at the place of a script or a library that an artifact names (tier lsm).

The daemon is stopped for the attack: it would notice, measure again and withdraw. What refuses here is the gate alone.
Every attack works outside of the scope, or it would prove nothing.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.entries import Decision
from egs_kernel.model import Reason
from tests.adversarial.arena import MS_BIND, mount, private_mounts
from tests.harness import COMMAND_SECONDS, compile_program

if TYPE_CHECKING:
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.lsm, pytest.mark.timeout(600)]

GOOD, EVIL = "#!/bin/sh\necho good\n", "#!/bin/sh\necho evil\n"


@dataclass
class Target:
    """A named file, what stands beside it, and a command that executes it or maps it."""

    path: Path
    evil: Path
    command: tuple[str, ...]
    artifact: str

    def place(self, name: str) -> Path:
        """A new folder, beside the one of the file."""
        made = self.path.parent.with_name(f"{self.path.parent.name}-{name}")
        made.mkdir()
        return made


def nothing() -> None:
    """Some attacks are over before the exec."""


Attack = Callable[[Target], Callable[[], None]]
"""Does what it can beforehand; what it returns is done by the attacker's process, before its exec."""


def write_in_place(target: Target) -> Callable[[], None]:
    target.path.write_text(EVIL)
    return nothing


def write_by_a_mapping(target: Target) -> Callable[[], None]:
    with target.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:] = EVIL.encode()
    return nothing


def set_the_times_back(target: Target) -> Callable[[], None]:
    before = target.path.stat()
    target.path.write_text(EVIL)
    os.utime(target.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return nothing


def rename_over(target: Target) -> Callable[[], None]:
    target.evil.rename(target.path)
    return nothing


def link_over(target: Target) -> Callable[[], None]:
    target.path.unlink()
    target.path.hardlink_to(target.evil)
    return nothing


def symbolic_link_over(target: Target) -> Callable[[], None]:
    target.path.unlink()
    target.path.symlink_to(target.evil)
    return nothing


def bind_over(target: Target) -> Callable[[], None]:
    def in_a_namespace() -> None:
        private_mounts()
        mount(target.evil, target.path, flags=MS_BIND)

    return in_a_namespace


def tmpfs_over(target: Target) -> Callable[[], None]:
    def in_a_namespace() -> None:
        private_mounts()
        mount("none", target.path.parent, "tmpfs")
        target.path.write_text(EVIL)
        target.path.chmod(0o755)

    return in_a_namespace


def overlay_copied_up(target: Target) -> Callable[[], None]:
    """The file itself is left alone: what is executed is the overlay's copy, changed after a copy-up."""

    def in_a_namespace() -> None:
        upper, work = target.place(f"upper-{os.getpid()}"), target.place(f"work-{os.getpid()}")
        private_mounts()
        folder = target.path.parent
        data = f"lowerdir={folder},upperdir={upper},workdir={work}"
        mount("overlay", folder, "overlay", data=data)
        target.path.write_text(EVIL)

    return in_a_namespace


ATTACKS = (
    write_in_place,
    write_by_a_mapping,
    set_the_times_back,
    rename_over,
    link_over,
    symbolic_link_over,
    bind_over,
    tmpfs_over,
    overlay_copied_up,
)


@pytest.fixture
def target(request: pytest.FixtureRequest, system: Running) -> Target:
    """A script that an artifact names, or a file that is mapped as code under one, and another file beside it."""
    kind, name = request.param, f"{request.param}-{request.node.name.replace('[', '-').rstrip(']')}"
    folder = system.folder / name
    folder.mkdir(mode=0o755)
    path, evil = folder / "code", system.folder / f"{name}.evil"
    for file, text in ((path, GOOD), (evil, EVIL)):
        file.write_text(text)
        file.chmod(0o755)
    if kind == "script":
        artifact = system.add(system.issue(path, "--argv", str(path), name=f"{name}.json"))
        return Target(path, evil, (str(path),), artifact)
    program = compile_program("get_code", system.folder)
    program = program.rename(system.folder / f"{name}.program")
    artifact = system.add(system.issue(program, "--library", str(path), name=f"{name}.json"))
    return Target(path, evil, (str(program), f"map:{path}"), artifact)


def execute(
    system: Running, target: Target, prepare: Callable[[], None] = nothing, *, governed: bool = True
) -> str:
    """What the command said; nothing when it was refused."""

    def go() -> None:
        if governed:
            system.instance.cgroup.enter()
        try:
            prepare()
        except BaseException:  # subprocess tells that something went wrong, and not what
            traceback.print_exc(file=sys.__stderr__)
            raise

    try:
        done = subprocess.run(
            target.command,
            preexec_fn=go,
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
    except PermissionError:
        return ""
    return done.stdout.strip()


@pytest.mark.parametrize("target", ["script", "library"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_other_code_at_the_place_of_named_code(system: Running, target: Target, attack: Attack) -> None:
    assert execute(system, target) in ("good", "got it")
    with system.paused():
        prepare = attack(target)
        assert execute(system, target, prepare) in ("", "refused")
        assert execute(system, target, prepare, governed=False) in ("evil", "got it")


@pytest.mark.parametrize("target", ["script", "library"], indirect=True)
def test_code_that_is_open_for_writing_is_not_measured(system: Running, target: Target) -> None:
    """A descriptor from before the measurement could write at any time after it."""
    with target.path.open("r+") as old:
        system.instance.egs("reload")
        system.wait_for(Decision, lambda entry: _refuses(entry, target.artifact))
        with system.paused():
            old.write(EVIL)
            old.close()  # a script that is open for writing is not executed anywhere
            assert execute(system, target) in ("", "refused")
            assert execute(system, target, governed=False) in ("evil", "got it")


def _refuses(entry: Decision, artifact: str) -> bool:
    return entry.artifact_id == artifact and entry.reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("target", ["script"], indirect=True)
def test_a_named_script_by_another_name(system: Running, target: Target) -> None:
    """The same file, and other arguments for its interpreter: the path is one of them."""
    other = target.path.with_name("other")
    other.hardlink_to(target.path)
    renamed = replace(target, path=other, command=(str(other),))
    assert execute(system, renamed, governed=False) == "good"
    assert execute(system, renamed) == ""
