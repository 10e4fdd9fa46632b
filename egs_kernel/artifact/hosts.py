"""What a host says of who asks there, signed by the host's own key: a DSSE envelope over canonical JSON, as everything that is signed.

It is for an authority on another host: that sees a workload's certificate, and neither the host nor the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import field

from egs_kernel.artifact.canonical import decode_canonical, encode
from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.statement import AccountId, Label, Sha256, Time, format_time, parse_time
from egs_kernel.artifact.strict import Strict
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.sslib import Signer

PAYLOAD_TYPE: Final = "application/vnd.egs-001.host-statement+json"
STATEMENT_TYPE: Final = "urn:egs-001:host-statement:v1"
STATEMENT_LIMIT: Final = 4096
"""Most bytes of a signed statement."""
_NEXT: Final = "Have egsd of that host sign one: egs request and egs run do."


class HostStatement(Strict, frozen=True):
    """On this host, at this time, the user `uid` asked for this intent (its SHA-256)."""

    type: Literal["urn:egs-001:host-statement:v1"] = field(name="_type")
    host_id: Label
    uid: AccountId
    intent_digest: Sha256
    signed_at: Time

    def __post_init__(self) -> None:
        parse_time(self.signed_at)


def sign_host_statement(signer: Signer, *, host_id: str, uid: int, intent_digest: str, now: datetime) -> str:
    """The statement in its envelope, signed by the host's key.

    Raises:
        Refused: HOST_STATEMENT_INVALID: no statement says this, such as a digest that is none.
    """
    said = {
        "_type": STATEMENT_TYPE,
        "hostId": host_id,
        "uid": uid,
        "intentDigest": intent_digest,
        "signedAt": format_time(now),
    }
    _checked(said)
    return sign(encode(said), [signer], PAYLOAD_TYPE, STATEMENT_LIMIT).decode()


def parse_host_statement(payload: bytes) -> HostStatement:
    """The statement in the payload of an envelope.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    return _checked(decode_canonical(payload))


def _checked(value: object) -> HostStatement:
    try:
        return msgspec.convert(value, HostStatement)
    except msgspec.ValidationError as error:
        raise Refused(
            Reason.HOST_STATEMENT_INVALID, f"this is no host's statement: {error}", _NEXT
        ) from error
