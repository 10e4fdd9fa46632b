"""What the authority does: answers a request, counts an approval, renews an artifact. Each is a function for the desk.

The order is always the same: understand, ask policy, sign, and hand to the desk what goes into the record. Whatever refuses on
the way is an answer that goes into the record as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.audit import entries
from egs_kernel.authority.api import Answer, Issued, Pending, Vote, Waiting, problem_of
from egs_kernel.authority.approvals import Wanted, verify_approval
from egs_kernel.authority.askers import asker_again
from egs_kernel.authority.deciding import rule
from egs_kernel.authority.desk import Result
from egs_kernel.authority.drafts import Draft, complete, statement_of
from egs_kernel.authority.hosts import prove_host
from egs_kernel.authority.intent import decode_intent, encode_intent, intent_digest
from egs_kernel.authority.known import (
    answer_of,
    has_answered,
    no_request,
    pending_of,
    require_waiting,
    standing_votes,
    votes_of,
)
from egs_kernel.authority.said import Case, approval, denial, evaluation, issue, short, submission, wait
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import ProgramKind, Reason

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Entry
    from egs_kernel.authority.approvals import ApprovalDocument, Given
    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.deciding import Ruling
    from egs_kernel.authority.desk import Session
    from egs_kernel.authority.intent import IntentDocument
    from egs_kernel.authority.store import Known
    from egs_kernel.sslib import Signer

MOST_PENDING: Final = 64
"""Requests of one principal that may wait for approvals."""
MOST_LISTED: Final = 256
_LASTING: Final = frozenset({Reason.POLICY_DENIED, Reason.APPROVAL_DENIED})
"""Denials that a repeated request gets again; others were of that moment."""

_LOOK: Final = "Look what it takes: egs policy explain -- CMD"
_NAME_FILES: Final = (
    "Name tools and labels by path or digest (policy.toml), or ask an authority on the host of the files."
)

Work = Callable[["Session"], Result[Answer]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request as it came in. `asked_at`: the asker's clock; `renews`: the artifact that it is to follow.

    `host_statement`: what the asker's host signed of it.
    """

    asker: Asker
    document: IntentDocument
    kind: ProgramKind
    asked_at: str
    key: str | None = None
    renews: str | None = None
    host_statement: str | None = None


class Service:
    """The authority's work. Everything here is for the desk's thread.

    Args:
        signer: signs artifacts.
        new_id: makes a request's id.
    """

    def __init__(self, signer: Signer, new_id: Callable[[], str] = lambda: os.urandom(16).hex()) -> None:
        self._signer = signer
        self._new_id = new_id

    # -- requests --------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> Work:
        """Answer a new request."""

        def work(session: Session) -> Result[Answer]:
            request = self._new_id()
            said: list[Entry] = []
            try:
                _require_same_time(session, ask.asked_at)
                rules = session.rules
                asker = _on_its_host(session, ask)
                document = complete(ask.document, asker, rules.settings, rules.host_id)
                draft = Draft(asker=asker, intent=document, kind=ask.kind)
                case = Case(request, draft, intent_digest(encode_intent(document)), ask.renews)
                before = _before(session, ask, case)
                if before is not None:
                    return Result((), before)
                said.append(submission(case, ask.key))
                return self._decide(session, case, said)
            except EgsError as error:
                scope = ask.document.scope or ""
                return _denied(
                    session, ask.asker, error, said, scope=scope, request=request if said else None
                )

        return work

    def renew(self, asker: Asker, artifact: str, asked_at: str) -> Work:
        """Answer a request for the successor of an artifact: the same intent, decided anew."""

        def work(session: Session) -> Result[Answer]:
            known = session.store.by_artifact(artifact)
            try:
                if known is None or known.principal != asker.principal or known.envelope is None:
                    raise no_request("no such artifact was issued to you")
                if parse_time(known.until) <= session.now:
                    raise Refused(
                        Reason.EXPIRED,
                        f"the artifact expired at {known.until}",
                        "Ask anew: egs request. What is renewed is still valid.",
                    )
            except EgsError as error:
                return _denied(session, asker, error, [])
            assert known is not None  # noqa: S101 - for the type checker
            ask = Ask(
                asker=replace(
                    asker, host_key=known.host_key
                ),  # the same host: the artifact is for nobody without its key
                document=decode_intent(known.intent),
                kind=ProgramKind(known.kind),
                asked_at=asked_at,
                renews=artifact,
            )
            return self.ask(ask)(session)

        return work

    def show(self, asker: Asker, request: str) -> Work:
        """What became of a request: for whoever asked, and who may see."""

        def work(session: Session) -> Result[Answer]:
            known = session.store.request(request)
            seen = known is not None and (
                known.principal == asker.principal or asker.is_one_of(session.rules.settings.may_see)
            )
            if known is None or not seen:
                raise no_request("no such request")
            return Result((), answer_of(session, known))

        return work

    def waiting(self, asker: Asker) -> Work:
        """What waits for approvals: one's own, or all for those who may see it."""

        def work(session: Session) -> Result[Answer]:
            sees_all = asker.is_one_of(session.rules.settings.may_see)
            found = session.store.waiting(session.now.timestamp(), MOST_LISTED)
            return Result(
                (),
                Waiting(
                    waiting=tuple(
                        pending_of(session, known)
                        for known in found
                        if sees_all or known.principal == asker.principal
                    )
                ),
            )

        return work

    # -- approvals -------------------------------------------------------------------------------

    def approve(self, asker: Asker, request: str, document: ApprovalDocument) -> Work:
        """Count an approval or a no. The last one that was needed issues the artifact.

        `asker` only carries it: it counts by its signature.
        """

        def work(session: Session) -> Result[Answer]:
            said: list[Entry] = []
            known = session.store.request(request)
            try:
                known = require_waiting(session, known)
                rules = session.rules
                wanted = Wanted(
                    request=known.id,
                    intent_digest=known.intent_digest,
                    scope=known.scope,
                    asker=known.principal.partition(":")[2],
                    window=rules.settings.approval_window,
                )
                tolerance = timedelta(seconds=rules.settings.clock_tolerance)
                given = verify_approval(document, wanted, rules.trust, session.now, tolerance)
                votes = session.store.approvals(known.id)
                if has_answered(rules.trust, given, votes):
                    raise Refused(
                        Reason.APPROVAL_INVALID,
                        f"this approval does not count: {given.name} has answered already",
                        "Each person counts once. Look at who is missing: egs approvals",
                    )
                said.append(approval(known.id, known.intent_digest, given, document, asker))
                return self._counted(session, known, given, said)
            except EgsError as error:
                scope = "" if known is None else known.scope
                return _denied(session, asker, error, said, scope=scope)

        return work

    def _counted(self, session: Session, known: Known, given: Given, said: list[Entry]) -> Result[Answer]:
        """What a request comes to with one more answer."""
        asker = asker_again(known)
        if not given.approves:
            error = Refused(
                Reason.APPROVAL_DENIED,
                f"{given.name} does not approve it",
                "Ask them, then ask anew: egs request",
            )
            return _denied(session, asker, error, said, scope=known.scope, request=known.id)
        names = standing_votes(session, known)
        document = decode_intent(known.intent)
        draft = Draft(asker=asker, intent=document, kind=ProgramKind(known.kind))
        case = Case(known.id, draft, known.intent_digest, known.renews, (*names, given.name))
        try:
            return self._decide(session, case, said)
        except EgsError as error:
            return _denied(session, asker, error, said, scope=known.scope, request=known.id)

    # -- the decision ----------------------------------------------------------------------------

    def _decide(self, session: Session, case: Case, said: list[Entry]) -> Result[Answer]:
        """Ask policy, and issue, wait or deny."""
        rules = session.rules
        if not rules.policy.governs(case.draft.scope):
            raise Refused(
                Reason.POLICY_DENIED,
                f"policy {rules.policy.name} is not for scope {case.draft.scope}",
                f"It is for {', '.join(rules.policy.manifest.scopes)}: egs request --scope S",
            )
        ruling = rule(
            rules.policy,
            case.draft,
            request=case.request,
            renews=case.renews,
            approvals=len(case.approvers),
            labels=rules.labels if case.draft.asker.is_local else (),
            now=session.now,
            packages=rules.packages if case.draft.asker.is_local else None,
        )
        said.append(evaluation(case, ruling, rules.policy.name))
        if ruling.permitted:
            return self._issue(session, case, ruling, said)
        if ruling.required is not None:
            return _wait(session, case, ruling.required, said)
        found = ruling.evaluation
        error = Refused(
            Reason.POLICY_DENIED,
            f"policy {rules.policy.name} version {rules.policy.version} does not permit it: "
            + (", ".join(short(found.errors or found.determining)) or "nothing in it does")
            + (f"; {ruling.unseen}" if ruling.unseen else ""),
            " ".join(found.advice) or (_NAME_FILES if ruling.unseen else _LOOK),
        )
        return _denied(
            session,
            case.draft.asker,
            error,
            said,
            scope=case.draft.scope,
            request=case.request,
            ruling=ruling,
        )

    def _issue(self, session: Session, case: Case, ruling: Ruling, said: list[Entry]) -> Result[Answer]:
        rules, asker, scope = session.rules, case.draft.asker, case.draft.scope
        for quota in rules.settings.quotas:
            if quota.covers(asker.principal, scope):
                spent = session.store.spent(quota, asker.principal, session.now.timestamp())
                if spent >= quota.artifacts:
                    raise Refused(
                        Reason.QUOTA_EXCEEDED,
                        f"{asker.principal} had {spent} artifacts in {quota.seconds} s, {quota.artifacts} at most",
                        "Wait, or have the quota raised (authority.toml).",
                    )
        payload = statement_of(
            case.draft,
            request=case.request,
            issuer=rules.settings.name,
            policy_digest=rules.policy.digest,
            policies=ruling.evaluation.determining,
            approvers=case.approvers,
            renews=case.renews,
            now=session.now,
        )
        content = sign(payload, [self._signer]).decode()
        name = hashlib.sha256(payload).hexdigest()  # as verify.artifact_id has it
        entry = issue(case, name, content, session.now)
        said.append(entry)
        return Result(
            said,
            Issued(
                request=case.request,
                artifact_id=name,
                artifact=content,
                not_after=entry.until,
                intent_digest=case.digest,
            ),
        )


def _wait(session: Session, case: Case, required: int, said: list[Entry]) -> Result[Answer]:
    asker, now = case.draft.asker, session.now
    known = session.store.request(case.request)
    until = known.until if known is not None and known.until else ""
    if not until:
        if session.store.waiting_of(asker.principal, now.timestamp()) >= MOST_PENDING:
            raise Refused(
                Reason.QUOTA_EXCEEDED,
                f"{MOST_PENDING} requests of {asker.principal} wait for approvals already",
                "Have them answered first: egs approvals",
            )
        window = now + timedelta(seconds=session.rules.settings.approval_window)
        # Nobody is asked to approve what could not be issued any more.
        until = format_time(window if asker.expires is None else min(window, asker.expires))
    said.append(wait(case, required, now, until))
    votes = session.store.approvals(case.request)
    fresh = [entry for entry in said if isinstance(entry, entries.Approval)]
    return Result(
        said,
        Pending(
            request=case.request,
            principal=asker.principal,
            scope=case.draft.scope,
            intent=encode_intent(case.draft.intent).decode(),
            intent_digest=case.digest,
            required=required,
            until=until,
            approvals=(
                *votes_of(votes),
                *(Vote(keyid=entry.keyid, name=entry.name, action=entry.action) for entry in fresh),
            ),
        ),
    )


def _denied(  # noqa: PLR0913 - what a denial says, by name
    session: Session,
    asker: Asker,
    error: EgsError,
    said: list[Entry],
    *,
    scope: str = "",
    request: str | None = None,
    ruling: Ruling | None = None,
) -> Result[Answer]:
    """A refusal as an answer, and its entry after what was said already."""
    said.append(denial(asker, error, format_time(session.now), scope=scope, request=request))
    if ruling is None:
        return Result(said, problem_of(error, request))
    evaluation = ruling.evaluation
    return Result(said, problem_of(error, request, evaluation.determining, evaluation.advice))


def _before(session: Session, ask: Ask, case: Case) -> Answer | None:
    """The answer to the same request, when it was asked before under the same idempotency key.

    Raises:
        Refused: IDEMPOTENCY_CONFLICT: under that key something else was asked.
    """
    known = None if ask.key is None else session.store.by_key(ask.asker.principal, ask.key)
    if known is None:
        return None
    if (known.intent_digest, known.renews) != (case.digest, ask.renews):
        raise Refused(
            Reason.IDEMPOTENCY_CONFLICT,
            f"the idempotency key {ask.key!r} was used for another request",
            "Use a new key for each request, and the same one only to repeat it.",
        )
    if known.action == "denied" and Reason(known.reason) not in _LASTING:
        return None  # what stood in the way then may be gone
    return answer_of(session, known)


def _on_its_host(session: Session, ask: Ask) -> Asker:
    """Who asks, with the host that is proven, if one is. Where hosts need not be enrolled, a stranger's key proves none.

    Raises:
        Refused: what the host signed does not count; or nothing was signed, and hosts have to be enrolled.
    """
    settings = session.rules.settings
    enrolled = settings.https is not None and settings.https.enrolled_hosts
    if ask.host_statement is not None:
        tolerance = timedelta(seconds=settings.clock_tolerance)
        try:
            found = prove_host(ask.host_statement, ask.document, session.rules.trust, session.now, tolerance)
        except Refused as error:
            if enrolled or error.reason is not Reason.KEY_UNTRUSTED:
                raise
        else:
            return replace(ask.asker, host_key=found)
    if enrolled and not ask.asker.is_local and ask.asker.host_key is None:
        raise Refused(
            Reason.HOST_STATEMENT_INVALID,
            "nothing proves which host asks, and here hosts have to be enrolled",
            "Ask with egs request or egs run on a host where egsd runs; docs/identity.md says how a host is enrolled.",
        )
    return ask.asker


def _require_same_time(session: Session, asked_at: str) -> None:
    try:
        apart = parse_time(asked_at) - session.now
    except ValueError as error:
        raise Refused(Reason.CLOCK_WRONG, f"askedAt: {error}", "Send the time now.") from error
    if abs(apart) > timedelta(seconds=session.book.now().settings.clock_tolerance):
        raise Refused(
            Reason.CLOCK_WRONG,
            f"the asker's clock says {asked_at}, the authority's {format_time(session.now)}",
            "Set the clock that is wrong (timedatectl), then ask again.",
        )
