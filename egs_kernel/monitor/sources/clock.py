"""Steps of the clock: what artifacts' windows and the record's times are told by."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from egs_kernel.drift.observations import HostEvent
from egs_kernel.errors import HostLacks
from egs_kernel.findings import Finding
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.drift.observations import Observation

_CLOCK_REALTIME: Final = 0
_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_NEVER: Final = 2**40
"""Seconds since 1970."""
SMALLEST: Final = 100_000_000
"""Nanoseconds. A smaller step is what time synchronization does; slewing is none at all."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Times(ctypes.Structure):
    """struct itimerspec: an interval, and when."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Clock:
    """Tells when somebody sets the clock (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).

    Raises:
        HostLacks: the kernel gives no timer.
    """

    name = "clock"

    def __init__(self) -> None:
        self._timer = int(_LIBC.timerfd_create(_CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC))
        if self._timer < 0:
            raise _lacks("timerfd_create")
        self._offset = _offset()
        self._arm()

    def fileno(self) -> int:
        """Readable when the clock was set."""
        return self._timer

    def read(self) -> Iterator[Observation]:
        """The step, if it is one."""
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        self._arm()
        yield from self.sweep()

    def sweep(self) -> Iterator[Observation]:
        """How far the clock is from where it would be, by the one that nobody sets."""
        offset = _offset()
        step, self._offset = offset - self._offset, offset
        if abs(step) < SMALLEST:
            return
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        yield HostEvent(
            source=self.name,
            time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            suspicion=Finding.CLOCK_STEPPED,
            subject="clock",
            was=_text(now - step),
            now=_text(now),
        )

    def close(self) -> None:
        """Let go of it."""
        os.close(self._timer)

    def _arm(self) -> None:
        """For a time that never comes: what ends it is a step."""
        times = _Times(seconds=_NEVER)
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if _LIBC.timerfd_settime(self._timer, flags, ctypes.byref(times), None) != 0:
            raise _lacks("timerfd_settime")


def _offset() -> int:
    """Nanoseconds from the clock since the boot to the one that people set."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _text(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")


def _lacks(call: str) -> HostLacks:
    number = ctypes.get_errno()
    return HostLacks(
        Reason.KERNEL_UNSUPPORTED, f"{call}: {os.strerror(number)}", "Boot a kernel with CONFIG_TIMERFD=y."
    )
