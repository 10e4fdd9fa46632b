"""What must survive a restart, counted from the record: uses, revocations, the newest revocation lists and policy sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from egs_kernel.audit.entries import (
    ArtifactChange,
    Decision,
    Entry,
    Exec,
    PolicyChange,
    Revocation,
    RevocationListChange,
)
from egs_kernel.model import Revoked

if TYPE_CHECKING:
    from collections.abc import Iterable


class Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tally as it is saved. `uses`: artifact id → (uses spent, its notAfter); `lists`: scope → (number, digest).

    `policies`: name → (version, digest) of the newest set that was active; `policy`: the digest of the active one.
    """

    uses: dict[str, tuple[int, str]] = {}
    revoked: Revoked = Revoked()
    lists: dict[str, tuple[int, str]] = {}
    policies: dict[str, tuple[int, str]] = {}
    policy: str = ""


class Tally:
    """Uses by artifact id, what was revoked, and revocation lists by scope, folded from entries.

    An entry with `use_until` spends one use of its artifact, and tells until when the count matters:
    `forget_expired` drops what is past, so that the tally stays as small as the artifacts in force.
    """

    def __init__(self, saved: Saved = Saved()) -> None:  # noqa: B008 - frozen; what is in it is copied
        self._uses = dict(saved.uses)
        self._revoked = {kind: dict(getattr(saved.revoked, kind)) for kind in Revoked.__struct_fields__}
        self._lists = dict(saved.lists)
        self._policies = dict(saved.policies)
        self.policy = saved.policy
        """The digest of the active policy set; "": there is none."""

    def count(self, entry: Entry) -> None:
        """Take one more entry into account."""
        if isinstance(entry, Exec):  # by far the most are
            self._spend(entry.event.artifact_id, entry.use_until)
        elif isinstance(entry, ArtifactChange):
            if entry.action == "revoked":
                self._revoke("artifact", entry.artifact_id, _LONG_AGO)
        elif isinstance(entry, Revocation):
            self._revoke(entry.kind, entry.thing, entry.since)
        elif isinstance(entry, RevocationListChange):
            if entry.action == "added":
                self._lists[entry.scope] = entry.number, entry.digest
        elif isinstance(entry, PolicyChange):
            if entry.action == "activated":
                self._policies[entry.name] = entry.version, entry.digest
                self.policy = entry.digest
        elif isinstance(entry, Decision):
            self._spend(entry.artifact_id, entry.use_until)

    def forget_expired(self, now: str) -> None:
        """Drop counts of artifacts whose notAfter is before `now` (RFC 3339, UTC)."""
        self._uses = {key: value for key, value in self._uses.items() if value[1] >= now}

    @property
    def uses(self) -> dict[str, int]:
        """Uses spent, by artifact id."""
        return {key: count for key, (count, _until) in self._uses.items()}

    @property
    def revoked(self) -> Revoked:
        """All that the record says is revoked, but for what lists say."""
        return Revoked(**{kind: dict(table) for kind, table in self._revoked.items()})

    @property
    def lists(self) -> dict[str, tuple[int, str]]:
        """The number and the digest of the newest list of each scope."""
        return dict(self._lists)

    @property
    def policies(self) -> dict[str, tuple[int, str]]:
        """The version and the digest of the newest policy set of each name that was active."""
        return dict(self._policies)

    def saved(self) -> Saved:
        """What makes this tally again."""
        return Saved(
            uses=dict(self._uses),
            revoked=self.revoked,
            lists=dict(self._lists),
            policies=dict(self._policies),
            policy=self.policy,
        )

    def _revoke(self, kind: str, thing: str, since: str) -> None:
        table = self._revoked[kind]
        table[thing] = min(since, table.get(thing, since))

    def _spend(self, artifact_id: str | None, until: str | None) -> None:
        if artifact_id and until is not None:
            count, known_until = self._uses.get(artifact_id, (0, until))
            self._uses[artifact_id] = (count + 1, max(known_until, until))


_LONG_AGO = "1970-01-01T00:00:00Z"
"""Since when something is revoked of which an earlier version did not say it."""


def uses_by_artifact(entries: Iterable[Entry]) -> dict[str, int]:
    """Uses spent by artifact id: every entry with `use_until` is one."""
    tally = Tally()
    for entry in entries:
        tally.count(entry)
    return tally.uses
