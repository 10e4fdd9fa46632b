"""Where requests are decided: one thread, one after the other, and made durable together.

What a request comes to is in the record before anybody learns of it. One append, one sync, for all requests that came while
the last one was under way: with many askers the disk is waited for once for all of them. A process that is killed has
recorded all that a request came to, or nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.record import Record
    from egs_kernel.authority.rules import RuleBook, Rules
    from egs_kernel.authority.store import Store

MOST_WAITING: Final = 1024
"""Requests that wait for the desk; further ones are turned away at once."""
_TOGETHER: Final = 64
"""Requests that are made durable together, at most."""
_FORGET_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What one request is decided by: the state, and the time. `latest`: when the record was last written to."""

    store: Store
    book: RuleBook
    now: datetime
    latest: float

    @property
    def rules(self) -> Rules:
        """The rules, by a clock that can be right.

        Raises:
            EgsError: they are wrong; CLOCK_WRONG: the clock stands before the record.
        """
        rules = self.book.now()
        behind = self.latest - self.now.timestamp()
        if behind > rules.settings.clock_tolerance:
            raise Refused(
                Reason.CLOCK_WRONG,
                f"the authority's clock is {behind:.0f} s behind its own record",
                "Set the clock of the authority's host (timedatectl): validity would begin in the past.",
            )
        return rules


@dataclass(frozen=True)
class Result(Generic[T]):
    """What a request came to: what goes into the record, and what is told once it is there."""

    entries: Sequence[Entry]
    answer: T


_NOTHING: Final = EgsError(Reason.RECORD_UNAVAILABLE, "it was not decided")


@dataclass
class _Job(Generic[T]):
    work: Callable[[Session], Result[T]]
    future: asyncio.Future[T]
    done: Result[T] | EgsError = _NOTHING


class Desk:
    """The one that decides. `close` ends it after what it has begun."""

    def __init__(
        self,
        record: Record,
        store: Store,
        rules: RuleBook,
        latest: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`latest`: when the last entry of the record was written, Unix seconds; `clock`: the time now, as well."""
        self._record = record
        self._store = store
        self._rules = rules
        self._latest = latest
        self._clock = clock
        self._jobs: queue.Queue[_Job[object] | None] = queue.Queue(MOST_WAITING)
        self._forget_at = 0.0
        self._thread = threading.Thread(target=self._serve, name="egs-desk", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Session], Result[T]]) -> asyncio.Future[T]:
        """Have a request decided; called in the event loop's thread.

        Args:
            work: decides; called in the desk's thread, with the state to itself. What it raises as `EgsError` is the
                answer, and nothing is recorded.

        Raises:
            Refused: RATE_LIMITED: too many wait already.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._jobs.put_nowait(_Job(work, future))  # type: ignore[arg-type] # each job fits its own future
        except queue.Full as error:
            raise Refused(
                Reason.RATE_LIMITED, f"{MOST_WAITING} requests wait already", "Ask again in a second."
            ) from error
        return future

    def close(self) -> None:
        """Decide what waits, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            end = False
            while len(jobs) < _TOGETHER and not self._jobs.empty():
                more = self._jobs.get_nowait()
                if more is None:
                    end = True
                    break
                jobs.append(more)
            self._decide(jobs)
            if end:
                return

    def _decide(self, jobs: list[_Job[object]]) -> None:
        """Decide them, make that durable, and tell. When that fails with several, each is tried alone."""
        try:
            self._work(jobs)
        except Exception as error:  # noqa: BLE001 - the desk must stand, and what was not recorded was not decided
            self._store.rollback()
            if len(jobs) > 1:
                for job in jobs:
                    self._decide([job])
                return
            _log.error("a request could not be decided", exc_info=error)
            jobs[0].done = _unavailable(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            jobs[0].future.get_loop().call_soon_threadsafe(_tell, jobs)

    def _work(self, jobs: list[_Job[object]]) -> None:
        seconds = self._clock()
        session = Session(self._store, self._rules, datetime.fromtimestamp(seconds, UTC), self._latest)
        entries: list[Entry] = []
        self._store.begin()
        for job in jobs:
            entries += self._try(job, session, seconds)
        if entries:
            self._record.append(entries)
            self._latest = max(seconds, self._latest)  # one set back stays behind until it is right
        if seconds >= self._forget_at:
            self._forget_at = seconds + _FORGET_SECONDS
            self._store.forget(seconds)
        self._store.commit(self._record.size)

    def _try(self, job: _Job[object], session: Session, seconds: float) -> Sequence[Entry]:
        """Decide one; what it raises ends it alone: it has changed nothing by then."""
        try:
            done = job.work(session)
        except EgsError as error:
            job.done = error
            return ()
        self._store.apply(done.entries, seconds)
        job.done = done
        return done.entries


def _tell(jobs: list[_Job[object]]) -> None:
    """Tell what requests came to, in the event loop's thread."""
    for job in jobs:
        if job.future.done():
            continue  # its asker has gone
        if isinstance(job.done, Result):
            job.future.set_result(job.done.answer)
        else:
            job.future.set_exception(job.done)


def _unavailable(error: Exception) -> EgsError:
    if isinstance(error, EgsError):
        return error
    return EgsError(
        Reason.RECORD_UNAVAILABLE,
        "the authority could not decide: its state or record failed",
        "Look at its log: journalctl -u egs-authority",
    )
