"""The daemon's heartbeat: what keeps the gate open, and what is looked at with every beat.

It beats from the event loop, so a loop that hangs does not beat. It does not beat while the record is stuck
either: a daemon that cannot record is no daemon. Hashing runs in threads and cannot delay it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

import sdnotify

from egs_kernel.daemon.host import now

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.daemon.gaps import Gaps
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.gate.pins import Gate

BEAT_SECONDS: Final = 1.0
RECORD_SECONDS: Final = 3.0
"""How long an append may take before the heart stops until it is done."""
RETRY_SECONDS: Final = 60.0
"""How often refused artifacts are examined without a cause."""

_log = logging.getLogger(__name__)


class Heart:
    """Beats once a second; see the module's words."""

    def __init__(self, *, gate: Gate, host: Host, journal: Journal, standing: Standing, gaps: Gaps) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._standing = standing
        self._gaps = gaps
        self._looked = now()
        self._retry = 0.0
        self._stuck = False
        self._watchdog = sdnotify.SystemdNotifier() if os.environ.get("WATCHDOG_USEC") else None

    async def run(self) -> None:
        """Beat, for ever."""
        loop = asyncio.get_running_loop()
        self._looked = now()
        self._retry = loop.time() + RETRY_SECONDS
        while True:
            started = loop.time()
            self._beat()
            self.look()
            if started >= self._retry:
                self._retry = started + RETRY_SECONDS
                self._standing.retry()
            await asyncio.sleep(max(0.0, started + BEAT_SECONDS - loop.time()))

    def _beat(self) -> None:
        delay = self._journal.delay()
        if delay > RECORD_SECONDS:
            if not self._stuck:
                _log.error(
                    "the record has not taken an entry for %.1f s: the heart stops until it does", delay
                )
            self._stuck = True
            return
        if self._stuck:
            self._stuck = False
            _log.warning("the record works again")
        self._gate.beat()
        if self._watchdog is not None:
            self._watchdog.notify("WATCHDOG=1")

    def look(self) -> None:
        """Notice what has changed: posture, clock, windows that opened or closed; what the gate could not tell."""
        self._gaps.look()
        if self._host.refresh_posture():
            self.posture_changed()
        if self._host.refresh_clock():
            _log.warning("the clock was set: every window is computed again")
            self._standing.examine_all()
        moment = now()
        if (edge := self._next_boundary(self._looked)) is not None and edge <= moment:
            self._standing.examine_all()
        self._looked = moment

    def posture_changed(self) -> None:
        """Record the new posture; withdraw everything when integrity is not established any more."""
        self._journal.submit([self._host.posture_entry()], essential=True)
        if self._host.healthy:
            _log.info("the host's posture changed")
            self._standing.examine_all()
        else:
            _log.error("nothing is authorized: %s", "; ".join(self._host.posture.problems))
            self._standing.withdraw_all()

    def _next_boundary(self, moment: datetime) -> datetime | None:
        """After the last look: one that passed while nobody could look is seen all the same."""
        edges = [
            edge for edge in (self._standing.next_boundary(moment), self._host.next_boundary(moment)) if edge
        ]
        return min(edges, default=None)
