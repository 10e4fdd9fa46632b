"""What the gate keeps of measured files: written before the grant, whole or not at all, and swept when nothing needs it."""

from __future__ import annotations

import ctypes
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.libbpf import Map
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.subjects import Openings, Subjects
from egs_kernel.model import FileIdentity, Grant, Measurement, Reason, TaskIdentity
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from tests.harness import Instance

pytestmark = pytest.mark.kernel

DIGEST: Final = "cd" * 32
OTHER: Final = "ef" * 32


def file(inode: int, size: int = 1) -> FileIdentity:
    return FileIdentity(device=7, inode=inode, generation=0, size=size, ctime_seconds=1, ctime_nanoseconds=2)


def grant(artifact: str, *inodes: int, at: int = 5) -> Grant:
    """Of a program and libraries with these inodes, measured at that time."""
    return Grant(
        artifact_id=artifact * 32,
        scope="test",
        file=file(inodes[0]),
        digest=DIGEST,
        measured=at,
        subjects=tuple(Measurement(DIGEST, file(inode), at) for inode in inodes),
        not_before=0,
        not_after=2**62,
    )


def named(gate: Gate) -> dict[tuple[str, int], abi.Subject]:
    """What is in the gate, by the first byte of the artifact's id and the inode."""
    return {(f"{key.artifact & 0xFF:02x}", key.inode): raw for key, raw in gate.subjects.walk()}


def test_what_a_grant_names_is_in_the_gate_with_it(gate: Gate) -> None:
    gate.install(grant("ab", 1, 2))

    files = named(gate)
    assert files.keys() == {("ab", 1), ("ab", 2)}
    assert bytes(files["ab", 2].digest).hex() == DIGEST
    assert (files["ab", 2].file.size, files["ab", 2].measured) == (1, 5)


def test_it_goes_when_nothing_needs_it(gate: Gate, instance: Instance) -> None:
    standing = gate.install(grant("ab", 1, 2))
    gate.arm(grant("cd", 3), TaskIdentity(os.getpid(), start_ticks(os.getpid())))
    gate.govern_slot(os.getpid(), gate.scope_slot("test"))
    gate.assume(os.getpid(), artifact=int.from_bytes(b"\xef" * 8, "little"))
    gate.withdraw(gate.install(grant("ef", 4)))
    gate.withdraw(gate.install(grant("99", 5)))

    gate.collect()
    assert named(gate).keys() == {("ab", 1), ("ab", 2), ("cd", 3), ("ef", 4)}

    gate.withdraw(standing)
    gate.disarm(os.getpid())
    gate.assume(os.getpid(), artifact=0)
    gate.collect()
    assert named(gate) == {}
    assert instance.cgroup.folder.exists()


def test_a_later_measurement_stays(gate: Gate) -> None:
    gate.install(grant("ab", 1, at=9))
    gate.install(grant("ab", 1, at=8))
    assert named(gate)["ab", 1].measured == 9
    gate.install(grant("ab", 1, at=10))
    assert named(gate)["ab", 1].measured == 10


def test_a_reader_that_opens_the_gate_knows_what_is_in_it(gate: Gate, instance: Instance) -> None:
    gate.withdraw(gate.install(grant("ab", 1)))
    again = Gate.open(instance.paths.pins)
    again.collect()
    again.close()
    assert named(gate) == {}


class Small(Map[abi.SubjectKey, abi.Subject]):
    """The gate's map, as it behaves with room for so many."""

    room = 3

    def put(self, key: abi.SubjectKey, value: abi.Subject, flags: int = 0) -> None:
        """Refuse what the kernel would."""
        if self.get(key) is None and len(self.walk()) >= self.room:
            raise OSError(7, "Argument list too long")
        super().put(key, value, flags)


def test_what_does_not_fit_is_not_installed_at_all(gate: Gate) -> None:
    small = Small(os.dup(gate.subjects.descriptor), abi.SubjectKey, abi.Subject)
    subjects = Subjects(small, set)
    subjects.name(grant("ab", 1, 2))
    with pytest.raises(GateError) as caught:
        subjects.name(grant("cd", 3, 4))
    assert (caught.value.reason, bool(caught.value.next_step)) == (Reason.GATE_FAILED, True)
    assert named(gate).keys() == {("ab", 1), ("ab", 2)}


def test_a_crowded_table_is_swept_before_it_takes_more(gate: Gate) -> None:
    in_use: set[int] = {int.from_bytes(b"\xab" * 8, "little")}
    subjects = Subjects(gate.subjects, lambda: in_use, crowded=2)
    subjects.name(grant("ab", 1))
    subjects.name(grant("cd", 2))
    assert named(gate).keys() == {("ab", 1), ("cd", 2)}
    subjects.name(grant("ef", 3))
    assert named(gate).keys() == {("ab", 1), ("ef", 3)}


def test_when_a_file_was_opened_is_noted_from_the_first_question_on(gate: Gate) -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    first = gate.openings.last(file(1))
    assert before <= first <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert gate.openings.last(file(1, size=2)) == first  # of the file, however it changes
    gate.measured_files.put(abi.FileKey(inode=1, device=7), ctypes.c_uint64(first + 5))
    assert gate.openings.last(file(1)) == first + 5


def test_crowded_openings_keep_what_is_named_and_what_was_asked_for_last(gate: Gate) -> None:
    openings = Openings(gate.measured_files, lambda: {(1, 7)}, crowded=4)
    for inode in (1, 2, 3, 4):
        openings.last(file(inode))
    openings.last(file(2))
    openings.last(file(5))
    assert {key.inode for key, _ in gate.measured_files.walk()} == {1, 2, 4, 5}


def test_every_pair_of_a_large_map_is_walked(gate: Gate) -> None:
    for inode in range(3000):
        gate.measured_files.put(abi.FileKey(inode=inode, device=1), ctypes.c_uint64(inode))
    assert {key.inode: value.value for key, value in gate.measured_files.walk()} == {
        i: i for i in range(3000)
    }


def test_a_grant_that_measures_nothing_else_names_nothing(gate: Gate) -> None:
    gate.install(msgspec.structs.replace(grant("ab", 1), subjects=()))
    assert named(gate) == {}
