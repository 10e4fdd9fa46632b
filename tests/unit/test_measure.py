"""Measuring real files on ext4 (or what tmp is) and tmpfs, with real writers beside it."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel import measure
from egs_kernel.errors import HostLacks, Refused, UsageError
from egs_kernel.model import FileIdentity, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECOND = 1_000_000_000
SHM = Path("/dev/shm")


def identify(fd: int) -> FileIdentity:
    """A real identity, as user space sees it."""
    status = os.fstat(fd)
    seconds, nanoseconds = divmod(status.st_ctime_ns, SECOND)
    return FileIdentity(status.st_dev, status.st_ino, 0, status.st_size, seconds, nanoseconds)


def on_tmpfs() -> bool:
    found = subprocess.run(["stat", "-fc", "%T", SHM], capture_output=True, text=True, check=True)
    return found.stdout.strip() == "tmpfs"


@pytest.fixture(params=["tmp", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "tmp":
        yield tmp_path
        return
    assert on_tmpfs()
    folder = SHM / f"egs-measure-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Clock:
    """A clock that only waiting moves; it starts `ahead` ns after the file's change time."""

    def __init__(self, path: Path, ahead: int) -> None:
        self.now = path.stat().st_ctime_ns + ahead
        self.waits: list[float] = []

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += int(seconds * SECOND)


def test_a_fresh_file_is_measured_once_its_change_time_is_old(place: Path) -> None:
    path = place / "program"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    with opened(path) as fd:
        os.lseek(fd, 5, os.SEEK_SET)
        found = measure.measure(fd, identify)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
        assert found.identity == identify(fd)
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert measure.coarse_clock() - path.stat().st_ctime_ns > measure.MARGIN


def test_an_old_file_is_measured_without_waiting(place: Path) -> None:
    path = place / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=measure.MARGIN + 1)
    with opened(path) as fd:
        measure.measure(fd, identify, clock=clock, wait=clock.wait)
    assert clock.waits == []


@pytest.mark.parametrize("ahead", [0, measure.MARGIN, -measure.MARGIN, -measure.MAX_AHEAD])
def test_a_young_file_is_waited_for(tmp_path: Path, ahead: int) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead)
    with opened(path) as fd:
        measure.measure(fd, identify, clock=clock, wait=clock.wait)
    assert len(clock.waits) == 1
    assert clock.now - path.stat().st_ctime_ns > measure.MARGIN


def test_a_change_time_in_the_future_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=-3600 * SECOND)
    with opened(path) as fd, pytest.raises(Refused) as caught:
        measure.measure(fd, identify, clock=clock, wait=clock.wait)
    assert caught.value.reason is Reason.MEASUREMENT_RACED
    assert "3600 s in the future" in caught.value.message
    assert caught.value.next_step
    assert clock.waits == []


def test_a_clock_that_stands_still_is_not_waited_for_forever(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    waits: list[float] = []
    with opened(path) as fd, pytest.raises(Refused) as caught:
        measure.measure(fd, identify, clock=lambda: path.stat().st_ctime_ns, wait=waits.append)
    assert caught.value.reason is Reason.MEASUREMENT_RACED
    assert len(waits) == measure.ATTEMPTS


@contextmanager
def repeating(write: Callable[[int], None]) -> Iterator[None]:
    """A thread that calls `write` with 0, 1, 2 … all the while."""
    started, stop = threading.Event(), threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            write(number)
            number += 1
            started.set()

    writer = threading.Thread(target=run)
    writer.start()
    try:
        assert started.wait(20)
        yield
    finally:
        stop.set()
        writer.join()


def test_a_file_that_is_being_written_is_refused(place: Path) -> None:
    path = place / "program"
    path.write_bytes(bytes(1_000_000))

    def write(number: int) -> None:
        with path.open("r+b") as file:
            file.write(number.to_bytes(8, "little"))

    with repeating(write), opened(path) as fd, pytest.raises(Refused) as caught:
        measure.measure(fd, identify)
    assert caught.value.reason is Reason.MEASUREMENT_RACED
    assert caught.value.next_step


def test_a_change_of_its_attributes_during_the_hashing_is_noticed(place: Path) -> None:
    """A chmod needs no open file, so the lease does not stop it: the identity tells."""
    path = place / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=SECOND)
    calls = 0

    def identify_and_touch(fd: int) -> FileIdentity:
        nonlocal calls
        calls += 1
        if calls == 2:  # the one after the first hashing
            path.chmod(0o700)
        return identify(fd)

    with opened(path) as fd:
        found = measure.measure(fd, identify_and_touch, clock=clock, wait=clock.wait)
        assert found.identity == identify(fd)
    assert calls == 4
    assert clock.waits


def test_a_writable_mapping_is_a_writer_though_it_leaves_the_change_time_alone(place: Path) -> None:
    path = place / "program"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 8192)
    mapping[0:1] = b"a"
    with opened(path) as fd:
        clock = Clock(path, ahead=SECOND)
        before = identify(fd)
        mapping[1:2] = b"b"
        assert identify(fd) == before  # why identities alone do not do
        with pytest.raises(Refused) as caught:
            measure.measure(fd, identify, clock=clock, wait=clock.wait)
        assert "open for writing" in caught.value.message
        mapping.close()
        found = measure.measure(fd, identify, clock=clock, wait=clock.wait)
    assert found.digest == hashlib.sha256(b"ab" + bytes(8190)).hexdigest()


def test_who_opens_the_file_for_writing_waits_until_it_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=SECOND)
    refused = []

    def identify_and_try(fd: int) -> FileIdentity:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError:
            refused.append(True)
        return identify(fd)

    with opened(path) as fd:
        measure.measure(fd, identify_and_try, clock=clock, wait=clock.wait)
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # and not a moment longer
    assert refused  # and the lease that was broken did not end this process by its signal


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file")
def test_without_the_right_to_a_lease_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=SECOND)
    with opened(path) as fd:
        os.seteuid(65534)
        try:
            with pytest.raises(HostLacks) as caught:
                measure.measure(fd, identify, clock=clock, wait=clock.wait)
        finally:
            os.seteuid(0)
    assert caught.value.reason is Reason.NOT_PERMITTED
    assert "CAP_LEASE" in caught.value.next_step


def test_a_running_program_can_be_measured() -> None:
    with opened(Path(sys.executable)) as fd:
        assert measure.measure(fd, identify).digest == measure.digest_file(Path(sys.executable))


def test_only_regular_files_are_measured(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with opened(tmp_path) as folder:
        for fd in (reading, folder):
            with pytest.raises(Refused) as caught:
                measure.measure(fd, identify)
            assert caught.value.reason is Reason.PATH_UNSAFE
    os.close(reading)
    os.close(writing)


def test_a_memory_file_can_be_measured() -> None:
    fd = os.memfd_create("program")
    os.write(fd, b"x")
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    assert measure.measure(reading, identify).digest == hashlib.sha256(b"x").hexdigest()
    os.close(reading)


def test_offline_digest(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x" * 2_000_000)
    assert measure.digest_file(path) == hashlib.sha256(b"x" * 2_000_000).hexdigest()
    path.write_bytes(b"")
    assert measure.digest_file(path) == hashlib.sha256(b"").hexdigest()
    with pytest.raises(UsageError) as caught:
        measure.digest_file(tmp_path / "missing")
    assert caught.value.reason is Reason.NOT_FOUND
    with pytest.raises(Refused):
        measure.digest_file(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused):
        measure.digest_file(tmp_path / "fifo")


def test_offline_digest_of_a_file_that_grows_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(bytes(60_000_000))
    before = time.monotonic()

    def write(_number: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with repeating(write), pytest.raises(Refused) as caught:
        measure.digest_file(path)
    assert caught.value.reason is Reason.MEASUREMENT_RACED
    assert time.monotonic() - before < 60


def test_what_is_opened_for_writing_meanwhile_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=measure.MARGIN + 1)
    openings = iter([0, 2**62, 0])  # before the first hashing and after it, before the second

    def noted(_file: FileIdentity) -> int:
        return next(openings, 1)

    with opened(path) as fd:
        found = measure.measure(fd, identify, opened=noted, clock=clock, wait=clock.wait)
    assert len(clock.waits) == 1
    assert 1 < found.time <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_what_is_opened_for_writing_all_the_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x")
    clock = Clock(path, ahead=measure.MARGIN + 1)
    with opened(path) as fd, pytest.raises(Refused) as caught:
        measure.measure(fd, identify, opened=lambda _file: 2**62, clock=clock, wait=clock.wait)
    assert caught.value.reason is Reason.MEASUREMENT_RACED
