"""A signed revocation list: what was taken back for a scope, or for all, numbered, with the time of the next one.

It is the payload of a DSSE envelope of its own type, in canonical JSON like everything that is signed. A list says all
that is revoked; the next one, with a higher number, takes its place.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from egs_kernel.artifact.canonical import decode_canonical, encode
from egs_kernel.artifact.statement import Label, Sha256, Time, parse_time
from egs_kernel.artifact.strict import Strict
from egs_kernel.errors import Refused
from egs_kernel.model import Reason, Revoked

PAYLOAD_TYPE: Final = "application/vnd.egs-001.revocation-list+json"
LIST_TYPE: Final = "urn:egs-001:revocation-list:v1"
LIST_LIMIT: Final = 512 * 1024
"""Most bytes of a list's file: about 3500 things."""

_NEXT = "Use the file as egs revocations issue wrote it."
ListScope = Annotated[
    str, Meta(min_length=1, max_length=32, pattern=r"^(?:\*(?![\s\S])|(?![\s\S]*[^a-z0-9._-])[a-z0-9])")
]
_Times = dict[Sha256, Time]


class RevokedThings(Strict, frozen=True):
    """By kind: id → since when."""

    artifact: _Times = field(default_factory=dict)
    key: _Times = field(default_factory=dict)
    subject: _Times = field(default_factory=dict)
    policy: _Times = field(default_factory=dict)
    host: dict[Label, Time] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in self.__struct_fields__:
            for since in getattr(self, kind).values():
                parse_time(since)


class RevocationList(Strict, frozen=True):
    """A list. `scope` `*` is every scope; `number` rises by scope. After `next_update` there is a newer one."""

    type: Literal["urn:egs-001:revocation-list:v1"] = field(name="_type")
    scope: ListScope
    number: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    issued_at: Time
    next_update: Time
    revoked: RevokedThings

    def __post_init__(self) -> None:
        if parse_time(self.issued_at) >= parse_time(self.next_update):
            raise ValueError("issuedAt must be earlier than nextUpdate")

    @property
    def things(self) -> Revoked:
        """What it revokes."""
        return Revoked(**{kind: getattr(self.revoked, kind) for kind in self.revoked.__struct_fields__})

    @property
    def count(self) -> int:
        """How many things it revokes."""
        return sum(len(getattr(self.revoked, kind)) for kind in self.revoked.__struct_fields__)


def encode_revocation_list(content: RevocationList) -> bytes:
    """The payload of a list."""
    return encode(msgspec.to_builtins(content))


def parse_revocation_list(payload: bytes) -> RevocationList:
    """The list in the payload of an envelope.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    value = decode_canonical(payload)
    try:
        found = msgspec.convert(value, RevocationList)
    except msgspec.ValidationError as error:
        raise Refused(
            Reason.REVOCATION_LIST_MALFORMED, f"this is no revocation list of this version: {error}", _NEXT
        ) from error
    if encode_revocation_list(found) != payload:
        raise Refused(
            Reason.REVOCATION_LIST_MALFORMED,
            "the list has tables that say nothing",
            "Leave out what is empty.",
        )
    return found
