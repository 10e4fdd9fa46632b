"""The record's one writer: an append returns when its entries are durable, or it raises."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from egs_kernel.audit.anchor import HEAD, head_line, sync_folder, write_checkpoint
from egs_kernel.audit.chain import Position, after
from egs_kernel.audit.lines import encode, timestamp
from egs_kernel.audit.reader import RECORD_FILE, read
from egs_kernel.audit.recover import MAX_APPEND, pending_gaps, recover, settle
from egs_kernel.errors import RecordError, UnsafePath
from egs_kernel.model import Reason
from egs_kernel.ownership import require_private_folder

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from egs_kernel.audit.entries import Entry, Recorded

CHECKPOINT_EVERY: Final = 4096
"""Entries between checkpoints: what a start after a crash has to verify."""
_DAY: Final = 24 * 3600 * 1_000_000_000

Clock = Callable[[], int]
"""CLOCK_REALTIME in nanoseconds."""
Sync = Callable[[int], None]
"""fdatasync(2)."""


class Record:
    """An open record. Use `Record.open`; safe for several threads, one process.

    Attributes:
        degraded: why `head` or the checkpoint could not be written, or None. Entries are safe all the
            same; the next start takes longer.
    """

    def __init__(self, folder: Path, file: BinaryIO, head: BinaryIO, *, clock: Clock, sync: Sync) -> None:
        recovered = recover(file, folder)
        self._folder = folder
        self._file = file
        self._head = head
        self._clock = clock
        self._sync = sync
        self._position = recovered.position
        self._tally = recovered.tally
        self._lock = threading.Lock()
        self._failed = False
        self._uncovered = 0
        self.degraded: str | None = None

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = time.time_ns, sync: Sync = os.fdatasync) -> Record:
        """Open the record in `folder` for appending, creating it when there is none.

        Verifies what was written since the last checkpoint. A torn tail is moved to a file of its own and
        a `gap` entry says so before anything else is appended.

        Args:
            folder: the record's folder (`Paths.record`).
            clock: CLOCK_REALTIME, nanoseconds.
            sync: makes a descriptor's data durable.

        Raises:
            UnsafePath: others could change the folder or its files.
            RecordError: DAEMON_RUNNING (another writer), RECORD_CORRUPT, or RECORD_UNAVAILABLE.
        """
        try:
            _make_folder(folder)
            require_private_folder(folder)
            file = _open_private(folder / RECORD_FILE, extra=os.O_APPEND)
        except OSError as error:
            raise _unavailable(folder, error) from error
        head: BinaryIO | None = None
        try:
            _lock(file, folder)
            head = _open_private(folder / HEAD)
            sync_folder(folder)
            record = cls(folder, file, head, clock=clock, sync=sync)
            record._report_torn_tails()
        except BaseException as error:
            file.close()
            if head is not None:
                head.close()
            if isinstance(error, OSError):
                raise _unavailable(folder, error) from error
            raise
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
        return self._position.size

    @property
    def head(self) -> Position:
        """The last durable line."""
        return self._position

    @property
    def failed(self) -> bool:
        """Whether nothing can be appended any more until the record is opened again."""
        return self._failed

    @property
    def uses(self) -> dict[str, int]:
        """Uses spent, by artifact id, of every artifact with limited uses that is still in force."""
        return self._tally.uses

    @property
    def revoked(self) -> frozenset[str]:
        """Artifact ids that the record says are revoked."""
        return self._tally.revoked

    def append(self, entries: Sequence[Entry]) -> tuple[int, ...]:
        """Append entries, all or none, and return when they are durable.

        One sync for the whole batch: collect what arrives while a sync is under way.

        Returns:
            Their sequence numbers.

        Raises:
            RecordError: RECORD_UNAVAILABLE: none of them is acknowledged (a full disk, a failing disk, an
                entry that is too large); RECORD_CORRUPT: somebody else changed the file.
        """
        with self._lock:
            self._require_usable()
            if not entries:
                return ()
            first = self._position.size
            lines, position = self._frame(entries)
            self._write(lines)
            self._position = position
            for entry in entries:
                self._tally.count(entry)
            self._note_head(len(entries))
            return tuple(range(first, position.size))

    def read(self, since_seq: int = 0) -> Iterator[Recorded]:
        """Entries from `since_seq` on, up to what is durable now.

        Raises:
            RecordError: an entry is damaged, or a later version wrote it.
        """
        end = self._position.size
        for recorded in read(self._folder, since_seq):
            if recorded.seq >= end:
                return
            yield recorded

    def close(self) -> None:
        """Write the checkpoint and let the record go. Entries need no close: they are durable."""
        with self._lock:
            if self._file.closed:
                return
            if not self._failed:
                self._note_checkpoint()
            self._head.close()
            self._file.close()

    def _frame(self, entries: Sequence[Entry]) -> tuple[bytes, Position]:
        now = timestamp(self._clock())
        position = self._position
        lines = bytearray()
        for entry in entries:
            line = encode(entry, seq=position.seq + 1, prev=position.hash, time=now)
            position = after(position, line)
            lines += line
            lines += b"\n"
        if len(lines) > MAX_APPEND:
            raise RecordError(
                Reason.RECORD_UNAVAILABLE,
                f"one append of {len(lines)} bytes; at most {MAX_APPEND} fit",
                "Append fewer entries at once.",
            )
        return bytes(lines), position

    def _require_usable(self) -> None:
        if self._failed or self._file.closed:
            raise RecordError(
                Reason.RECORD_UNAVAILABLE,
                "the record takes no more entries: an earlier write could not be made durable or taken back",
                "Check the disk (dmesg, df), then restart egsd: it verifies the record before it authorizes.",
            )
        size = os.fstat(self._file.fileno()).st_size
        if size != self._position.end:
            self._failed = True
            raise RecordError(
                Reason.RECORD_CORRUPT,
                f"the record has {size} bytes, not the {self._position.end} written: somebody changed it",
                "Find out who writes to the record's folder, run `egs audit verify`, then restart egsd.",
            )

    def _write(self, lines: bytes) -> None:
        descriptor = self._file.fileno()
        synced = False
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            synced = True  # from here on a failure leaves the page cache in an unknown state
            self._sync(descriptor)
        except OSError as error:
            self._take_back(poisoned=synced)
            raise _unavailable(self._folder, error) from error
        except BaseException:
            self._take_back(poisoned=True)
            raise

    def _take_back(self, *, poisoned: bool) -> None:
        """Cut the file back to what is durable.

        A failed sync ends this writer: the kernel may take pages for clean that never reached the disk.
        """
        try:
            os.ftruncate(self._file.fileno(), self._position.end)
        except OSError:
            poisoned = True  # the half-written lines stay: the next open sets them aside
        self._failed = poisoned

    def _note_head(self, count: int) -> None:
        try:
            os.pwrite(self._head.fileno(), head_line(self._position), 0)
            self.degraded = None
        except OSError as error:
            self.degraded = f"{self._folder / HEAD}: {error.strerror}"
        self._uncovered += count
        if self._uncovered >= CHECKPOINT_EVERY:
            self._note_checkpoint()

    def _note_checkpoint(self) -> None:
        if self._position.seq < 0:
            return
        self._tally.forget_expired(timestamp(self._clock() - _DAY))
        try:
            write_checkpoint(self._folder, self._position, self._tally)
            self._uncovered = 0
        except OSError as error:
            self.degraded = f"the checkpoint in {self._folder}: {error.strerror}"

    def _report_torn_tails(self) -> None:
        for path, gap in pending_gaps(self._folder):
            self.append([gap])
            settle(path)


def _make_folder(folder: Path) -> None:
    folder = folder.absolute()
    if os.path.lexists(folder):
        return
    if not os.path.lexists(folder.parent):
        _make_folder(folder.parent)
    require_private_folder(folder.parent)
    folder.mkdir(mode=0o750)
    sync_folder(folder.parent)


def _open_private(path: Path, extra: int = 0) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | extra
    try:
        descriptor = os.open(path, flags, 0o640)
    except OSError as error:
        if path.is_symlink():
            raise UnsafePath(
                Reason.PATH_UNSAFE, f"{path} is a symbolic link", "Replace the link by the file itself."
            ) from error
        raise
    status = os.fstat(descriptor)
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_IROTH)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or shared:
        os.close(descriptor)
        raise UnsafePath(
            Reason.PATH_UNSAFE,
            f"{path} is not a file that only its owner can write and only its group can read",
            f"If nobody else has changed it: chown root {path} && chmod 0640 {path}",
        )
    return os.fdopen(descriptor, "r+b")


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordError(
            Reason.DAEMON_RUNNING,
            f"another process writes the record in {folder}",
            "One egsd at a time: `egs status` asks the one that runs. EGS_ROOT keeps instances apart.",
        ) from error


def _unavailable(folder: Path, error: OSError) -> RecordError:
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"the record in {folder} cannot be written: {error.strerror or error}",
        f"Free space or repair the disk (df {folder}; dmesg); until then every authorization is refused.",
    )
