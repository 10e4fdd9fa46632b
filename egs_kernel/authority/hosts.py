"""Which host asks: what its own key signed, where that key is enrolled. Pure; clock and keys are passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.hosts import PAYLOAD_TYPE, STATEMENT_LIMIT, parse_host_statement
from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.authority.intent import encode_intent, intent_digest
from egs_kernel.checks.signers import check_signatures
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.trust.store import Role

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from egs_kernel.authority.intent import IntentDocument
    from egs_kernel.trust.store import TrustedKey, TrustStore


def prove_host(
    statement: str, intent: IntentDocument, trust: TrustStore, now: datetime, tolerance: timedelta
) -> str:
    """The id of the key of the host that a statement proves: it asks, for itself, and for the user who asked there.

    Args:
        statement: the signed envelope, as egsd gave it.
        intent: as it was asked for: the statement is for it alone.
        trust: which hosts are enrolled: keys of the role `host`, each named as its host's id.
        now: the authority's clock.
        tolerance: how far the host's clock may be off, and how old a statement may be.

    Raises:
        Refused: it proves nothing, and why.
    """
    envelope = parse_envelope(statement.encode(errors="replace"), PAYLOAD_TYPE, STATEMENT_LIMIT)
    (key, *others) = check_signatures(envelope, trust)
    found = parse_host_statement(envelope.payload)
    if others:
        raise _invalid("it is signed by several keys")
    _require_enrolled(key, found.host_id, now)
    if found.intent_digest != intent_digest(encode_intent(intent)):
        raise _invalid("it is for another intent")
    if abs(parse_time(found.signed_at) - now) > tolerance:
        raise _invalid(f"it was signed at {found.signed_at}, and here it is {format_time(now)}")
    if intent.host != found.host_id:
        raise Refused(
            Reason.HOST_MISMATCH,
            f"host {found.host_id} asks, for host {intent.host}",
            "Each host asks for itself.",
        )
    if intent.uid != found.uid:
        raise Refused(
            Reason.NOT_PERMITTED,
            f"uid {found.uid} of {found.host_id} asks, for uid {intent.uid}",
            "Everybody asks for themselves: ask as that user.",
        )
    return key.keyid


def _require_enrolled(key: TrustedKey, host: str, now: datetime) -> None:
    if Role.HOST not in key.roles or key.name != host:
        raise Refused(
            Reason.KEY_ROLE_MISMATCH,
            f"the key {key.keyid[:16]} is not enrolled as that of host {host}",
            f"If it is that host's: egs trust add HOST.pub --role host --scope '*' --name {host}",
        )
    if problem := key.problem(now):
        raise Refused(
            Reason.KEY_NOT_VALID_NOW, f"the key of host {host} is {problem}", "Enrol the key that it has now."
        )


def _invalid(message: str) -> Refused:
    return Refused(
        Reason.HOST_STATEMENT_INVALID,
        f"the host's statement does not count: {message}",
        "Ask anew from that host, and compare the clocks: timedatectl",
    )
