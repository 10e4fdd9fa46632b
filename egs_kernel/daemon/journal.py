"""The record as the daemon's tasks use it: one writer thread, one sync for all that wait.

The event loop never waits for a disk. What is counted (uses) counts from the moment it is
handed in, before it is durable, so that two launches cannot both spend the last use; nothing is handed
back when a write fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import (
    ArtifactChange,
    Attempt,
    Code,
    Decision,
    Exec,
    Gap,
    Outcome,
    Part,
    Verification,
)
from egs_kernel.audit.parts import REFERENCE, envelope_of
from egs_kernel.audit.tally import Tally
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.gate.grants import artifact_key

if TYPE_CHECKING:
    from collections.abc import Collection

    from egs_kernel.audit.entries import Entry, EntryType
    from egs_kernel.audit.record import Record

_RECENT: Final = 20_000
"""Entries that a restarted daemon looks through: more than the gate's ring buffer holds."""


@dataclass(frozen=True)
class _Submission:
    entries: tuple[Entry, ...]
    durable: asyncio.Future[None]
    essential: bool
    since: float


class Journal:
    """Appends to the record. Belongs to one event loop.

    Args:
        record: what to append to.

    Attributes:
        failure: set with the error when something that must not be lost could not be recorded. The daemon
            then ends: the gate refuses everything once its heartbeat is old.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="egs-record")
        self._waiting: list[_Submission] = []
        self._writing: asyncio.Task[None] | None = None
        self._oldest: float | None = None
        self._tally = Tally()
        self._uses = record.uses
        self.failure: asyncio.Future[RecordError] = self._loop.create_future()

    def uses(self) -> dict[str, int]:
        """Uses spent by artifact id, those that are being recorded included."""
        spent = dict(self._uses)
        for artifact_id, count in self._tally.uses.items():
            spent[artifact_id] = spent.get(artifact_id, 0) + count
        return spent

    @property
    def size(self) -> int:
        """Durable entries."""
        return self._record.size

    @property
    def bytes(self) -> int:
        """Size of the durable entries."""
        return self._record.length

    @property
    def degraded(self) -> str | None:
        """Why the record cannot be published as a log; its entries are safe."""
        return self._record.degraded

    def recent(self) -> list[EntryType]:
        """The last of what the gate and the daemon did, the oldest first. Reads a disk: for a thread."""
        since = max(0, self._record.size - _RECENT)
        return [
            item.entry
            for item in self._record.read(since)
            if isinstance(item.entry, Exec | Outcome | Code | Attempt | Decision | Gap)
        ]

    def artifacts(self, keys: Collection[int]) -> list[tuple[ArtifactChange, tuple[str, ...]]]:
        """The artifacts with these keys (gate/grants.py), whole, with the signers that counted. Reads a disk: for a thread.

        Those whose entries were moved to cold storage are not found.
        """
        wanted = set(keys)
        changes: dict[str, ArtifactChange] = {}
        signers: dict[str, tuple[str, ...]] = {}
        parts: list[Part] = []
        first = self._record.first
        whole_parts = not first  # what is in parts may be here in part
        for item in self._record.read(first):
            entry = item.entry
            if isinstance(entry, Part):
                parts.append(entry)
                continue
            if (
                isinstance(entry, ArtifactChange)
                and entry.envelope
                and artifact_key(entry.artifact_id) in wanted
                and (whole_parts or not entry.envelope.startswith(REFERENCE))
            ):
                whole = envelope_of(entry.envelope, parts)
                changes[entry.artifact_id] = msgspec.structs.replace(entry, envelope=whole)
            elif isinstance(entry, Verification) and entry.artifact_id in changes and entry.signers:
                signers[entry.artifact_id] = entry.signers
            parts.clear()
            whole_parts = True
        return [(change, signers.get(name, ())) for name, change in changes.items()]

    def delay(self) -> float:
        """Seconds that the oldest submission has been waiting to become durable."""
        return 0.0 if self._oldest is None else self._loop.time() - self._oldest

    def submit(self, entries: Sequence[Entry], *, essential: bool = False) -> asyncio.Future[None]:
        """Hand in entries; the future is done when they are durable.

        Args:
            entries: appended in this order, all or none.
            essential: they happened already and must not be lost: failing to record them ends the daemon.
        """
        for entry in entries:
            self._tally.count(entry)
        durable: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(_Submission(tuple(entries), durable, essential, self._loop.time()))
        if self._oldest is None:
            self._oldest = self._waiting[0].since
        if self._writing is None:
            self._writing = self._loop.create_task(self._write())
        return durable

    async def append(self, *entries: Entry) -> None:
        """Hand in entries and return when they are durable.

        Raises:
            RecordError: they could not be recorded; nothing that depends on them may happen.
        """
        # shield: who asked may hang up, but what was handed in is recorded all the same
        await asyncio.shield(self.submit(entries))

    async def flush(self) -> None:
        """Return when everything handed in so far is durable, or has failed."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Flush, and let the record go."""
        await self.flush()
        await self._loop.run_in_executor(self._thread, self._record.close)
        self._thread.shutdown()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._oldest = batch[0].since
            if not await self._write_together(batch):
                for submission in batch:
                    await self._write_alone(submission)
        self._oldest = None
        self._writing = None

    async def _write_together(self, batch: list[_Submission]) -> bool:
        entries = [entry for submission in batch for entry in submission.entries]
        try:
            await self._loop.run_in_executor(self._thread, self._record.append, entries)
        except EgsError:
            return False  # one of them may be at fault: each for itself then
        for submission in batch:
            _resolve(submission.durable, None)
        return True

    async def _write_alone(self, submission: _Submission) -> None:
        try:
            await self._loop.run_in_executor(self._thread, self._record.append, submission.entries)
        except RecordError as error:
            _resolve(submission.durable, error)
            if (submission.essential or self._record.failed) and not self.failure.done():
                self.failure.set_result(error)
        else:
            _resolve(submission.durable, None)


def _resolve(future: asyncio.Future[None], error: RecordError | None) -> None:
    if future.done():
        return  # cancelled with the loop
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # whoever does not wait for it is not to be told by the interpreter's last words
