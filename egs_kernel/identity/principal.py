"""From evidence to a principal: one place that says who somebody is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egs_kernel.identity.jwt_svid import verify_jwt_svid
from egs_kernel.identity.units import unit_of
from egs_kernel.identity.x509_svid import verify_x509_svid

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.identity.bundles import Bundles


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A process of this host, as the kernel told of it (SO_PEERCRED, /proc/PID/cgroup): never as it says itself."""

    uid: int
    account: str | None = None
    groups: tuple[str, ...] = ()
    cgroup: str | None = None


@dataclass(frozen=True)
class BearerToken:
    """A JWT-SVID, and what we are called."""

    token: str
    audience: str


@dataclass(frozen=True)
class ClientCertificate:
    """The chain (DER, leaf first) of a TLS client, whose handshake proved that it holds the key."""

    chain: tuple[bytes, ...]


Evidence = Peer | BearerToken | ClientCertificate


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks, established. `expires`: until when that is proven; None: as long as the connection lasts."""

    account: str | None = None
    uid: int | None = None
    groups: tuple[str, ...] = ()
    unit: str | None = None
    spiffe_id: str | None = None
    expires: datetime | None = None


def resolve(evidence: Evidence, bundles: Bundles, now: datetime) -> Principal:
    """Who somebody is.

    Args:
        evidence: what shows it.
        bundles: who may sign SVIDs of which trust domain.
        now: an aware time.

    Raises:
        Refused: SVID_INVALID, SVID_EXPIRED or BUNDLE_UNTRUSTED.
        UsageError: the bundle of the trust domain is malformed.
    """
    if isinstance(evidence, Peer):
        return Principal(
            account=evidence.account,
            uid=evidence.uid,
            groups=evidence.groups,
            unit=None if evidence.cgroup is None else unit_of(evidence.cgroup),
        )
    if isinstance(evidence, BearerToken):
        token = verify_jwt_svid(evidence.token, evidence.audience, bundles, now)
        return Principal(spiffe_id=str(token.spiffe_id), expires=token.expires)
    certificate = verify_x509_svid(evidence.chain, bundles, now)
    return Principal(spiffe_id=str(certificate.spiffe_id), expires=certificate.expires)
