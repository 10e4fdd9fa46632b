"""What was found and done, to egsd, which records it: by a thread of its own, so that no response waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.daemon import protocol
from egs_kernel.errors import EgsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.audit.entries import BaselineEntry, FindingEntry, ResponseEntry, WatchChange

    Report = FindingEntry | ResponseEntry | WatchChange | BaselineEntry

ROOM: Final = 16_384
"""Reports that wait for a daemon that does not answer; the oldest is told of by a number."""
BEAT: Final = 5.0
"""Seconds after which the daemon is told that the monitor is there, when there is nothing else to say."""
_AT_ONCE: Final = 256
_FRAME: Final = 512 * 1024
_RETRY: Final = 0.5

_log = logging.getLogger(__name__)


class Reporter:
    """Hands reports over, in the order in which they came.

    Args:
        send: asks the daemon; raises EgsError when that is not possible now.

    """

    def __init__(self, send: Callable[[protocol.DriftRequest], None]) -> None:
        self._send = send
        self._waiting: deque[Report] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="egs-report", daemon=True)
        self._dropped = 0

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def put(self, *reports: Report) -> None:
        """Let them be recorded soon."""
        with self._changed:
            for report in reports:
                if len(self._waiting) >= ROOM:
                    self._dropped += 1
                else:
                    self._waiting.append(report)
            self._changed.notify()

    def take_dropped(self) -> int:
        """How many reports found no room since somebody asked; 0 while there still is none."""
        with self._changed:
            if len(self._waiting) >= ROOM:
                return 0
            dropped, self._dropped = self._dropped, 0
            return dropped

    def stop(self, seconds: float) -> None:
        """Hand over what waits, as far as that is possible in this time."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        told = ""
        while True:
            with self._changed:
                if not self._waiting and not self._ending:
                    self._changed.wait(BEAT)
                batch = self._next()
                if not batch and self._ending:
                    return
            try:
                self._send(protocol.DriftRequest(reports=batch))
                told = ""
            except EgsError as error:
                if error.message != told:
                    _log.warning("not recorded yet: %s", error)
                    told = error.message
                with self._changed:
                    self._waiting.extendleft(reversed(batch))
                    if self._ending:
                        return
                time.sleep(_RETRY)

    def _next(self) -> tuple[Report, ...]:
        batch: list[Report] = []
        size = 0
        while self._waiting and len(batch) < _AT_ONCE and size < _FRAME:
            batch.append(self._waiting.popleft())
            size += len(msgspec.json.encode(batch[-1]))
        return tuple(batch)
