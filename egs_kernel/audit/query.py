"""Which entries of the record somebody looks for. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egs_kernel.audit.entries import DaemonStarted, Peer, Refusal
from egs_kernel.audit.lines import microseconds
from egs_kernel.model import AttemptEvent, CodeEvent, ExecEvent, ExitEvent, Reason, TaskIdentity, Verdict

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Recorded

_WITH_PID: Final = (DaemonStarted, Peer, TaskIdentity, ExecEvent, ExitEvent, CodeEvent, AttemptEvent, Refusal)


REFUSALS: Final = frozenset({"code", "attempt", "refusal"})
"""Types that tell of nothing but a refusal: their verdict is deny, though no field says so."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions that an entry must meet, all of them; None asks for nothing.

    `pid` is the process that asked, is armed, executed or ended. `artifact` is how an id begins. `since`
    is a time as the record writes it.
    """

    reason: Reason | None = None
    verdict: Verdict | None = None
    pid: int | None = None
    artifact: str | None = None
    type: str | None = None
    scope: str | None = None
    since: str | None = None

    def needles(self) -> tuple[bytes, ...]:
        """What a line's bytes must hold to be worth decoding: canonical JSON has one form for each value."""
        pairs = (
            ("reason", self.reason.code if self.reason is not None else None),
            ("verdict", self.verdict.name.lower() if self.verdict not in {None, Verdict.DENY} else None),
            ("pid", self.pid),
            ("type", self.type),
            ("scope", self.scope),
        )
        found = [
            f'"{key}":{json.dumps(value, ensure_ascii=False)}' for key, value in pairs if value is not None
        ]
        found += [] if self.artifact is None else [f'"artifact_id":"{self.artifact}']
        return tuple(needle.encode() for needle in found)

    def columns(self) -> dict[str, Any]:
        """What to ask an index for (`Index.numbers`); what it finds has to be matched all the same."""
        wanted = {
            "reason": self.reason.code if self.reason is not None else None,
            "verdict": self.verdict.name.lower() if self.verdict is not None else None,
            "anyone": self.pid,
            "artifact": self.artifact,
            "type": self.type,
            "scope": self.scope,
            "since": None if self.since is None else microseconds(self.since),
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def matches(self, recorded: Recorded) -> bool:
        """Whether an entry is one of those."""
        subject: Any = getattr(recorded.entry, "event", recorded.entry)
        return (
            (self.since is None or recorded.time >= self.since)
            and (self.type is None or recorded.entry.__struct_config__.tag == self.type)
            and (self.reason is None or getattr(subject, "reason", None) is self.reason)
            and (self.verdict is None or _verdict(recorded) is self.verdict)
            and (self.scope is None or getattr(subject, "scope", None) == self.scope)
            and (
                self.artifact is None
                or (getattr(subject, "artifact_id", None) or "").startswith(self.artifact)
            )
            and (self.pid is None or self.pid in _pids(subject))
        )


def _verdict(recorded: Recorded) -> Verdict | None:
    if recorded.entry.__struct_config__.tag in REFUSALS:
        return Verdict.DENY
    return getattr(getattr(recorded.entry, "event", recorded.entry), "verdict", None)


def _pids(subject: Any) -> set[int]:
    """The processes an entry is about."""
    holders = (subject, getattr(subject, "peer", None), getattr(subject, "task", None))
    return {holder.pid for holder in holders if isinstance(holder, _WITH_PID) and holder.pid is not None}
