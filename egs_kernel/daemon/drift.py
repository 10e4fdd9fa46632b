"""What the monitor tells: it is recorded and counted, and while the monitor is there, artifacts that count on it are authorized."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.entries import FindingEntry, ResponseEntry
from egs_kernel.audit.lines import timestamp
from egs_kernel.daemon import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from egs_kernel.audit.entries import Entry
    from egs_kernel.daemon.beat import Beat
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal

WORD: Final = "drift"
"""What an artifact with responses to drift needs of a host (`Constraints.needs`)."""
SILENCE: Final = 15.0
"""Seconds after its last word that the monitor is taken to be gone."""

_log = logging.getLogger(__name__)


class Drift:
    """The monitor's word in the daemon. Belongs to the event loop.

    Args:
        host: what this host can enforce.
        journal: the record.
        beat: where it is noted that the monitor was heard.
        changed: called when the monitor came or went: artifacts are examined again.

    Attributes:
        findings: how many of each kind were recorded since the daemon started.
        responses: the same of responses, by word and whether they were verified.
    """

    def __init__(self, *, host: Host, journal: Journal, beat: Beat, changed: Callable[[], None]) -> None:
        self._host = host
        self._beat = beat
        self._journal = journal
        self._changed = changed
        self._silent: asyncio.TimerHandle | None = None
        self.findings: Counter[tuple[str, str]] = Counter()
        self.responses: Counter[tuple[str, str]] = Counter()

    @property
    def watching(self) -> bool:
        """Whether the monitor is there."""
        return self._silent is not None

    async def take(self, request: protocol.DriftRequest) -> protocol.Done:
        """Record what the monitor reports; an empty report says that it is there.

        Raises:
            EgsError: it cannot be recorded.
        """
        self.count(request.reports)
        self._heard()
        if request.reports:
            await self._journal.append(*request.reports)
        self._note()
        return protocol.Done(message=f"{len(request.reports)} recorded")

    def _note(self) -> None:
        """When it was heard. What it reported is recorded by now, so a disk that is full is no reason to have it told again."""
        try:
            self._beat.write(timestamp(time.time_ns()))
        except OSError as error:
            _log.warning("that the monitor was heard cannot be noted: %s", error)

    def count(self, reports: Iterable[Entry]) -> None:
        """Count findings and responses, the monitor's or the daemon's own."""
        for report in reports:
            if isinstance(report, FindingEntry):
                self.findings[report.finding.value, report.severity] += 1
                _log.warning(
                    "drift: %s: %s (execution %d)", report.finding.value, report.detail, report.execution
                )
            elif isinstance(report, ResponseEntry):
                self.responses[report.response, "true" if report.verified else "false"] += 1

    def _heard(self) -> None:
        was, self._silent = self._silent, asyncio.get_running_loop().call_later(SILENCE, self._gone)
        if was is not None:
            was.cancel()
            return
        self._host.enforceable |= {WORD}
        self._changed()

    def _gone(self) -> None:
        self._silent = None
        _log.error("the monitor has said nothing for %.0f s: nobody watches for drift", SILENCE)
        self._host.enforceable -= {WORD}
        self._changed()
