"""The record's one writer: an append returns when its entries are durable, or it raises.

An append is one frame of the journal: its entries, and the tree that they end; one write and one sync. A thread then signs the
checkpoint over what is durable, publishes it as a log (publisher.py), and trims the journal. So nothing is ever signed that could
be lost, and there are no two trees of one size that the log's key has signed: whatever a crash took away was in no checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from egs_kernel.audit.checkpoint import CHECKPOINT, Checkpoint
from egs_kernel.audit.claim import claim, make_folder, unavailable
from egs_kernel.audit.files import Files
from egs_kernel.audit.growth import grow
from egs_kernel.audit.lines import decode, timestamp
from egs_kernel.audit.reader import Reader
from egs_kernel.audit.recover import pending_gaps, recover, settle
from egs_kernel.audit.state import write_state
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason, Revoked
from egs_kernel.ownership import require_private_folder

if TYPE_CHECKING:
    from types import TracebackType

    from egs_kernel.audit.entries import Entry, Recorded
    from egs_kernel.audit.growth import Growth
    from egs_kernel.audit.logkeys import LogKeys
    from egs_kernel.audit.merkle import Frontier
    from egs_kernel.audit.tiles import Tile

GATHER_SECONDS: Final = 0.05
"""How long publishing waits when something comes: what is under way then (a launch) is not to share the processor with it."""
PUBLISH_SECONDS: Final = 0.2
"""How long publishing waits for more to come, when it has just published."""
RETRY_SECONDS: Final = 1.0
"""How long it waits when it could not."""
BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""With so much to be published, an append publishes first: memory stays bounded, and a full disk is noticed."""
SAVE_EVERY: Final = 4096
"""Entries between states: what a start after a crash has to count anew."""
TRIM_FILES: Final = 4
"""Files of the journal that are trimmed together: one sync of everything for all of them."""
_DAY: Final = 24 * 3600 * 1_000_000_000

Clock = Callable[[], int]
"""CLOCK_REALTIME in nanoseconds."""


class Record:
    """An open record. Use `Record.open`; safe for several threads, one process.

    Attributes:
        degraded: why what is durable could not be published, or None. Entries are safe all the same, but when too much has
            come together nothing is appended before that works again.
    """

    def __init__(self, folder: Path, lock: int, keys: LogKeys, files: Files, clock: Clock) -> None:
        recovered = recover(folder, files, keys.listed.origin, keys.listed.verifiers)
        self._folder = folder
        self._guard = lock
        self._keys = keys
        self._files = files
        self._clock = clock
        self._durable = self._expected = recovered.frontier
        self._counted = recovered.counted
        self._segments = recovered.segments
        self._publisher = recovered.publisher
        self._edge = recovered.edge
        self._backlog: list[tuple[Tile, bytes]] = []
        self._backlog_bytes = 0
        self._published = -1
        self._signed_once = (folder / CHECKPOINT).exists()
        self._growing = threading.Lock()  # what is expected to be durable next; taken before the next one
        self._lock = threading.Lock()  # what is durable, and the journal
        self._publishing = threading.Lock()  # the publisher; taken before the other ones
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.degraded: str | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        keys: LogKeys,
        *,
        clock: Clock = time.time_ns,
        files: Files | None = None,
        in_background: bool = True,
    ) -> Record:
        """Open the record in `folder` for appending, creating it when there is none.

        Checks what was written since tiles were last synced. A torn tail is moved to a file of its own and a `gap` entry
        says so before anything else is appended.

        Args:
            folder: the record's folder (`Paths.record`).
            keys: who signs its checkpoints, and the origin.
            clock: CLOCK_REALTIME, nanoseconds.
            files: the disk.
            in_background: publish by a thread; otherwise whoever calls `publish` does.

        Raises:
            UnsafePath: others could change the folder.
            RecordError: DAEMON_RUNNING (another writer), RECORD_CORRUPT, or RECORD_UNAVAILABLE.
            NoteError: its checkpoint is not signed by these keys.
        """
        disk = files or Files()
        lock = -1
        record = None
        try:
            make_folder(folder)
            require_private_folder(folder)
            lock = claim(folder)
            record = cls(folder, lock, keys, disk, clock)
            record._report_torn_tails()
        except BaseException as error:
            if record is not None:
                record._segments.close()
            if lock >= 0:
                os.close(lock)
            if isinstance(error, OSError):
                raise unavailable(folder, error) from error
            raise
        if in_background:
            record._start()
        return record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Entries in the record, all of them durable."""
        return self._durable.size

    @property
    def first(self) -> int:
        """The first entry that is here: those before it were moved to cold storage."""
        return Reader(self._folder).first

    @property
    def length(self) -> int:
        """Bytes of those entries."""
        return self._counted.length

    @property
    def failed(self) -> bool:
        """Whether nothing can be appended any more until the record is opened again."""
        return self._segments.failed

    @property
    def uses(self) -> dict[str, int]:
        """Uses spent by artifact id, as far as the record has them still in force."""
        return self._counted.tally.uses

    @property
    def revoked(self) -> Revoked:
        """What the record says is revoked, but for what lists say."""
        return self._counted.tally.revoked

    @property
    def lists(self) -> dict[str, tuple[int, str]]:
        """The number and the digest of the newest revocation list of each scope."""
        return self._counted.tally.lists

    @property
    def policies(self) -> dict[str, tuple[int, str]]:
        """The version and the digest of the newest policy set of each name that was active."""
        return self._counted.tally.policies

    @property
    def policy(self) -> str:
        """The digest of the active policy set; "": there is none."""
        return self._counted.tally.policy

    def append(self, entries: Sequence[Entry]) -> tuple[int, ...]:
        """Append entries, all or none, and return when they are durable.

        One sync for the whole batch: collect what arrives while a sync is under way. Of two threads, one makes its entries
        while those of the other are synced.

        Returns:
            Their sequence numbers.

        Raises:
            RecordError: RECORD_UNAVAILABLE: none of them is acknowledged (a full disk, a failing disk, an
                entry that is too large); RECORD_CORRUPT: somebody else changed the journal.
        """
        if self._backlog_bytes > BACKLOG_BYTES:
            self.publish()
        with self._growing:
            self._require_usable()
            if not entries:
                return ()
            growth = self._grow(self._expected, entries)
            self._lock.acquire()  # before the next one grows: what is made in an order is written in that order
            self._expected = growth.tree
        try:
            self._require_usable()
            if growth.base is not self._durable:  # what it was to follow did not become durable
                growth = self._grow(self._durable, entries)
                self._expected = growth.tree
            self._commit(growth, entries)
        finally:
            self._expected = self._durable
            self._lock.release()
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is not None and not self._signed_once:  # a record without a checkpoint is nobody's
            with contextlib.suppress(RecordError):  # `degraded` says it; the entries are durable
                self.publish()
        return growth.seqs

    def read(self, since_seq: int = 0) -> Iterator[Recorded]:
        """Entries from `since_seq` on, up to what is durable now.

        Raises:
            RecordError: an entry is damaged, or a later version wrote it.
        """
        end = self._durable.size
        if since_seq < end:
            for seq, line in zip(range(since_seq, end), Reader(self._folder).lines(since_seq), strict=False):
                yield decode(line, f"entry {seq}")

    def publish(self) -> None:
        """Write out as a log what is durable, and trim the journal.

        Raises:
            RecordError: RECORD_UNAVAILABLE: that did not work; what is missing is written by the next call.
        """
        with self._publishing:
            with self._lock:
                full, self._backlog = self._backlog, []
                partial = [(tile, self._edge.content(tile)) for tile in self._edge.partial()]
                waited = self._backlog_bytes
                durable = self._durable
                state = None
                if durable.size >= self._counted.saved + SAVE_EVERY or (
                    self._closed.is_set() and durable.size > self._counted.saved
                ):
                    self._counted.tally.forget_expired(timestamp(self._clock() - _DAY))
                    state = self._counted.state(durable.size, durable.root())
            self._publisher.take(full)
            try:
                if durable.size and durable.size != self._published:
                    self._publisher.publish(self._signed(durable), partial)
                    self._published = durable.size
                    self._signed_once = True
                if state is not None:
                    write_state(self._folder, self._files, state)
                    self._counted.saved = state.size
                self._trim()
            except OSError as error:
                self.degraded = f"the record in {self._folder} cannot be published: {error.strerror or error}"
                raise unavailable(self._folder, error) from error
            self.degraded = None
            with self._lock:
                self._backlog_bytes -= waited

    def close(self) -> None:
        """Publish what is left, and let the record go. Entries need no close: they are durable."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if not self.failed:
                self.publish()
        except RecordError:
            pass  # `degraded` says it; the next start publishes
        finally:
            self._segments.close()
            os.close(self._guard)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._publish_on, name="egs-publish", daemon=True)
        self._wake.set()  # what the last run did not publish
        self._thread.start()

    def _publish_on(self) -> None:
        while True:
            self._wake.wait()
            self._closed.wait(GATHER_SECONDS)
            self._wake.clear()
            if self._closed.is_set():
                return
            try:
                self.publish()
            except RecordError:
                self._wake.set()
                self._closed.wait(RETRY_SECONDS)
            else:
                self._closed.wait(PUBLISH_SECONDS)

    def _trim(self) -> None:
        """Sync the tiles and remove the journal's files that they make superfluous, several at once."""
        full = self._publisher.full
        if self._segments.trimmable(full) < TRIM_FILES:
            return
        try:
            self._files.sync_all(self._folder)
        except OSError:
            self._segments.failed = True  # which of the tiles are on the disk, nobody knows now
            raise
        with self._lock:
            self._counted.synced = full
            state = self._counted.state(self._durable.size, self._durable.root())
        write_state(self._folder, self._files, state)
        self._counted.saved = state.size
        with self._lock:
            self._segments.trim(full)

    def _grow(self, base: Frontier, entries: Sequence[Entry]) -> Growth:
        return grow(base, entries, timestamp(self._clock()), self._keys.listed.origin)

    def _signed(self, tree: Frontier) -> bytes:
        """The checkpoint over a tree that is durable."""
        return Checkpoint(self._keys.listed.origin, tree.size, tree.root()).sign(*self._keys.signers())

    def _commit(self, growth: Growth, entries: Sequence[Entry]) -> None:
        """Make a growth of the durable tree durable. With the lock."""
        try:
            self._segments.append(growth.base.size, growth.frame)
        except OSError as error:
            raise unavailable(self._folder, error) from error
        self._durable = growth.tree
        self._backlog += self._edge.grow(growth.batch)
        self._backlog_bytes += len(growth.frame)
        for entry in entries:
            self._counted.tally.count(entry)
        self._counted.length += growth.length

    def _require_usable(self) -> None:
        if self.failed or self._closed.is_set():
            raise RecordError(
                Reason.RECORD_UNAVAILABLE,
                "the record takes no more entries: an earlier write could not be made durable or taken back",
                "Check the disk (dmesg, df), then restart egsd: it verifies the record before it authorizes.",
            )

    def _report_torn_tails(self) -> None:
        for path, gap in pending_gaps(self._folder):
            self.append([gap])
            settle(path, self._files)
