"""What people sign when they approve: a DSSE envelope over the exact request and intent. Pure; clock and keys are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from egs_kernel.artifact import canonical
from egs_kernel.artifact.statement import Sha256, Time, format_time, parse_time
from egs_kernel.artifact.strict import Strict
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.sslib import Envelope, UnverifiedSignatureError
from egs_kernel.trust.store import Role

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.sslib import Signer
    from egs_kernel.trust.store import TrustedKey, TrustStore

PAYLOAD_TYPE: Final = "application/vnd.egs-kernel.approval.v1+json"
MAX_APPROVAL: Final = 24 * 1024

RequestId = Annotated[str, Meta(min_length=32, max_length=32, pattern=r"^(?![\s\S]*[^0-9a-f])")]


class Approval(Strict, frozen=True):
    """What is signed. It counts for this request and this intent alone, and until `not_after`."""

    request: RequestId
    intent_digest: Sha256
    verdict: Literal["approve", "deny"]
    signed_at: Time
    not_after: Time


class SignatureDocument(Strict, frozen=True):
    """A signature of a DSSE envelope."""

    keyid: Annotated[str, Meta(min_length=1, max_length=128)]
    sig: Annotated[str, Meta(min_length=1, max_length=16 * 1024)]


class ApprovalDocument(Strict, frozen=True):
    """The body of an approval: a DSSE envelope with exactly one signature."""

    payload: Annotated[str, Meta(min_length=1, max_length=4096)]
    payload_type: Literal["application/vnd.egs-kernel.approval.v1+json"]
    signatures: Annotated[tuple[SignatureDocument, ...], Meta(min_length=1, max_length=1)]


@dataclass(frozen=True)
class Wanted:
    """What an approval must be for: a request that waits."""

    request: str
    intent_digest: str
    scope: str
    asker: str
    window: int


@dataclass(frozen=True)
class Given:
    """An approval that counts. `name` is what the trust store calls the key, or its id."""

    keyid: str
    name: str
    approves: bool


_PAYLOADS = msgspec.json.Decoder(Approval)


def sign_approval(  # noqa: PLR0913 - what is signed, by name
    signer: Signer, *, request: str, digest: str, approves: bool, now: datetime, valid_for: timedelta
) -> bytes:
    """An approval, or a no, as the body to send."""
    payload = Approval(
        request=request,
        intent_digest=digest,
        verdict="approve" if approves else "deny",
        signed_at=format_time(now),
        not_after=format_time(now + valid_for),
    )
    envelope = Envelope(canonical.encode(msgspec.to_builtins(payload)), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return canonical.encode(envelope.to_dict())


def verify_approval(
    document: ApprovalDocument, wanted: Wanted, trust: TrustStore, now: datetime, tolerance: timedelta
) -> Given:
    """Whose approval it is.

    Args:
        document: what was handed in.
        wanted: the request that it must be for.
        trust: who may approve.
        now: the authority's clock.
        tolerance: how far an approver's clock may be ahead.

    Raises:
        Refused: APPROVAL_INVALID: it does not count, and why.
    """
    try:
        envelope = Envelope.from_dict(msgspec.to_builtins(document))
        payload = _PAYLOADS.decode(envelope.payload)
        canonical.decode_canonical(envelope.payload)
        signed_at, not_after = parse_time(payload.signed_at), parse_time(payload.not_after)
    except (ValueError, Refused) as error:
        raise _invalid(f"it is malformed: {error}") from error
    key = _signer(envelope, trust, wanted, now)
    if (payload.request, payload.intent_digest) != (wanted.request, wanted.intent_digest):
        raise _invalid("it is for another request, or another intent")
    if now >= not_after:
        raise _invalid(f"it expired at {payload.not_after}")
    if signed_at - now > tolerance:
        raise _invalid(f"it was signed at {payload.signed_at}, which is in the future: the clocks differ")
    if not_after - signed_at > timedelta(seconds=wanted.window):
        raise _invalid(f"it would be valid for more than {wanted.window} s")
    return Given(key.keyid, key.name or key.keyid, payload.verdict == "approve")


def _signer(envelope: Envelope, trust: TrustStore, wanted: Wanted, now: datetime) -> TrustedKey:
    (keyid,) = envelope.signatures
    key = trust.keys.get(keyid)
    if key is None:
        raise _invalid(f"it is signed by the key {keyid}, which is not trusted")
    if not key.covers(Role.APPROVER, wanted.scope):
        raise _invalid(f"the key {keyid} may not approve for scope {wanted.scope}")
    if problem := key.problem(now):
        raise _invalid(f"the key {keyid} is {problem}")
    if key.name is not None and key.name == wanted.asker:
        raise _invalid(f"{wanted.asker} asked for it, and nobody approves what they asked for themselves")
    try:
        key.key.verify_signature(envelope.signatures[keyid], envelope.pae())
    except UnverifiedSignatureError as error:
        raise _invalid("its signature is not good") from error
    return key


def _invalid(message: str) -> Refused:
    return Refused(
        Reason.APPROVAL_INVALID,
        f"this approval does not count: {message}",
        "Look at what is waiting (egs approvals) and sign that: egs approve ID --key N.key",
    )
