"""What the authority has to find again: requests, approvals, quotas. A view of its record, in SQLite.

The record is the truth. Each entry is applied here after it is durable there, by the same function that applies it at a
start: whatever a crash left out is made up from the record before anybody is served. So SQLite need not sync for itself.
"""

# ruff: noqa: S608 - statements are put together of constants of this module; what comes from outside is bound

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.audit.entries import Approval, Issuance, Submission
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.record import Record
    from egs_kernel.authority.settings import Quota

KEPT_SECONDS: Final = 3600
"""How long an answered request is found again, and at least as long as its artifact is valid: so long an idempotency key means
what it meant. Each takes some 4 KiB."""
_FORGET_AT_ONCE: Final = 600
_VERSION: Final = 2
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, principal TEXT NOT NULL, idempotency_key TEXT, intent_digest TEXT NOT NULL, intent TEXT NOT NULL,
    scope TEXT NOT NULL, renews TEXT, action TEXT NOT NULL, reason INTEGER NOT NULL, detail TEXT NOT NULL,
    required INTEGER NOT NULL, until TEXT NOT NULL, artifact TEXT, envelope TEXT, at INTEGER NOT NULL,
    uid INTEGER, gid INTEGER, kind TEXT NOT NULL, unit TEXT, spiffe_id TEXT, svid_expires TEXT, host_key TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS by_key ON requests (principal, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_artifact ON requests (artifact) WHERE artifact IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_time ON requests (at);
CREATE INDEX IF NOT EXISTS waiting ON requests (at) WHERE action = 'pending';
CREATE TABLE IF NOT EXISTS approvals (
    request TEXT NOT NULL, keyid TEXT NOT NULL, name TEXT NOT NULL, action TEXT NOT NULL, PRIMARY KEY (request, keyid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    principal TEXT NOT NULL, scope TEXT NOT NULL, minute INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (principal, minute, scope)
) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "id, principal, idempotency_key, intent_digest, intent, scope, renews, action, reason, detail, required, until, "
    "artifact, envelope, at, uid, gid, kind, unit, spiffe_id, svid_expires, host_key"
)
_MINUTE: Final = 60


@dataclass(frozen=True)
class Known:
    """A request, and what became of it: "asked" (nothing yet), "pending", "issued" or "denied". `at`: Unix seconds."""

    id: str
    principal: str
    idempotency_key: str | None
    intent_digest: str
    intent: str
    scope: str
    renews: str | None
    action: str
    reason: int
    detail: str
    required: int
    until: str
    artifact: str | None
    envelope: str | None
    at: int
    uid: int | None
    gid: int | None
    kind: str
    unit: str | None
    spiffe_id: str | None
    svid_expires: str | None
    host_key: str | None


class Store:
    """The state of one authority. One thread writes; use `Store.open`."""

    def __init__(self, connection: sqlite3.Connection, longest_quota: int) -> None:
        self._sql = connection
        self._longest = max(longest_quota, KEPT_SECONDS)

    @classmethod
    def open(cls, path: Path, record: Record, quotas: tuple[Quota, ...]) -> Store:
        """Open the state, and bring it up to the record.

        Raises:
            RecordError: RECORD_CORRUPT: the state knows more than the record has, so entries of the record are gone.
            sqlite3.Error: it cannot be read or written.
        """
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
            raise RecordError(
                Reason.RECORD_UNAVAILABLE, f"{path} is of another version", f"Remove {path}: it is made anew."
            )
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version={_VERSION}")
        store = cls(connection, max((quota.seconds for quota in quotas), default=0))
        store._catch_up(path, record)
        return store

    def close(self) -> None:
        """Let go of it."""
        self._sql.close()

    # -- writing ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a change: visible here at once, kept by `commit`."""
        self._sql.execute("BEGIN IMMEDIATE")

    def commit(self, size: int) -> None:
        """Keep what was applied. `size`: of the record that it comes from."""
        self._sql.execute("INSERT OR REPLACE INTO state VALUES ('applied', ?)", (size,))
        self._sql.execute("COMMIT")

    def rollback(self) -> None:
        """Forget what was applied since `begin`."""
        if self._sql.in_transaction:
            self._sql.execute("ROLLBACK")

    def apply(self, entries: Iterable[Entry], now: float) -> None:
        """Take entries of the record into account. `now`: Unix seconds at which they were written."""
        for entry in entries:
            if isinstance(entry, Submission):
                self._submitted(entry, int(now))
            elif isinstance(entry, Approval):
                self._sql.execute(
                    "INSERT OR REPLACE INTO approvals VALUES (?, ?, ?, ?)",
                    (entry.request, entry.keyid, entry.name, entry.action),
                )
            elif isinstance(entry, Issuance) and entry.request is not None:
                self._answered(entry)

    def forget(self, now: float) -> None:
        """Drop what is no longer asked for, some of it at a time: the state does not grow with the record.

        Called every second.
        """
        old = f"SELECT id FROM requests WHERE at < ? AND until < ? LIMIT {_FORGET_AT_ONCE}"
        bounds = (int(now) - KEPT_SECONDS, _text(now))
        self._sql.execute(f"DELETE FROM approvals WHERE request IN ({old})", bounds)
        self._sql.execute(f"DELETE FROM requests WHERE id IN ({old})", bounds)
        self._sql.execute("DELETE FROM spent WHERE minute < ?", (int(now - self._longest) // _MINUTE - 1,))

    def _submitted(self, entry: Submission, at: int) -> None:
        if entry.idempotency_key is not None:  # what an old key meant is forgotten by now
            self._sql.execute(
                "DELETE FROM requests WHERE principal = ? AND idempotency_key = ?",
                (entry.principal, entry.idempotency_key),
            )
        row = (entry.request, entry.principal, entry.idempotency_key, entry.intent_digest, entry.intent)
        more = (entry.scope, entry.renews, "asked", int(Reason.AUTHORIZED), "", 0, "", None, None, at)
        who = (None, None) if entry.peer is None else (entry.peer.uid, entry.peer.gid)
        proven = (entry.unit, entry.spiffe_id, entry.svid_expires, entry.host_key)
        values = (*row, *more, *who, entry.program_kind, *proven)
        self._sql.execute(f"INSERT OR REPLACE INTO requests VALUES ({', '.join('?' * len(values))})", values)

    def _answered(self, entry: Issuance) -> None:
        self._sql.execute(
            "UPDATE requests SET action = ?, reason = ?, detail = ?, required = ?, until = ?, artifact = ?, envelope = ? "
            "WHERE id = ?",
            (
                *(entry.action, int(entry.reason), entry.detail, entry.required, entry.until),
                *(entry.artifact_id, entry.envelope, entry.request),
            ),
        )
        if entry.action == "issued":
            self._sql.execute(
                "INSERT INTO spent VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (entry.principal, entry.scope, int(parse_time(entry.at).timestamp()) // _MINUTE),
            )

    def _catch_up(self, path: Path, record: Record) -> None:
        row = self._sql.execute("SELECT value FROM state WHERE name = 'applied'").fetchone()
        applied = 0 if row is None else int(row[0])
        if applied > record.size:
            raise RecordError(
                Reason.RECORD_CORRUPT,
                f"{path} knows {applied} entries of the record, which has {record.size}",
                "Entries of the record are gone: restore the record. Nothing is issued on one that was set back.",
            )
        self.begin()
        for recorded in record.read(applied):
            self.apply([recorded.entry], parse_time(f"{recorded.time[:19]}Z").timestamp())
        self.commit(record.size)

    # -- reading ---------------------------------------------------------------------------------

    def request(self, request: str) -> Known | None:
        """The request with this id."""
        return self._one("id = ?", request)

    def by_key(self, principal: str, key: str) -> Known | None:
        """The request that a principal made with an idempotency key."""
        return self._one("principal = ? AND idempotency_key = ?", principal, key)

    def by_artifact(self, artifact: str) -> Known | None:
        """The request that an artifact was issued for."""
        return self._one("artifact = ?", artifact)

    def waiting(self, now: float, limit: int) -> list[Known]:
        """Requests that wait for approvals, the oldest first."""
        rows = self._sql.execute(
            f"SELECT {_COLUMNS} FROM requests WHERE action = 'pending' AND until > ? ORDER BY at, id LIMIT ?",
            (_text(now), limit),
        )
        return [Known(*row) for row in rows]

    def waiting_of(self, principal: str, now: float) -> int:
        """How many requests of a principal wait."""
        query = "SELECT COUNT(*) FROM requests WHERE action = 'pending' AND until > ? AND principal = ?"
        return int(self._sql.execute(query, (_text(now), principal)).fetchone()[0])

    def approvals(self, request: str) -> dict[str, tuple[str, str]]:
        """Who approved, or did not: name and action by key id."""
        rows = self._sql.execute("SELECT keyid, name, action FROM approvals WHERE request = ?", (request,))
        return {keyid: (name, action) for keyid, name, action in rows}

    def spent(self, quota: Quota, principal: str, now: float) -> int:
        """How many artifacts a principal has had that count for a quota, to the minute."""
        query = "SELECT COALESCE(SUM(count), 0) FROM spent WHERE principal = ? AND minute > ?"
        since = int(now - quota.seconds) // _MINUTE
        if quota.scope == "*":
            return int(self._sql.execute(query, (principal, since)).fetchone()[0])
        return int(self._sql.execute(f"{query} AND scope = ?", (principal, since, quota.scope)).fetchone()[0])

    def _one(self, condition: str, *values: str) -> Known | None:
        row = self._sql.execute(f"SELECT {_COLUMNS} FROM requests WHERE {condition}", values).fetchone()
        return None if row is None else Known(*row)


def _text(now: float) -> str:
    """As times stand in entries: they compare as text."""
    return format_time(datetime.fromtimestamp(now, UTC))
