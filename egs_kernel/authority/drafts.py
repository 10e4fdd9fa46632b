"""From an intent to the statement that the authority would sign. Pure; the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import msgspec

from egs_kernel.artifact import statement as st
from egs_kernel.authority.intent import encode_intent, intent_digest
from egs_kernel.checks.subjects import check_bound
from egs_kernel.errors import Refused
from egs_kernel.identity.spiffe import svid_expired
from egs_kernel.model import ProgramKind, Reason

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.intent import IntentDocument, NamedFile
    from egs_kernel.authority.settings import Settings

_T = TypeVar("_T")
_CHECKED = msgspec.json.Decoder(st.Statement)
_LEAST = timedelta(seconds=1)
"""Artifacts count in seconds: one for less is for nothing."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An intent as the authority understands it, everything filled in.

    Attributes:
        asker: who asked.
        intent: with scope, uid, host, validity and constraints, whether they were asked for or are the settings'.
        kind: what the program does with its arguments.
    """

    asker: Asker
    intent: IntentDocument
    kind: ProgramKind

    @property
    def scope(self) -> str:
        """The scope that it is for."""
        return self.intent.scope or ""

    @property
    def seconds(self) -> int:
        """How long an artifact is to be valid."""
        return self.intent.valid_for or 0

    def end(self, now: datetime) -> datetime:
        """Until when an artifact of now is valid: as asked for, and never longer than the SVID that it is for.

        Raises:
            Refused: SVID_EXPIRED.
        """
        end, proven = now + timedelta(seconds=self.seconds), self.asker.expires
        if proven is None or end <= proven:
            return end
        if proven < now + _LEAST:
            raise svid_expired(f"the SVID of {self.asker.spiffe_id} expired at {st.format_time(proven)}")
        return proven


def complete(document: IntentDocument, asker: Asker, settings: Settings, host_id: str) -> IntentDocument:
    """The intent with everything that the asker left open.

    Raises:
        Refused: it leaves open, or asks for, what it may not.
    """
    scope = document.scope or settings.default_scope
    if scope is None:
        raise _refused("no scope was named, and the authority has no default_scope", "Name one: --scope S")
    if st.ANY in document.argv:
        raise _refused(
            "an argument is *, which in an artifact stands for any", "Write it otherwise, such as ./*"
        )
    seconds = document.valid_for or settings.valid_for
    if seconds > settings.max_valid_for:
        raise _refused(
            f"{seconds} s is longer than artifacts are valid here, {settings.max_valid_for} s",
            "Ask for less, and renew it: egs request --renew ID",
        )
    imposed = settings.constraints.get(scope)
    if imposed is not None and document.constraints not in (None, imposed):
        raise _refused(
            f"scope {scope} has constraints of its own, and others were asked for",
            "Leave the constraints out.",
        )
    return msgspec.structs.replace(
        document,
        scope=scope,
        uid=_uid(document, asker),
        host=_host(document, asker, host_id),
        valid_for=seconds,
        constraints=imposed or document.constraints,
    )


def _uid(document: IntentDocument, asker: Asker) -> int | None:
    if document.uid is None or document.uid == asker.uid:
        return asker.uid
    if asker.is_local:
        raise Refused(
            Reason.NOT_PERMITTED,
            f"{asker.principal} asks for an artifact for uid {document.uid}",
            "Everybody asks for themselves: ask as that user.",
        )
    return document.uid


def _host(document: IntentDocument, asker: Asker, host_id: str) -> str:
    if asker.is_local and document.host in (None, host_id):
        return host_id
    if asker.is_local:
        raise Refused(
            Reason.HOST_MISMATCH,
            f"asked for on host {host_id}, for host {document.host}",
            "Ask the authority from that host, over HTTPS.",
        )
    if document.host is None:
        raise _refused("no host was named", "Name the host that it is to run on: its id is in egs status.")
    return document.host


def statement_of(  # noqa: PLR0913 - what an artifact is made of, by name
    draft: Draft,
    *,
    request: str,
    issuer: str,
    policy_digest: str,
    policies: tuple[str, ...],
    approvers: tuple[str, ...],
    renews: str | None,
    now: datetime,
) -> bytes:
    """The payload to sign: canonical, and checked like any that comes from outside.

    Raises:
        Refused: such an artifact could never be used, or is none.
    """
    intent = draft.intent
    predicate = st.Predicate(
        issued_at=st.format_time(now),
        not_before=st.format_time(now),
        not_after=st.format_time(draft.end(now)),
        scope=st.Scope(name=draft.scope, policy_digest=policy_digest),
        identity=_present(
            st.Identity(
                uid=intent.uid,
                spiffe_id=draft.asker.spiffe_id,
                hosts=(draft.asker.host_key or intent.host,) if intent.host else (),
            )
        ),
        intent=st.DeclaredIntent(
            argv=intent.argv, cwd=intent.cwd, environment=intent.environment, purpose=intent.purpose
        ),
        constraints=intent.constraints,
        uses=intent.uses,
        lineage=st.Lineage(
            parent_artifact=renews,
            parent_execution=intent.parent_execution,
            request_id=request,
            intent_digest=intent_digest(encode_intent(intent)),
        ),
        governance=st.Governance(
            issuer=issuer,
            approvers=approvers,
            ticket=intent.ticket,
            risk=intent.risk,
            policy_engine="cedar",
            determining_policies=policies,
        ),
    )
    try:
        statement = st.Statement(
            type=st.STATEMENT_TYPE,
            predicate_type=st.PREDICATE_TYPE,
            subject=_subjects(intent),
            predicate=predicate,
        )
        payload = st.encode_statement(statement)
        _CHECKED.decode(payload)
    except ValueError as error:  # it contradicts itself, or one of its fields does not fit
        raise _refused(f"no artifact can say this: {error}", "Change what is asked for.") from error
    check_bound(statement, draft.kind)
    return payload


def _subjects(intent: IntentDocument) -> tuple[st.Subject, ...]:
    roles = st.SubjectRole
    return (
        _subject(intent.program, roles.PROGRAM),
        *(_subject(file, roles.SCRIPT) for file in intent.scripts),
        *(_subject(file, roles.LIBRARY) for file in intent.libraries),
        *(_subject(file, roles.CHILD) for file in intent.children),
    )


def _subject(file: NamedFile, role: st.SubjectRole) -> st.Subject:
    return st.Subject(
        name=file.path, digest=st.Digest(sha256=file.sha256), annotations=st.Annotations(role=role)
    )


def _present(value: _T) -> _T | None:
    """A part that says nothing is left out."""
    return value if msgspec.to_builtins(value) else None


def _refused(message: str, next_step: str) -> Refused:
    return Refused(Reason.ARTIFACT_MALFORMED, message, next_step)
