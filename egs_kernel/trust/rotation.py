"""A key's successor: both verify for a while, so that nothing stops, and only the new one signs from its start on.

What the old key signed verifies until the overlap ends. Pure; `store.put` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import format_time
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.trust.store import TrustedKey

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from egs_kernel.sslib import Key
    from egs_kernel.trust.store import Role, TrustStore


@dataclass(frozen=True)
class Turn:
    """Whose turn it is.

    Attributes:
        signs: it is valid, and no key that replaces it is.
        successor: the id of the key that replaces it.
        overlap: from and until when both are valid; None: there is no successor, or no such time.
    """

    signs: bool
    successor: str | None
    overlap: tuple[datetime, datetime] | None


def succeed(
    trust: TrustStore, keyid: str, key: Key, start: datetime, overlap: timedelta
) -> tuple[TrustedKey, TrustedKey]:
    """The successor of a key, and the key that it replaces, whose time then ends.

    Args:
        trust: what is trusted.
        keyid: of the key to replace.
        key: its successor, which may sign the same.
        start: from when on the successor is valid.
        overlap: for how long both are.

    Raises:
        UsageError: no such key, it is revoked or ends before the overlap does, or something replaces it already.
    """
    old = trust.keys.get(keyid)
    if old is None:
        raise UsageError(Reason.NOT_FOUND, f"no trusted key has the id {keyid!r}", "Run: egs trust list")
    if (problem := old.problem(start)) is not None:
        raise UsageError(
            Reason.USAGE,
            f"nothing overlaps with {keyid[:16]}, which is {problem}",
            "Trust the new key: egs trust add",
        )
    others = [entry.keyid for entry in trust.keys.values() if entry.replaces == keyid]
    if [other for other in others if other != key.keyid]:
        raise UsageError(
            Reason.USAGE,
            f"{keyid[:16]} is replaced by {others[0][:16]} already",
            f"Replace that one: {others[0]}",
        )
    if key.keyid in trust.keys and not others:
        raise UsageError(
            Reason.USAGE, f"the key {key.keyid[:16]} is already trusted", "Make a new one: egs keys generate"
        )
    end = start + overlap
    if old.not_after is not None and old.not_after < end:
        raise UsageError(
            Reason.USAGE,
            f"{keyid[:16]} ends at {format_time(old.not_after)}, before the overlap does",
            "Choose a shorter --overlap, or an earlier --at.",
        )
    new = TrustedKey(
        key=key, roles=old.roles, scopes=old.scopes, name=old.name, not_before=start, replaces=keyid
    )
    return new, replace(old, not_after=end)


def turn_of(trust: TrustStore, keyid: str, now: datetime) -> Turn:
    """Whether a trusted key is to sign now, and what takes its place when."""
    entry = trust.keys[keyid]
    successors = [other for other in trust.keys.values() if other.replaces == keyid and other.revoked is None]
    valid = entry.problem(now) is None
    successor = min(successors, key=lambda other: other.keyid, default=None)
    replaced = any(other.problem(now) is None for other in successors)
    return Turn(
        signs=valid and not replaced,
        successor=None if successor is None else successor.keyid,
        overlap=None if successor is None else _overlap(entry, successor),
    )


def able(trust: TrustStore, role: Role, scope: str, now: datetime) -> int:
    """How many holders could sign in this role for a scope now."""
    return trust.holders(
        entry for entry in trust.keys.values() if entry.covers(role, scope) and entry.problem(now) is None
    )


def _overlap(old: TrustedKey, new: TrustedKey) -> tuple[datetime, datetime] | None:
    if old.revoked is not None or old.not_after is None or new.not_before is None:
        return None
    start, end = new.not_before, old.not_after
    return (start, end) if start < end else None
