"""An index of the record in SQLite, so that a question about one process does not read all of it.

It can be deleted at any time and is never an answer: it names entries, which are then read from the record and compared
with the question. Whoever reads the record keeps it up; what does not fit the record is built anew.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, Self

import msgspec

from egs_kernel.audit.lines import decode
from egs_kernel.audit.rows import COLUMNS, Boots, read_line, row_of
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from egs_kernel.audit.entries import Recorded

VERSION: Final = 1
_BATCH: Final = 20_000
_BUSY_SECONDS: Final = 60.0

_APPLICATION: Final = 0x45475349  # "EGSI"
_TABLES: Final = (
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE state (size INTEGER, last TEXT, boot INTEGER, boot_id TEXT) STRICT",
    "CREATE TABLE boots (number INTEGER PRIMARY KEY, boot_id TEXT NOT NULL) STRICT",
    f"CREATE TABLE entries ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())}) STRICT",
    "INSERT INTO state VALUES (0, NULL, 0, NULL)",
)
_INSERT: Final = f"INSERT INTO entries VALUES ({', '.join(f':{name}' for name in COLUMNS)})"  # noqa: S608 - names from above
_SEARCHED: Final = ("pid", "peer", "artifact, type", "request", "execution", "parent")
"""Columns by which a question finds few of many entries; the others are looked through."""
_ID_DIGITS: Final = 64
_CONDITIONS: Final = {name: (f"{name} = ?", 1) for name in COLUMNS} | {
    "artifact": ("artifact = ?", 1),
    "beginning": ("artifact >= ? AND artifact < ? || 'g'", 2),  # beyond every hexadecimal digit
    "anyone": (
        "seq IN (SELECT seq FROM entries WHERE pid = ? UNION SELECT seq FROM entries WHERE peer = ?)",
        2,
    ),
}
"""What a question about each column is in SQL, and how many values it takes."""
_State = tuple[Annotated[int, msgspec.Meta(ge=0)], str | None, Annotated[int, msgspec.Meta(ge=0)], str | None]
"""The row of the table `state`."""
_DAMAGED: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What a damaged file raises: SQLite names what is wrong in it, in bytes that may be no text any more."""


class Log(Protocol):
    """The record, as the index reads it."""

    @property
    def size(self) -> int:
        """Entries."""

    def lines(self, since: int) -> Iterator[bytes]:
        """The bytes of each entry from `since` on."""

    def line(self, seq: int) -> bytes:
        """The bytes of one entry."""


class Index:
    """An open index that is up to date with its record. Use `Index.open`."""

    def __init__(self, database: sqlite3.Connection, log: Log, place: Path | None) -> None:
        self._database = database
        self._log = log
        self._place = place

    @classmethod
    @contextmanager
    def open(
        cls, place: Path | None, log: Log, *, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Iterator[Self]:
        """The index of `log` at `place`, brought up to date; built anew when it is damaged, or another record's.

        Args:
            place: its file; None keeps it in memory.
            log: the record.
            progress: called now and then with the entries done and in all.

        Raises:
            EgsError: the file cannot be written (NOT_PERMITTED); an entry is damaged.
        """
        database = _connect(place)
        try:
            index = cls(database, log, place)
            if not index._is_of(log):
                database.close()
                remove(place)
                database = _connect(place)
                index = cls(database, log, place)
            index._update(progress)
            yield index
        except _DAMAGED as error:
            raise _unusable(place, error) from error
        finally:
            database.close()

    def numbers(
        self, *, below: int | None = None, last: bool = False, since: int | None = None, **wanted: Any
    ) -> Iterator[int]:
        """The numbers of the entries with these values in their columns, in order.

        Args:
            below: only entries with smaller numbers.
            last: the last of them first.
            since: only those of this time (microseconds since 1970) and later.
            wanted: values by column. `artifact` is how an id begins; `anyone` is a process that asked or is asked about.
        """
        conditions, values = ["1"], list[Any]()
        for column, value in wanted.items():
            is_beginning = column == "artifact" and len(value) < _ID_DIGITS
            condition, count = _CONDITIONS["beginning" if is_beginning else column]
            conditions.append(condition)
            values += [value] * count
        for condition, bound in (("seq < ?", below), ("time >= ?", since)):
            if bound is not None:
                conditions.append(condition)
                values.append(bound)
        order = "DESC" if last else "ASC"
        statement = f"SELECT seq FROM entries WHERE {' AND '.join(conditions)} ORDER BY seq {order}"  # noqa: S608 - conditions from a closed set
        for (seq,) in self._database.execute(statement, values):
            yield seq

    def find(self, *, below: int | None = None, last: bool = False, **wanted: Any) -> Iterator[Recorded]:
        """As `numbers`, the entries themselves, out of the record; `anyone` cannot be asked for.

        Raises:
            EgsError: an entry is not what the index says of it.
        """
        for seq in self.numbers(below=below, last=last, **wanted):
            line = self._log.line(seq)
            row = row_of(read_line(line, seq), 0)
            for column, value in wanted.items():
                found = row[column]
                if (
                    column != "boot"
                    and found != value
                    and not (column == "artifact" and found.startswith(value))
                ):
                    raise _unusable(
                        self._place, ValueError(f"it says of entry {seq} what the entry does not say")
                    )
            yield decode(line)

    def entry(self, seq: int) -> Recorded:
        """One entry, out of the record.

        Raises:
            EgsError: NOT_FOUND: there is none with this number.
        """
        if not 0 <= seq < self._log.size:
            raise EgsError(
                Reason.NOT_FOUND, f"there is no entry {seq}", f"The record has {self._log.size} entries."
            )
        return decode(self._log.line(seq))

    def boot_of(self, seq: int) -> int:
        """The number of the boot that an entry is of; 0 before the first posture."""
        row = self._database.execute("SELECT boot FROM entries WHERE seq = ?", (seq,)).fetchone()
        return int(row[0])

    def boot_id(self, number: int) -> str | None:
        """The kernel's id of a boot."""
        row = self._database.execute("SELECT boot_id FROM boots WHERE number = ?", (number,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def last_boot(self) -> int:
        """The number of the last boot in the record."""
        return int(self._database.execute("SELECT boot FROM state").fetchone()[0])

    @property
    def size(self) -> int:
        """Entries that are in it."""
        return int(self._database.execute("SELECT size FROM state").fetchone()[0])

    def compare(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Compare all of it with the record: nobody else would miss an entry that somebody took out of it.

        Raises:
            RecordError: RECORD_CORRUPT: with the first entry of which it says something else.
        """
        found = self._database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise self._wrong(str(found))
        size, boots, ids = self.size, Boots(), list[tuple[int, str | None]]()
        rows = self._database.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq")  # noqa: S608 - names of ours
        for seq, line in zip(range(size), self._log.lines(0), strict=False):
            entry = read_line(line, seq)
            if boots.take(entry):
                ids.append((boots.number, boots.boot_id))
            if next(rows, None) != tuple(row_of(entry, boots.number).values()):
                raise self._wrong(f"at entry {seq}")
            if seq % _BATCH == 0:
                progress(seq, size)
        if next(rows, None) is not None:
            raise self._wrong(f"it has entries after the last one, {size - 1}")
        if self._database.execute("SELECT number, boot_id FROM boots ORDER BY number").fetchall() != ids:
            raise self._wrong("its boots")

    def _wrong(self, where: str) -> RecordError:
        return RecordError(
            Reason.RECORD_CORRUPT,
            f"the index {self._place} does not say what the record says: {where}",
            "The record is not affected. Build the index anew: egs audit reindex",
        )

    # -- keeping it up ---------------------------------------------------------------------------

    def _is_of(self, log: Log) -> bool:
        """Whether it is an index over what this record begins with."""
        found = self._database.execute("SELECT size, last, boot, boot_id FROM state").fetchall()
        try:
            ((size, last, _boot, _boot_id),) = msgspec.convert(found, list[_State])
        except ValueError:  # msgspec's are: a damaged file has values of other types, or none
            return False
        return size == 0 or (size <= log.size and last == _digest(log.line(size - 1)))

    def _update(self, progress: Callable[[int, int], None]) -> None:
        total = self._log.size
        if self.size >= total:
            return
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            # Somebody else may have been faster.
            size, last, boot, boot_id = database.execute(
                "SELECT size, last, boot, boot_id FROM state"
            ).fetchone()
            boots = Boots(boot, boot_id)
            rows: list[dict[str, Any]] = []
            line = b""
            for line in self._log.lines(size):
                found = read_line(line, size)
                if boots.take(found):
                    database.execute("INSERT INTO boots VALUES (?, ?)", (boots.number, boots.boot_id))
                rows.append(row_of(found, boots.number))
                size += 1
                if len(rows) >= _BATCH:
                    database.executemany(_INSERT, rows)
                    rows.clear()
                    progress(size, max(total, size))
            database.executemany(_INSERT, rows)
            if line:
                last = _digest(line)
            database.execute(
                "UPDATE state SET size = ?, last = ?, boot = ?, boot_id = ?",
                (size, last, boots.number, boots.boot_id),
            )
            for columns in _SEARCHED:
                first = columns.partition(",")[0]
                database.execute(
                    f"CREATE INDEX IF NOT EXISTS by_{first} ON entries ({columns}) WHERE {first} IS NOT NULL"
                )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise


def remove(place: Path | None) -> None:
    """Delete an index, and what SQLite keeps beside it.

    Raises:
        EgsError: NOT_PERMITTED: it cannot be deleted.
    """
    if place is None:
        return
    try:
        for suffix in ("", "-wal", "-shm"):
            place.with_name(place.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(place, error) from error


def _connect(place: Path | None) -> sqlite3.Connection:
    """An open database with our tables; a file that is none, or another version's, makes way."""
    try:
        return _prepared(place)
    except sqlite3.OperationalError as error:  # locked, not writable, no room: it may be a good one
        raise _unusable(place, error) from error
    except _DAMAGED:
        remove(place)
    try:
        return _prepared(place)
    except _DAMAGED as error:
        raise _unusable(place, error) from error


def _prepared(place: Path | None) -> sqlite3.Connection:
    database = sqlite3.connect(place or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for statement in _TABLES:
                database.execute(statement)
        _require_ours(database)
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _require_ours(database: sqlite3.Connection) -> None:
    mark = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if mark != [_APPLICATION, VERSION]:
        raise sqlite3.DatabaseError("another program's file, or another version's")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _unusable(place: Path | None, error: Exception) -> EgsError:
    return EgsError(
        Reason.NOT_PERMITTED,
        f"the index {place} cannot be used: {error}",
        "Delete it (it is built anew), or read without it: --no-index.",
    )
