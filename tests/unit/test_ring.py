"""The ring buffer's consumer on a file that is laid out as the kernel lays it out."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egs_kernel.gate.ring import Ring

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Kernel:
    """The producer."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2 * PAGE + SIZE))
        self.descriptor = os.open(path, os.O_RDWR)
        self.position = 0

    def write(self, content: bytes, flags: int = 0) -> None:
        record = struct.pack("=II", len(content) | flags, 0) + content
        for index, value in enumerate(record):
            os.pwrite(self.descriptor, bytes([value]), 2 * PAGE + (self.position + index) % SIZE)
        self.position += -(-len(record) // 8) * 8
        os.pwrite(self.descriptor, struct.pack("=Q", self.position), PAGE)

    def commit(self, position: int, length: int) -> None:
        os.pwrite(self.descriptor, struct.pack("=I", length), 2 * PAGE + position % SIZE)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.descriptor, 8, 0))[0])


WATCHER = """
import mmap, sys
position = memoryview(mmap.mmap(int(sys.argv[1]), mmap.PAGESIZE, prot=mmap.PROT_READ)).cast("Q")
print("watching", flush=True)
last = position[0]
while last < 1 << 40:
    found = position[0]
    assert found >= last, f"{last} was followed by {found}"
    last = found
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path / "ring")
    yield made
    os.close(made.descriptor)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=700), st.booleans()), max_size=30))
def test_everything_comes_once_and_in_order(kernel: Kernel, events: list[tuple[bytes, bool]]) -> None:
    ring = Ring(kernel.descriptor, SIZE)
    for content, discarded in events:
        kernel.write(content, DISCARDED if discarded else 0)
        assert ring.take() == ([] if discarded else [content])
        ring.release(ring.position)
    assert ring.take() == []
    assert kernel.consumed == kernel.position
    ring.close()


def test_an_event_that_is_being_written_and_what_follows_waits(kernel: Kernel) -> None:
    ring = Ring(kernel.descriptor, SIZE)
    kernel.write(b"first")
    second = kernel.position
    kernel.write(b"second", BUSY)
    kernel.write(b"third")
    assert ring.take() == [b"first"]
    assert ring.take() == []
    kernel.commit(second, len(b"second"))
    assert ring.take() == [b"second", b"third"]
    ring.close()


def test_what_was_taken_and_not_released_comes_again(kernel: Kernel) -> None:
    ring = Ring(kernel.descriptor, SIZE)
    kernel.write(b"recorded")
    assert ring.take() == [b"recorded"]
    ring.release(ring.position)
    kernel.write(b"lost with the daemon")
    assert ring.take() == [b"lost with the daemon"]
    ring.close()
    following = Ring(kernel.descriptor, SIZE)
    assert following.take() == [b"lost with the daemon"]
    following.close()


def test_the_kernel_never_sees_half_a_position(kernel: Kernel) -> None:
    """It would find the buffer full, and refuse an exec that is authorized."""
    ring = Ring(kernel.descriptor, SIZE)
    ring.release(1 << 32)
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(kernel.descriptor)],
        pass_fds=[kernel.descriptor],
        stdout=subprocess.PIPE,
    )
    assert watcher.stdout is not None
    watcher.stdout.readline()
    for position in range(1 << 32, (1 << 32) + 300_000):
        ring.release(position)
    ring.release(1 << 40)
    watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    ring.close()
