"""Verification of a maintenance artifact: pure, from bytes to until when the seal is lifted, or a refusal.

As verify.py does it for an execution:

1. Envelope, signatures, statement: those of verify.py, of another predicate type.
2. Keys: as many signers as the threshold of `maintenance` asks for have that role, now.
3. Host: this one is among its subjects.
4. Window: notBefore <= now < notAfter.
5. Once: it was neither revoked nor used before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.maintenance import MaintenanceStatement, parse_maintenance
from egs_kernel.artifact.statement import format_time
from egs_kernel.checks.signers import check_signatures, check_signers
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.trust.store import Role
from egs_kernel.verify import artifact_id

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.trust.store import TrustStore

SCOPE: Final = "maintenance"
"""The name by which trust store and thresholds speak of it: a key's scope, or `*`."""


@dataclass(frozen=True, kw_only=True)
class Maintenance:
    """A maintenance artifact that authenticated."""

    id: str
    statement: MaintenanceStatement
    signers: tuple[str, ...]


def authenticate_maintenance(content: bytes, trust: TrustStore, now: datetime) -> Maintenance:
    """Steps 1 and 2.

    Raises:
        Refused: with the reason; nothing of the artifact may then be used.
    """
    envelope = parse_envelope(content)
    signers = check_signatures(envelope, trust)
    statement = parse_maintenance(envelope.payload)
    accepted = check_signers(signers, trust, SCOPE, now, role=Role.MAINTENANCE)
    return Maintenance(
        id=artifact_id(envelope),
        statement=statement,
        signers=tuple(sorted(signer.keyid for signer in accepted)),
    )


def permit(maintenance: Maintenance, *, host_id: str, spent: frozenset[str], now: datetime) -> datetime:
    """Steps 3 to 5: until when the seal of this host is lifted.

    Args:
        maintenance: what `authenticate_maintenance` returned.
        host_id: this host's.
        spent: artifact ids that were revoked, or used and so must not be used again.
        now: an aware time.

    Raises:
        Refused: with the reason.
    """
    hosts = maintenance.statement.hosts
    if host_id not in hosts:
        raise Refused(
            Reason.HOST_MISMATCH,
            f"it is for the hosts {', '.join(hosts)}, this is {host_id}",
            "Have one issued for this host: egs maintenance issue --host ID",
        )
    start, end = maintenance.statement.predicate.window
    if now < start:
        raise Refused(
            Reason.NOT_YET_VALID, f"it is not valid before {format_time(start)}", "Wait, or check the clock."
        )
    if now >= end:
        raise Refused(Reason.EXPIRED, f"it expired at {format_time(end)}", "Have a new one issued.")
    if maintenance.id in spent:
        raise Refused(
            Reason.REVOKED,
            "it was used before, or revoked: each lifts the seal once",
            "Have a new one issued.",
        )
    return end


def require_liftable(trust: TrustStore, now: datetime) -> None:
    """A seal that nobody could lift is a host that nobody could repair.

    Raises:
        Refused: THRESHOLD_NOT_MET; too few maintenance keys are trusted and valid now.
    """
    needed = trust.threshold(SCOPE)
    able = [
        key for key in trust.keys.values() if key.covers(Role.MAINTENANCE, SCOPE) and not key.problem(now)
    ]
    if (count := trust.holders(able)) < needed:
        raise Refused(
            Reason.THRESHOLD_NOT_MET,
            f"nobody could lift the seal: {count} of {needed} maintenance keys are trusted here",
            "Run: egs trust add FILE.pub --role maintenance --scope maintenance",
        )
