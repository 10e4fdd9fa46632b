"""What this host knows to be revoked, in memory: said here, or by the signed list in force of each scope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.checks.revocation import SKEW, good_until, merged
from egs_kernel.model import Revoked
from egs_kernel.trust.store import ANY_SCOPE

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.checks.revocation import SignedList
    from egs_kernel.config import RevocationConfig


@dataclass(frozen=True)
class Knowledge:
    """How well a scope's revocations are known. `problem` "": well enough, until `until`; None: for ever."""

    problem: str = ""
    until: datetime | None = None


class Known:
    """Belongs to the event loop's thread.

    Args:
        said: what was revoked on this host.
        numbers: the number and digest of the newest list of each scope that this host has had.
        lists: those lists, as far as they are there.
    """

    def __init__(
        self,
        said: Revoked = Revoked(),  # noqa: B008 - frozen; what is in it is copied
        numbers: dict[str, tuple[int, str]] | None = None,
        lists: dict[str, SignedList] | None = None,
    ) -> None:
        self._said = {kind: dict(getattr(said, kind)) for kind in Revoked.__struct_fields__}
        self.numbers = dict(numbers or {})
        self.lists = dict(lists or {})
        self._merged: dict[str, Revoked] = {}

    @property
    def said(self) -> Revoked:
        """What was revoked on this host, by nobody's list."""
        return Revoked(**{kind: dict(table) for kind, table in self._said.items()})

    def revoke(self, kind: str, thing: str, since: str) -> None:
        """From here on nothing is decided by it."""
        self._said[kind].setdefault(thing, since)
        self._merged.clear()

    def put(self, found: SignedList) -> None:
        """From here on this is the list of its scope."""
        self.lists[found.content.scope] = found
        self.numbers[found.content.scope] = found.content.number, found.digest
        self._merged.clear()

    def of(self, scope: str) -> Revoked:
        """All that is revoked for a scope; `*`: for every scope."""
        if scope not in self.lists:
            scope = ANY_SCOPE  # one for all that have no list of their own
        if scope not in self._merged:
            lists = [self.lists[name] for name in dict.fromkeys((ANY_SCOPE, scope)) if name in self.lists]
            self._merged[scope] = merged([self.said, *(found.content.things for found in lists)])
        return self._merged[scope]

    def knowledge(self, scope: str, config: RevocationConfig, now: datetime) -> Knowledge:
        """How well what is revoked for a scope is known."""
        for name in dict.fromkeys((ANY_SCOPE, scope)):
            if name in self.numbers and name not in self.lists:
                return Knowledge(
                    f"number {self.numbers[name][0]} for the scope {name} is missing on this host"
                )
        if not config.demands(scope):
            return Knowledge()
        age = timedelta(seconds=config.max_age_seconds)
        found = [self.lists[name] for name in (ANY_SCOPE, scope) if name in self.lists]
        if not found:
            return Knowledge("no list for this scope was ever added")
        early = [one for one in found if parse_time(one.content.issued_at) > now + SKEW]
        if early:
            return Knowledge(
                f"the list in force was issued at {early[0].content.issued_at}, and here it is {format_time(now)}"
            )
        until = min(good_until(one.content, age) for one in found)
        if now >= until:
            return Knowledge(f"the list in force was good until {format_time(until)}", until)
        return Knowledge("", until)

    def next_boundary(self, config: RevocationConfig, moment: datetime) -> datetime | None:
        """When a list in force next becomes too old, or is not early any more, after `moment`."""
        age = timedelta(seconds=config.max_age_seconds)
        edges = [good_until(one.content, age) for one in self.lists.values()]
        issued = [parse_time(one.content.issued_at) for one in self.lists.values()]
        edges += [time - SKEW for time in issued if time > moment]  # the others are early no more
        return min((edge for edge in edges if edge > moment), default=None) if config.max_age else None
