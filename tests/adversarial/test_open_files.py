"""Open, unless the kernel hashes what is executed: file systems on which a file changes without a trace that the gate could see.

Point O-11 of docs/threat-model.md. The gate notices only by the kernel's own hash (tier lsm, from Linux 6.2 on); so the daemon refuses programs on such file systems
(egs_kernel/filesystems.py), unless `trusted_filesystems` in egs.toml says otherwise. tests/unit/test_filesystems.py
has the refusal.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.errors import Refused
from egs_kernel.filesystems import require_tracked
from egs_kernel.model import Reason
from tests.adversarial.arena import Arena, execute

pytestmark = pytest.mark.kernel


def refuse(program: Path) -> None:
    descriptor = os.open(program, os.O_RDONLY)
    try:
        with pytest.raises(Refused) as caught:
            require_tracked(descriptor, str(program))
    finally:
        os.close(descriptor)
    assert caught.value.reason is Reason.FILESYSTEM_UNTRUSTED


def of_changed_content(arena: Arena) -> tuple[bytes, list[Reason]]:
    """What came of an exec of changed content, of which the inode has no trace."""
    return (b"", [Reason.DIGEST_DIFFERS]) if arena.gate.digests else (b"evil", [Reason.AUTHORIZED])


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """A folder to mount on; unmounted at the end."""
    folder = place / "mounted"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_o11_a_store_through_a_mapping_on_tmpfs(arena: Arena, mounted: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted)], check=True)
    program = arena.fresh(arena.good, mounted)
    arena.permit(program)
    with program.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == arena.good.read_bytes()
        mapped[:] = arena.evil.read_bytes()

    done = arena.attempt(lambda: execute(program))

    assert (done.wrote, done.reasons) == of_changed_content(arena)
    refuse(program)


def overlaid(arena: Arena, place: Path, mounted: Path) -> Path:
    """A good program in the lower layer of an overlay that is mounted at `mounted`."""
    for layer in ("lower", "upper", "work"):
        (place / layer).mkdir()
    below = arena.fresh(arena.good, place / "lower")
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", str(mounted)], check=True)
    return below


def test_o11_a_write_below_an_overlay(arena: Arena, place: Path, mounted: Path) -> None:
    """The layer's file has a new change time; what the overlay shows of it is from when it was first looked at."""
    below = overlaid(arena, place, mounted)
    program = mounted / below.name
    arena.permit(program)
    assert arena.attempt(lambda: execute(program)).wrote == b"good"
    with below.open("r+b") as file:
        file.write(arena.evil.read_bytes())

    done = arena.attempt(lambda: execute(program))

    assert (done.wrote, done.reasons) == of_changed_content(arena)
    refuse(program)


def test_a_write_through_an_overlay_is_noticed(arena: Arena, place: Path, mounted: Path) -> None:
    """Copy-up: the other half, which does leave a trace."""
    program = mounted / overlaid(arena, place, mounted).name
    arena.permit(program)
    with program.open("r+b") as file:
        file.write(arena.evil.read_bytes())
    assert arena.attempt(lambda: execute(program), governed=False).wrote == b"evil"

    done = arena.attempt(lambda: execute(program))

    assert (done.wrote, done.reasons) == (b"", [Reason.FILE_CHANGED])
