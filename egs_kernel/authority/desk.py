"""Where requests are decided: one after the other, and made durable together.

What a request comes to is in the record before anybody learns of it. One append, one sync, for all requests that came while
the last one was under way: with many askers the disk is waited for once for all of them. A process that is killed has
recorded all that a request came to, or nothing of it.

Deciding is done in the event loop's thread, where it takes less than a millisecond: a thread of its own would take the
interpreter from the loop, and the other way round, with every signature. Only the disk is waited for elsewhere; and, as long as
it signs, a key that is not in a file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """The one that decides. It belongs to the event loop's thread.

    Args:
        record: what everything goes into first.
        store: what has to be found again.
        book: what is gone by.
        latest: when the last entry of the record was written, Unix seconds.
        slow: deciding waits for something, such as a token that signs: the loop goes on meanwhile.
        clock: Unix seconds.
    """

    def __init__(  # noqa: PLR0913 - what it is made of, by name
        self,
        record: Record,
        store: Store,
        book: RuleBook,
        *,
        latest: float,
        slow: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._record = record
        self._store = store
        self._book = book
        self._latest = latest
        self._slow = slow
        self._clock = clock
        self._jobs: deque[_Job[object]] = deque()
        self._served: asyncio.Task[None] | None = None
        self._elsewhere = ThreadPoolExecutor(1, "egs-desk")
        self._forget_at = 0.0

    def submit(self, work: Callable[[Session], Result[T]]) -> asyncio.Future[T]:
        """Have a request decided.

        Args:
            work: decides, with the state to itself. What it raises as `EgsError` is the answer, and nothing is recorded.

        Raises:
            Refused: RATE_LIMITED: too many wait already.
        """
        if len(self._jobs) >= MOST_WAITING:
            raise Refused(
                Reason.RATE_LIMITED, f"{MOST_WAITING} requests wait already", "Ask again in a second."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.append(_Job(work, future))  # type: ignore[arg-type] # each job fits its own future
        if self._served is None or self._served.done():
            self._served = loop.create_task(self._serve())
        return future

    def close(self) -> None:
        """Let go of the thread that waits for the disk."""
        self._elsewhere.shutdown()

    async def _serve(self) -> None:
        while self._jobs:
            jobs = [self._jobs.popleft() for _ in range(min(_TOGETHER, len(self._jobs)))]
            await self._settle(jobs)

    async def _settle(self, jobs: list[_Job[object]]) -> None:
        """Decide them, make that durable, and tell. When that fails with several, each is tried alone."""
        try:
            await self._work(jobs)
        except Exception as error:  # noqa: BLE001 - the desk must stand, and what was not recorded was not decided
            self._store.rollback()
            if len(jobs) > 1:
                for job in jobs:
                    await self._settle([job])
                return
            _log.error("a request could not be decided", exc_info=error)
            jobs[0].done = _unavailable(error)
        _tell(jobs)

    async def _work(self, jobs: list[_Job[object]]) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._clock()
        session = Session(self._store, self._book, datetime.fromtimestamp(seconds, UTC), self._latest)
        if self._slow:
            entries = await loop.run_in_executor(self._elsewhere, self._decide, jobs, session, seconds)
        else:
            entries = self._decide(jobs, session, seconds)
        if entries:
            await loop.run_in_executor(self._elsewhere, self._record.append, entries)
            self._latest = max(seconds, self._latest)  # one set back stays behind until it is right
        self._store.commit(self._record.size)

    def _decide(self, jobs: list[_Job[object]], session: Session, seconds: float) -> list[Entry]:
        entries: list[Entry] = []
        self._store.begin()
        for job in jobs:
            entries += self._try(job, session, seconds)
        if seconds >= self._forget_at:
            self._forget_at = seconds + _FORGET_SECONDS
            self._store.forget(seconds)
        return entries

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
    """Tell what requests came to,."""
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
