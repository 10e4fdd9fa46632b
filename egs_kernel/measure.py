"""What a file is: its SHA-256, taken so that no later change can pass for the file that was hashed.

The gate recognizes a measured file by device, inode, generation, size and change time. The kernel's
clock for change times is coarse, and a write through a mapping need not touch it at all, so a hash counts
only when

- the change time was clearly older than the hashing (git's "racily clean" rule), so that a later write
  cannot have the same one;
- nobody had the file open for writing meanwhile, mappings included: a read lease says so;
- the gate's view of the file was the same before and after, and so was, where the gate notes it, the time when
  somebody last opened it for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import EgsError, HostLacks, Refused, UsageError
from egs_kernel.model import FileIdentity, Measurement, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ATTEMPTS: Final = 8
"""Hashings, or waits for the change time to age, before the measurement is refused."""
MARGIN: Final = 20_000_000
"""Nanoseconds by which a change time must precede the hashing: two ticks of the slowest kernel (HZ=100)."""
MAX_AHEAD: Final = 1_000_000_000
"""Nanoseconds a change time may lie ahead of the clock and still be waited for."""
_CLOCK_REALTIME_COARSE: Final = 5  # what the kernel stamps files from; Python does not name it
_CHUNK: Final = 1024 * 1024

Identify = Callable[[int], FileIdentity]
"""The gate's own view of an open file (`Gate.identify`)."""
Opened = Callable[[FileIdentity], int]
"""When a file may last have been opened for writing, CLOCK_BOOTTIME nanoseconds (`Openings.last`)."""
Clock = Callable[[], int]
"""CLOCK_REALTIME_COARSE in nanoseconds."""
Wait = Callable[[float], None]
"""Returns after that many seconds."""


def coarse_clock() -> int:
    """The clock that file systems take change times from, in nanoseconds."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def _unnoted(_file: FileIdentity) -> int:
    return 0


def measure(
    fd: int,
    identify: Identify,
    *,
    opened: Opened = _unnoted,
    clock: Clock = coarse_clock,
    wait: Wait = time.sleep,
) -> Measurement:
    """Hash an open file, with the identity under which the gate will recognize exactly this content.

    Waits for `MARGIN` at a time when the file was touched just now, so call it off the event loop.

    Args:
        fd: the file, open for reading only. Its offset is not used. The caller needs to own the file, or
            CAP_LEASE.
        identify: the gate's view of the file.
        opened: what the gate notes of it; asked before the hashing, so that it notes what happens meanwhile.
        clock: what the file system stamps files from.
        wait: how to let time pass.

    Raises:
        Refused: PATH_UNSAFE for what is no regular file; MEASUREMENT_RACED when it changed, or was open
            for writing, at every attempt, or its change time lies in the future.
        HostLacks: this process may not take a lease on the file.
        OSError: it cannot be read.
    """
    _require_regular(fd, "the file")
    problem = ""
    for _attempt in range(ATTEMPTS):
        before = identify(fd)
        age = clock() - _ctime(before)
        if age <= MARGIN:
            _require_not_ahead(age)
            problem = "its change time is not older than the hashing"
            wait((MARGIN - age) / 1e9 + 0.001)
            continue
        opened(before)
        began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with _no_writers(fd) as alone:
            digest = _sha256(fd) if alone else None
            if digest is not None and identify(fd) == before and opened(before) < began:
                return Measurement(digest, before, began)
        problem = "it changed meanwhile" if alone else "another process has it open for writing"
        wait(MARGIN / 1e9)
    raise Refused(
        Reason.MEASUREMENT_RACED,
        f"the file could not be measured: {problem} (tried {ATTEMPTS} times)",
        "Let the program that writes the file finish, then try again.",
    )


def digest_file(path: Path) -> str:
    """The SHA-256 (hex) of a file, for offline use.

    Raises:
        UsageError: it is missing, unreadable, or no regular file.
        Refused: MEASUREMENT_RACED: it changed while it was hashed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND if isinstance(error, FileNotFoundError) else Reason.USAGE,
            f"cannot read {path}: {error.strerror}",
            "Name a program file that you may read.",
        ) from error
    try:
        return digest_of(descriptor, str(path))
    finally:
        os.close(descriptor)


def digest_of(descriptor: int, name: str) -> str:
    """The SHA-256 (hex) of an open file, for offline use: what `egs issue` signs and `egs verify` compares.

    Args:
        descriptor: the file, open for reading. Its offset is not used.
        name: how messages call it.

    Raises:
        Refused: PATH_UNSAFE for what is no regular file; MEASUREMENT_RACED: it changed while it was hashed.
        OSError: it cannot be read.
    """
    _require_regular(descriptor, name)
    before = os.fstat(descriptor)
    digest = _sha256(descriptor)
    after = os.fstat(descriptor)
    if (before.st_size, before.st_ctime_ns) != (after.st_size, after.st_ctime_ns):
        raise Refused(
            Reason.MEASUREMENT_RACED,
            f"{name} changed while it was hashed",
            "Try again when nothing writes it.",
        )
    return digest


@contextlib.contextmanager
def _no_writers(fd: int) -> Iterator[bool]:
    """Keep writers out: yields False when somebody has the file open for writing, or mapped writable.

    A read lease is granted only when there is no writer, and who opens the file for writing meanwhile
    waits until it ends. On a file system without leases the identity has to do.
    """
    held = False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # a broken lease would send SIGIO, which kills
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        held = True
    except OSError as error:
        if error.errno == errno.EAGAIN:
            yield False
            return
        if error.errno == errno.EACCES:
            raise _no_lease(error) from error
        if error.errno != errno.EINVAL:
            raise
    try:
        yield True
    finally:
        if held:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _no_lease(error: OSError) -> EgsError:
    return HostLacks(
        Reason.NOT_PERMITTED,
        f"no lease on the file: {error.strerror}",
        "Give egsd CAP_LEASE (systemd: CapabilityBoundingSet), or let it own the file.",
    )


def _require_regular(fd: int, name: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Refused(
            Reason.PATH_UNSAFE,
            f"{name} is not a regular file",
            "Only regular files can be measured and executed.",
        )


def _require_not_ahead(age: int) -> None:
    if age < -MAX_AHEAD:
        raise Refused(
            Reason.MEASUREMENT_RACED,
            f"the file's change time lies {-age // 1_000_000_000} s in the future: the clock was set back",
            "Correct the clock (timedatectl); if it is right, touch the file: chmod u+r FILE",
        )


def _ctime(identity: FileIdentity) -> int:
    return identity.ctime_seconds * 1_000_000_000 + identity.ctime_nanoseconds


def _sha256(fd: int) -> str:
    """Hash by offset: the descriptor's own position belongs to the caller."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()
