"""The maintenance artifact: an in-toto Statement v1 that lets a sealed host be changed, once, for a while.

Its subjects are hosts: the name is the host's id, and the digest the SHA-256 of that id, as in-toto wants one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from egs_kernel.artifact.canonical import decode_canonical
from egs_kernel.artifact.statement import (
    STATEMENT_TYPE,
    Digest,
    Label,
    Text,
    Time,
    decode_statement,
    parse_time,
)
from egs_kernel.artifact.strict import Strict

if TYPE_CHECKING:
    from datetime import datetime

MAINTENANCE_TYPE: Final = "urn:egs-001:maintenance:v1"
MAX_DAYS: Final = 7
"""How long a maintenance may last: what is forgotten ends."""


class HostSubject(Strict, frozen=True):
    """A host that may be changed."""

    name: Label
    digest: Digest

    def __post_init__(self) -> None:
        if self.digest.sha256 != host_digest(self.name):
            raise ValueError("a subject's digest is the SHA-256 of its name, the host id")


class MaintenancePredicate(Strict, frozen=True):
    """The seal is lifted from `not_before` on, until before `not_after`."""

    issued_at: Time
    not_before: Time
    not_after: Time
    purpose: Text
    operator: Label
    ticket: Label | None = None

    def __post_init__(self) -> None:
        start, end = self.window
        if start >= end:
            raise ValueError("notBefore must be earlier than notAfter")
        if parse_time(self.issued_at) >= end:
            raise ValueError("issuedAt must be earlier than notAfter")
        if (end - start).total_seconds() > MAX_DAYS * 86400:
            raise ValueError(f"a maintenance lasts {MAX_DAYS} days at most")

    @property
    def window(self) -> tuple[datetime, datetime]:
        """From when on, and until before when, it is valid."""
        return parse_time(self.not_before), parse_time(self.not_after)


class MaintenanceStatement(Strict, frozen=True):
    """An in-toto Statement v1 that lifts the seal of hosts."""

    type: Literal["https://in-toto.io/Statement/v1"] = field(name="_type")
    predicate_type: Literal["urn:egs-001:maintenance:v1"]
    subject: Annotated[tuple[HostSubject, ...], Meta(min_length=1, max_length=256)]
    predicate: MaintenancePredicate

    def __post_init__(self) -> None:
        if len(set(self.hosts)) != len(self.subject):
            raise ValueError("two subjects have the same name")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The ids of the hosts that it is for."""
        return tuple(subject.name for subject in self.subject)


_DECODER = msgspec.json.Decoder(MaintenanceStatement)


def host_digest(host_id: str) -> str:
    """The digest of a host as a subject."""
    return hashlib.sha256(host_id.encode()).hexdigest()


def maintenance_statement(hosts: tuple[str, ...], predicate: MaintenancePredicate) -> MaintenanceStatement:
    """A statement for these hosts.

    Raises:
        ValueError: it breaks a rule.
    """
    return MaintenanceStatement(
        type=STATEMENT_TYPE,
        predicate_type=MAINTENANCE_TYPE,
        subject=tuple(HostSubject(name=host, digest=Digest(sha256=host_digest(host))) for host in hosts),
        predicate=predicate,
    )


def is_maintenance(payload: bytes) -> bool:
    """Whether the payload of an envelope says that it is a maintenance artifact. Nothing else of it is looked at.

    Raises:
        Refused: it is no canonical JSON.
    """
    value = decode_canonical(payload)
    return isinstance(value, dict) and value.get("predicateType") == MAINTENANCE_TYPE


def parse_maintenance(payload: bytes) -> MaintenanceStatement:
    """The statement in the payload of an envelope.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    advice = "A seal is lifted by a maintenance artifact: egs maintenance issue"
    return decode_statement(payload, _DECODER, MAINTENANCE_TYPE, advice)
