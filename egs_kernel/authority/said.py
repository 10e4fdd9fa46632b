"""What the authority says of a request in its record: one function for each kind of entry. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.artifact import canonical
from egs_kernel.artifact.statement import format_time
from egs_kernel.audit import entries
from egs_kernel.authority.intent import MAX_REQUEST, encode_intent
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.authority.approvals import ApprovalDocument, Given
    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.deciding import Ruling
    from egs_kernel.authority.drafts import Draft

_LONGEST: Final = 512
_MOST_TEXTS: Final = 32


@dataclass(frozen=True)
class Case:
    """A request on its way to an answer. `digest` is its intent's."""

    request: str
    draft: Draft
    digest: str
    renews: str | None
    approvers: tuple[str, ...] = ()


def submission(case: Case, key: str | None) -> entries.Submission:
    """What was asked, as it is understood.

    Raises:
        Refused: REQUEST_TOO_LARGE: with what was filled in it does not fit into the record.
    """
    intent = encode_intent(case.draft.intent)
    if len(intent) > MAX_REQUEST:
        raise Refused(
            Reason.REQUEST_TOO_LARGE,
            f"with the constraints of its scope the intent is larger than {MAX_REQUEST} bytes",
            "Shorten its arguments, environment or lists of files.",
        )
    return entries.Submission(
        request=case.request,
        principal=case.draft.asker.principal,
        scope=case.draft.scope,
        intent_digest=case.digest,
        intent=intent.decode(),
        program_kind=case.draft.kind.value,
        peer=_peer(case.draft.asker),
        unit=case.draft.asker.unit,
        spiffe_id=case.draft.asker.spiffe_id,
        svid_expires=None if case.draft.asker.expires is None else format_time(case.draft.asker.expires),
        host_key=case.draft.asker.host_key,
        idempotency_key=key,
        renews=case.renews,
    )


def evaluation(case: Case, ruling: Ruling, policy: str) -> entries.Evaluated:
    """The entry of what policy said; `policy` is the set's name."""
    found = ruling.evaluation
    return entries.Evaluated(
        effect="permit" if found.permitted else "deny",
        policy=policy,
        policy_digest=found.policy_digest,
        request_digest=found.request_digest,
        determining=short(found.determining),
        advice=short(found.advice),
        errors=short(found.errors),
        request=case.request,
        approvals=len(case.approvers),
    )


def denial(  # noqa: PLR0913 - what a denial says, by name
    asker: Asker, error: EgsError, at: str, *, scope: str = "", request: str | None = None, count: int = 1
) -> entries.Issuance:
    """The entry of a refusal."""
    return entries.Issuance(
        action="denied",
        principal=asker.principal,
        at=at,
        reason=error.reason,
        request=request,
        scope=scope,
        detail=short((error.message,))[0],
        peer=_peer(asker),
        count=count,
    )


def _peer(asker: Asker) -> entries.Peer | None:
    if asker.pid is None or asker.uid is None or asker.gid is None:
        return None
    return entries.Peer(asker.pid, asker.uid, asker.gid)


def _text(document: ApprovalDocument) -> str:
    return canonical.encode(msgspec.to_builtins(document)).decode()


def short(texts: tuple[str, ...]) -> tuple[str, ...]:
    """What fits into an entry: Cedar's messages may be long."""
    return tuple(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts[:_MOST_TEXTS])


def approval(
    case_id: str, digest: str, given: Given, document: ApprovalDocument, asker: Asker
) -> entries.Approval:
    """The entry of what a person signed; `asker` carried it."""
    return entries.Approval(
        request=case_id,
        action="approved" if given.approves else "denied",
        keyid=given.keyid,
        name=given.name,
        intent_digest=digest,
        envelope=_text(document),
        peer=_peer(asker),
    )


def wait(case: Case, required: int, now: datetime, until: str) -> entries.Issuance:
    """The entry of a request that waits for approvals."""
    return entries.Issuance(
        action="pending",
        principal=case.draft.asker.principal,
        at=format_time(now),
        reason=Reason.APPROVAL_REQUIRED,
        request=case.request,
        scope=case.draft.scope,
        until=until,
        required=required,
        approvers=case.approvers,
        peer=_peer(case.draft.asker),
    )


def issue(case: Case, artifact_id: str, envelope: str, now: datetime) -> entries.Issuance:
    """The entry of an artifact."""
    return entries.Issuance(
        action="issued",
        principal=case.draft.asker.principal,
        at=format_time(now),
        request=case.request,
        scope=case.draft.scope,
        until=format_time(case.draft.end(now)),
        approvers=case.approvers,
        artifact_id=artifact_id,
        envelope=envelope,
        peer=_peer(case.draft.asker),
    )
