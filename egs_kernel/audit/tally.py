"""What must survive a restart, counted from the record: uses spent, artifacts revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.audit.entries import ArtifactChange, Decision, Entry, Exec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Tally:
    """Uses by artifact id and revoked ids, folded from entries.

    An entry with `use_until` spends one use of its artifact, and tells until when the count matters:
    `forget_expired` drops what is past, so that the tally stays as small as the artifacts in force.
    """

    def __init__(self, uses: dict[str, tuple[int, str]] | None = None, revoked: Iterable[str] = ()) -> None:
        self._uses = dict(uses or {})
        self._revoked = set(revoked)

    def count(self, entry: Entry) -> None:
        """Take one more entry into account."""
        if isinstance(entry, ArtifactChange):
            if entry.action == "revoked":
                self._revoked.add(entry.artifact_id)
        elif isinstance(entry, Decision):
            self._spend(entry.artifact_id, entry.use_until)
        elif isinstance(entry, Exec):
            self._spend(entry.event.artifact_id, entry.use_until)

    def forget_expired(self, now: str) -> None:
        """Drop counts of artifacts whose notAfter is before `now` (RFC 3339, UTC)."""
        self._uses = {key: value for key, value in self._uses.items() if value[1] >= now}

    @property
    def uses(self) -> dict[str, int]:
        """Uses spent, by artifact id."""
        return {key: count for key, (count, _until) in self._uses.items()}

    @property
    def revoked(self) -> frozenset[str]:
        """Every artifact id that the record says is revoked."""
        return frozenset(self._revoked)

    def saved(self) -> tuple[dict[str, tuple[int, str]], tuple[str, ...]]:
        """The constructor's arguments that make this tally again."""
        return dict(self._uses), tuple(sorted(self._revoked))

    def _spend(self, artifact_id: str | None, until: str | None) -> None:
        if artifact_id and until is not None:
            count, known_until = self._uses.get(artifact_id, (0, until))
            self._uses[artifact_id] = (count + 1, max(known_until, until))


def uses_by_artifact(entries: Iterable[Entry]) -> dict[str, int]:
    """Uses spent by artifact id: every entry with `use_until` is one."""
    tally = Tally()
    for entry in entries:
        tally.count(entry)
    return tally.uses
