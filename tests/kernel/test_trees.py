"""The cgroup of one execution, made with a controller that this host has, whichever."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_mount, move
from egs_kernel.gate.trees import Note, is_populated, kill_tree, make_tree, remove_tree, trees_below
from egs_kernel.model import Reason
from tests.harness import COMMAND_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

NOTE: Final = Note(launch="1234", scope="test", artifact_id="ab" * 32, until=5)
LIMITS: Final = {
    "pids": ("pids.max", "8"),
    "memory": ("memory.max", "67108864"),
    "hugetlb": ("hugetlb.2MB.max", "0"),
}
SUBTREE: Final = "cgroup.subtree_control"


@pytest.fixture
def parent() -> Iterator[Path]:
    """A scope's cgroup. What is passed on to it is afterwards as it was."""
    mount = cgroup_mount()
    before = set((mount / SUBTREE).read_text().split())
    folder = mount / f"egs-test-trees-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for below in folder.iterdir():
            if below.is_dir():
                kill_tree(below)
                remove_tree(below)
        folder.rmdir()
        for name in set((mount / SUBTREE).read_text().split()) - before:
            with suppress(OSError):  # another one's by now
                (mount / SUBTREE).write_text(f"-{name}")


@pytest.fixture
def limit() -> tuple[str, str]:
    """A file, and what goes into it."""
    present = (cgroup_mount() / "cgroup.controllers").read_text().split()
    found = next((LIMITS[name] for name in LIMITS if name in present), None)
    if found is None:
        pytest.skip("this host has no cgroup v2 controller that could be tried")
    return found


def made(parent: Path, controls: dict[str, str]) -> Path:
    return make_tree(cgroup_mount(), f"/{parent.name}", NOTE, controls)


def test_it_is_limited_known_again_and_ends_as_a_whole(parent: Path, limit: tuple[str, str]) -> None:
    name, value = limit
    tree = made(parent, {name: value})
    assert (tree / name).read_text().strip() == value
    assert list(trees_below(parent)) == [(tree, NOTE)]
    with subprocess.Popen(["sleep", "60"]) as process:
        inner = tree / "made-by-the-program"
        inner.mkdir()
        move(process.pid, inner)
        assert is_populated(tree)
        kill_tree(tree)
        assert process.wait(COMMAND_SECONDS) == -9
    assert remove_tree(tree)
    assert list(trees_below(parent)) == []


def test_a_scope_with_processes_of_its_own_cannot_limit(parent: Path, limit: tuple[str, str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        move(process.pid, parent)
        made(parent, {})  # without controllers it can be
        remove_tree(next(trees_below(parent))[0])
        with pytest.raises(Refused) as caught:
            made(parent, dict([limit]))
        process.kill()
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert "slice" in caught.value.next_step
    assert list(trees_below(parent)) == []


def test_a_limit_that_the_kernel_does_not_take(parent: Path, limit: tuple[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        made(parent, {limit[0]: "no number"})
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert list(trees_below(parent)) == []


def test_what_is_not_ours_is_left_alone(parent: Path) -> None:
    (parent / "egs-tree-of-somebody").mkdir()
    assert list(trees_below(parent)) == []
