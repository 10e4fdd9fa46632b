"""What became of a request, and whether it still waits. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import parse_time
from egs_kernel.authority.api import Answer, Issued, Pending, Problem, Vote
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.trust.store import Role

if TYPE_CHECKING:
    from egs_kernel.authority.approvals import Given
    from egs_kernel.authority.desk import Session
    from egs_kernel.authority.store import Known
    from egs_kernel.trust.store import TrustStore


def answer_of(session: Session, known: Known) -> Answer:
    """What a request came to, as far as it has."""
    if known.action == "issued" and known.artifact is not None and known.envelope is not None:
        return Issued(
            request=known.id,
            artifact_id=known.artifact,
            artifact=known.envelope,
            not_after=known.until,
            intent_digest=known.intent_digest,
        )
    if known.action == "pending" and parse_time(known.until) > session.now:
        return pending_of(session, known)
    reason = Reason.APPROVAL_INVALID if known.action == "pending" else Reason(known.reason)
    detail = f"nobody answered until {known.until}" if known.action == "pending" else known.detail
    return Problem(reason=reason.code, message=detail, next_step="Ask anew: egs request", request=known.id)


def pending_of(session: Session, known: Known) -> Pending:
    """A request that waits, and who answered by now."""
    return Pending(
        request=known.id,
        principal=known.principal,
        scope=known.scope,
        intent=known.intent,
        intent_digest=known.intent_digest,
        required=known.required,
        until=known.until,
        approvals=votes_of(session.store.approvals(known.id)),
    )


def votes_of(votes: dict[str, tuple[str, str]]) -> tuple[Vote, ...]:
    """Who answered, by key id: as the state has it, and as it is told."""
    return tuple(
        Vote(keyid=keyid, name=name, action="approved" if action == "approved" else "denied")
        for keyid, (name, action) in sorted(votes.items())
    )


def require_waiting(session: Session, known: Known | None) -> Known:
    """The request, if it waits.

    Raises:
        Refused: NOT_FOUND, APPROVAL_INVALID.
    """
    if known is None:
        raise no_request("no such request")
    if known.action != "pending":
        raise Refused(
            Reason.APPROVAL_INVALID,
            f"this approval does not count: the request was answered, {known.action}",
            "An approval is for one request, once.",
        )
    if parse_time(known.until) <= session.now:
        raise Refused(
            Reason.APPROVAL_INVALID,
            f"this approval does not count: the request waited until {known.until}",
            "Have it asked anew: egs request",
        )
    return known


def no_request(message: str) -> Refused:
    """The refusal for what does not exist, or is none of the asker's."""
    return Refused(Reason.NOT_FOUND, message, "Look at what there is: egs approvals")


def has_answered(trust: TrustStore, given: Given, votes: dict[str, tuple[str, str]]) -> bool:
    """Whether this person has answered: by this key, by one that goes back to the same, or under this name."""
    new = trust.keys[given.keyid]
    known = [trust.keys[keyid] for keyid in votes if keyid in trust.keys]
    return given.name in {name for name, _ in votes.values()} or any(
        trust.holders([new, key]) == 1 for key in known
    )


def standing_votes(session: Session, known: Known) -> list[str]:
    """Who approved a request with a key that may still approve."""
    trust = session.rules.trust
    found = []
    for keyid, (name, action) in session.store.approvals(known.id).items():
        key = trust.keys.get(keyid)
        if action == "approved" and key is not None and key.covers(Role.APPROVER, known.scope):
            found += [name] if key.problem(session.now) is None else []
    return sorted(found)
