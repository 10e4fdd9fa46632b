"""X.509-SVIDs (X509-SVID.md): cryptography validates the path; what a leaf and an authority may be is decided here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from egs_kernel.errors import Refused
from egs_kernel.identity.certificates import UNREADABLE, read_certificate
from egs_kernel.identity.spiffe import SpiffeId, svid_expired, svid_invalid
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from egs_kernel.identity.bundles import Bundles

MAX_CHAIN: Final = 8
_BOTH: Final = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class X509Svid:
    """An X.509-SVID that verified. `expires`: valid until before. Who holds its key is not said here."""

    spiffe_id: SpiffeId
    expires: datetime


def verify_x509_svid(chain: Sequence[bytes], bundles: Bundles, now: datetime) -> X509Svid:
    """The identity in a certificate.

    Args:
        chain: DER, the leaf first, then what signs it; the authority itself need not be there.
        bundles: who may sign for which trust domain.
        now: an aware time.

    Raises:
        Refused: SVID_INVALID, SVID_EXPIRED, or BUNDLE_UNTRUSTED.
        UsageError: the bundle of its trust domain is malformed.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise svid_invalid(f"a chain has 1 to {MAX_CHAIN} certificates")
    try:
        leaf, *between = map(read_certificate, chain)
        found = _id_of(leaf)
    except UNREADABLE as error:
        raise svid_invalid(f"it is no X.509 certificate: {error}") from error
    bundle = bundles.get(found.trust_domain, now)
    if not bundle.x509:
        raise Refused(
            Reason.BUNDLE_UNTRUSTED,
            f"the trust domain {found.trust_domain} has no authority for X.509-SVIDs",
            "Have its bundle written again.",
        )
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        start, end = leaf.not_valid_before_utc.isoformat(), leaf.not_valid_after_utc.isoformat()
        raise svid_expired(f"the SVID is valid from {start} to {end}")
    verifier = (
        PolicyBuilder()
        .store(Store(list(bundle.x509)))
        .time(now)
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(ca_policy=_authority(), ee_policy=_leaf())
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, between)
    except VerificationError as error:
        raise svid_invalid(f"the SVID does not verify: {error}") from error
    return X509Svid(found, leaf.not_valid_after_utc)


def claimed_svid(certificate: bytes) -> X509Svid:
    """What a certificate (DER) says, whose path somebody else validated.

    Raises:
        Refused: SVID_INVALID: it does not bear exactly one, of a workload.
    """
    try:
        leaf = read_certificate(certificate)
        return X509Svid(_id_of(leaf), leaf.not_valid_after_utc)
    except UNREADABLE as error:
        raise svid_invalid(f"it is no X.509 certificate: {error}") from error


def _id_of(leaf: x509.Certificate) -> SpiffeId:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise svid_invalid("the certificate has no SPIFFE id") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise svid_invalid(f"the certificate has {len(uris)} URIs, and an SVID has one: its SPIFFE id")
    return SpiffeId.of_workload(uris[0])


def _leaf() -> ExtensionPolicy:
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        .require_present(x509.KeyUsage, Criticality.CRITICAL, _signs_data_alone)
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_authority)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _is_for_both_ends)
    )


def _authority() -> ExtensionPolicy:
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
        .require_present(x509.KeyUsage, Criticality.CRITICAL, _signs_certificates)
        .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, _names_no_workload)
    )


def _signs_data_alone(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise ValueError("a leaf signs data, and neither certificates nor revocation lists")


def _is_no_authority(
    _policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints | None
) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("a leaf is no authority")


def _is_for_both_ends(
    _policy: Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None
) -> None:
    if usage is not None and not set(usage) >= _BOTH:
        raise ValueError("a leaf with an extended key usage is for clients and servers")


def _is_authority(
    _policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    if not constraints.ca:
        raise ValueError("what signs a certificate is an authority")


def _signs_certificates(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("an authority signs certificates")


def _names_no_workload(
    _policy: Policy, _certificate: x509.Certificate, names: x509.SubjectAlternativeName | None
) -> None:
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else ():
        if SpiffeId.parse(uri).path:
            raise ValueError("an authority's SPIFFE id has no path")
