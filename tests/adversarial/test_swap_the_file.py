"""Attacker's goal: have an authorized file hold another program by the time it is executed.

Claims T-3 and T-4 of docs/threat-model.md: what the gate notices by device, inode, generation, size and change
time, and what the kernel refuses by itself (ETXTBSY). What leaves no trace is in test_open_files.py.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.errors import Refused
from egs_kernel.measure import measure
from egs_kernel.model import Reason
from tests.adversarial.arena import (
    EVIDENCE,
    MS_BIND,
    Arena,
    check,
    execute,
    libc,
    memfd_of,
    mount,
    private_mounts,
    spawn,
)

pytestmark = pytest.mark.kernel

AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2
BLOCK: Final = 4096


def by_writing_into_it(program: Path, evil: Path) -> None:
    with program.open("r+b") as file:
        file.write(evil.read_bytes())


def by_writing_and_setting_its_times_back(program: Path, evil: Path) -> None:
    before = program.stat()
    by_writing_into_it(program, evil)
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_truncating_it(program: Path, evil: Path) -> None:
    program.write_bytes(evil.read_bytes())


def by_a_shared_mapping(program: Path, evil: Path) -> None:
    """Read before the store: on tmpfs that page would be writable without a trace."""
    with program.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == program.read_bytes()
        mapped[:] = evil.read_bytes()


def by_direct_io(program: Path, evil: Path) -> None:
    content = evil.read_bytes()
    whole = content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")
    with mmap.mmap(-1, len(whole)) as aligned:
        aligned[:] = whole
        descriptor = os.open(program, os.O_WRONLY | os.O_DIRECT)
        os.writev(descriptor, [aligned])
        os.ftruncate(descriptor, len(content))
        os.close(descriptor)


def by_copy_file_range(program: Path, evil: Path) -> None:
    with evil.open("rb") as source, program.open("r+b") as file:
        os.copy_file_range(source.fileno(), file.fileno(), evil.stat().st_size)


def by_renaming_over_it(program: Path, evil: Path) -> None:
    evil.rename(program)


def by_exchanging_names(program: Path, evil: Path) -> None:
    check(libc.renameat2(AT_FDCWD, bytes(program), AT_FDCWD, bytes(evil), RENAME_EXCHANGE))


def by_another_hard_link(program: Path, evil: Path) -> None:
    program.unlink()
    program.hardlink_to(evil)


def by_a_symbolic_link(program: Path, evil: Path) -> None:
    program.unlink()
    program.symlink_to(evil)


def by_a_bind_mount(program: Path, evil: Path) -> None:
    private_mounts()
    mount(evil, program, flags=MS_BIND)


def by_an_overlay_above_its_folder(program: Path, evil: Path) -> None:
    """A file system of the attacker's own at the same path."""
    private_mounts()
    layers = program.parent / "layers"
    for layer in ("upper", "work"):
        (layers / layer).mkdir(parents=True)
    content = evil.read_bytes()
    data = f"lowerdir={program.parent},upperdir={layers}/upper,workdir={layers}/work"
    mount("overlay", program.parent, "overlay", data=data)
    program.write_bytes(content)


WAYS: Final = (
    (by_writing_into_it, Reason.FILE_CHANGED),
    (by_writing_and_setting_its_times_back, Reason.FILE_CHANGED),
    (by_truncating_it, Reason.FILE_CHANGED),
    (by_a_shared_mapping, Reason.FILE_CHANGED),
    (by_direct_io, Reason.FILE_CHANGED),
    (by_copy_file_range, Reason.FILE_CHANGED),
    (by_renaming_over_it, Reason.NO_GRANT),
    (by_exchanging_names, Reason.NO_GRANT),
    (by_another_hard_link, Reason.NO_GRANT),
    (by_a_symbolic_link, Reason.NO_GRANT),
    (by_a_bind_mount, Reason.NO_GRANT),
    (by_an_overlay_above_its_folder, Reason.NO_GRANT),
)


@pytest.mark.parametrize(("way", "reason"), WAYS, ids=[way.__name__ for way, _ in WAYS])
def test_a_swapped_program_never_runs(
    arena: Arena, place: Path, way: Callable[[Path, Path], None], reason: Reason
) -> None:
    folders = place / "control", place / "attack"
    for folder in folders:
        folder.mkdir()

    def attack(folder: Path, program: Path) -> None:
        way(program, arena.fresh(arena.evil, folder))
        execute(program)

    control, program = (arena.fresh(arena.good, folder) for folder in folders)
    arena.permit(program)
    assert arena.attempt(lambda: execute(program)).wrote == b"good"
    assert arena.attempt(lambda: attack(folders[0], control), governed=False).wrote == b"evil"

    done = arena.attempt(lambda: attack(folders[1], program))

    assert (done.wrote, done.reasons) == (b"", [reason])


def test_a_name_that_changes_all_the_time(arena: Arena, place: Path) -> None:
    """A link that leads to the authorized program and to the other one by turns, while it is executed."""
    good, evil = arena.fresh(arena.good), arena.fresh(arena.evil)
    link, tries = place / "link", 300
    link.symlink_to(good)
    arena.permit(good)

    other = place / "other"
    other.symlink_to(evil)

    def swap_for_ever() -> None:
        while True:
            by_exchanging_names(link, other)
            os.sched_yield()

    def execute_often() -> None:
        for _ in range(tries):
            spawn(link)

    swapper = os.fork()
    if swapper == 0:
        swap_for_ever()
    arena.instance.reap_also(swapper)
    try:
        control = arena.attempt(execute_often, governed=False).wrote
        done = arena.attempt(execute_often)
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert set(split(control)) == {b"good", b"evil"}, "the race was never won, so this shows nothing"
    assert set(split(done.wrote)) == {b"good"}
    assert set(done.reasons) == {Reason.AUTHORIZED, Reason.NO_GRANT}
    assert len(done.execs) == tries


def split(words: bytes) -> list[bytes]:
    return [words[start : start + 4] for start in range(0, len(words), 4)]


def test_a_deleted_program(arena: Arena) -> None:
    """Deleting it touches it; the content is the measured one, but nobody can measure it again by its name."""
    program = arena.fresh(arena.good)
    arena.permit(program)
    descriptor = os.open(program, os.O_RDONLY)
    assert arena.attempt(lambda: execute(f"/proc/self/fd/{descriptor}")).wrote == b"good"
    program.unlink()
    done = arena.attempt(lambda: execute(f"/proc/self/fd/{descriptor}"))
    os.close(descriptor)
    assert (done.wrote, done.reasons) == (b"", [Reason.FILE_CHANGED])


def test_the_inode_number_of_a_deleted_program(arena: Arena, place: Path) -> None:
    """A new file can get it; the generation and the change time tell them apart."""
    program = arena.fresh(arena.good, place)
    arena.permit(program)
    number = program.stat().st_ino
    program.unlink()
    for attempt in range(50):
        successor = place / f"successor-{attempt}"
        successor.write_bytes(arena.evil.read_bytes())
        if successor.stat().st_ino == number:
            break
    else:
        pytest.skip("this file system gave the number to nobody else")
    successor.chmod(0o755)
    assert arena.attempt(lambda: execute(successor), governed=False).wrote == b"evil"
    done = arena.attempt(lambda: execute(successor))
    assert (done.wrote, done.reasons) == (b"", [Reason.FILE_CHANGED])


def errno_of(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_program_that_is_open_for_writing_is_not_executed(arena: Arena) -> None:
    """The kernel: ETXTBSY, before the gate is asked. So nobody writes between its look and the first instruction."""
    program = arena.fresh(arena.good)
    arena.permit(program)

    def with_a_writer() -> None:
        descriptor = os.open(program, os.O_WRONLY)
        assert errno_of(lambda: execute(program)) == errno.ETXTBSY
        os.close(descriptor)
        execute(program)

    def with_a_mapping() -> None:
        descriptor = os.open(program, os.O_RDWR)
        mapped = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        assert errno_of(lambda: execute(program)) == errno.ETXTBSY
        mapped.close()
        execute(program)

    for attack in (with_a_writer, with_a_mapping):
        done = arena.attempt(attack)
        assert (done.wrote, done.reasons) == (b"good", [Reason.AUTHORIZED])


def test_a_running_program_is_not_written(arena: Arena) -> None:
    """The kernel again: what was let pass stays what it was."""
    program = arena.fresh(arena.good_waits)
    arena.permit(program)

    def write_while_it_runs() -> None:
        asked, asking = os.pipe()
        answered, answering = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(asked, 8)
            os.dup2(answering, EVIDENCE)
            os.close(asking)
            execute(program)
        os.close(asked)
        os.write(asking, b"1")
        assert os.read(answered, 4) == b"good"
        code = errno_of(lambda: os.close(os.open(program, os.O_WRONLY)))
        os.close(asking)
        os.waitpid(child, 0)
        os.write(EVIDENCE, errno.errorcode[code].encode())

    done = arena.attempt(write_while_it_runs)

    assert (done.wrote, done.reasons) == (b"ETXTBSY", [Reason.AUTHORIZED])


def test_a_file_with_a_writer_is_not_measured(arena: Arena) -> None:
    """A writer from before the measurement would not change the change time in a way that shows."""
    program = arena.fresh(arena.good)
    reading = os.open(program, os.O_RDONLY)
    try:
        assert measure(reading, arena.gate.identify).identity == arena.identity(program)
        with (
            program.open("r+b") as file,
            mmap.mmap(file.fileno(), 0),
            pytest.raises(Refused, match="open for writing") as caught,
        ):
            measure(reading, arena.gate.identify)
        assert caught.value.reason is Reason.MEASUREMENT_RACED
    finally:
        os.close(reading)


def test_a_memfd_with_the_content_of_an_authorized_program(arena: Arena) -> None:
    """The content is right; but no file that the daemon did not measure has a grant."""
    arena.permit(arena.good)
    done = arena.attempt(lambda: execute(memfd_of(arena.good), "good"))
    assert (done.wrote, done.reasons) == (b"", [Reason.NO_GRANT])
