"""Trust bundles: which keys sign SVIDs of which trust domain (SPIFFE_Trust_Domain_and_Bundle.md).

A bundle is a file `TRUST-DOMAIN.json` in a folder of its own, as `spire-server bundle show -format spiffe` prints it.
Somebody else keeps it up to date; here it is read again as often as it says.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError
from msgspec import field as renamed

from egs_kernel.errors import Refused, UsageError
from egs_kernel.identity.certificates import UNREADABLE, read_certificate
from egs_kernel.identity.spiffe import is_trust_domain
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography.x509 import Certificate

MAX_BUNDLE: Final = 1024 * 1024
DEFAULT_REFRESH: Final = timedelta(minutes=5)
"""How often a bundle without a hint is read again."""
_NEXT: Final = "Have it written again: spire-server bundle show -format spiffe"

JwtKey = RSAPublicKey | EllipticCurvePublicKey


class _Entry(msgspec.Struct, frozen=True):
    """A JWK. Entries of another use or type are for others, and say nothing here."""

    kty: str = ""
    use: str = ""
    kid: str = ""
    x5c: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True):
    keys: tuple[msgspec.Raw, ...]
    sequence: int | None = renamed(name="spiffe_sequence", default=None)
    refresh_hint: int | None = renamed(name="spiffe_refresh_hint", default=None)


@dataclass(frozen=True)
class Bundle:
    """The authorities of a trust domain. With none, everything of it is refused.

    Attributes:
        trust_domain: whose they are.
        x509: the certificates that X.509-SVIDs chain up to.
        jwt: the keys that sign JWT-SVIDs, by key id.
        refresh: how often to look for a newer one.
        sequence: its number, where it has one.
    """

    trust_domain: str
    x509: tuple[Certificate, ...] = ()
    jwt: Mapping[str, JwtKey] = field(default_factory=dict)
    refresh: timedelta = DEFAULT_REFRESH
    sequence: int | None = None


def parse_bundle(content: bytes, trust_domain: str) -> Bundle:
    """The bundle in the bytes of a file.

    Raises:
        UsageError: BUNDLE_UNTRUSTED: it is malformed.
    """
    try:
        file = msgspec.json.decode(content, type=_File)
        entries = [(msgspec.json.decode(raw, type=_Entry), bytes(raw)) for raw in file.keys]
        x509 = tuple(_certificate(entry) for entry, _raw in entries if entry.use == "x509-svid" and entry.x5c)
        jwt = {
            entry.kid: _jwt_key(entry, json.loads(raw))
            for entry, raw in entries
            if entry.use == "jwt-svid" and entry.kty in {"RSA", "EC"}
        }
    except (*UNREADABLE, binascii.Error, InvalidKeyError, RecursionError) as error:
        raise _malformed(trust_domain, str(error)) from error
    hint = file.refresh_hint
    if hint is not None and hint < 0:
        raise _malformed(trust_domain, "its refresh hint is negative")
    refresh = DEFAULT_REFRESH if hint is None else timedelta(seconds=min(hint, 366 * 86400))
    return Bundle(trust_domain, x509, jwt, refresh, file.sequence)


class Bundles:
    """A folder of bundles, each read again when it says so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[Bundle, datetime]] = {}

    def all(self, now: datetime) -> tuple[Bundle, ...]:
        """Every bundle of the folder.

        Raises:
            Refused: the folder changes meanwhile.
            UsageError: one is malformed, or others could have changed it.
        """
        return tuple(self.get(path.stem, now) for path in sorted(self._folder.glob("*.json")))

    def get(self, trust_domain: str, now: datetime) -> Bundle:
        """The bundle of a trust domain, as new as it asks to be.

        Raises:
            Refused: BUNDLE_UNTRUSTED: there is none.
            UsageError: it is malformed, or others could have changed it.
        """
        known = self._read.get(trust_domain)
        if known is not None and known[1] <= now < known[1] + known[0].refresh:
            return known[0]
        path = self._folder / f"{trust_domain}.json"
        if not is_trust_domain(trust_domain) or not path.exists():
            self._read.pop(trust_domain, None)
            raise Refused(
                Reason.BUNDLE_UNTRUSTED,
                f"the trust domain {trust_domain} is not trusted here",
                f"Put its bundle into {path}.",
            )
        require_private_folder(self._folder)
        try:
            content = read_private_file(path, MAX_BUNDLE)
        except OSError as error:
            raise _malformed(trust_domain, f"it cannot be read: {error.strerror}") from error
        bundle = parse_bundle(content, trust_domain)
        if known is not None and (bundle.sequence or 0) < (known[0].sequence or 0):
            raise _malformed(
                trust_domain, f"its sequence went back from {known[0].sequence} to {bundle.sequence}"
            )
        self._read[trust_domain] = bundle, now
        return bundle


def _certificate(entry: _Entry) -> Certificate:
    return read_certificate(b64decode(entry.x5c[0], validate=True))


def _jwt_key(entry: _Entry, jwk: dict[str, Any]) -> JwtKey:
    if not entry.kid:
        raise ValueError("a key for JWT-SVIDs has no kid")
    key = RSAAlgorithm.from_jwk(jwk) if entry.kty == "RSA" else ECAlgorithm.from_jwk(jwk)
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        raise ValueError(f"the key {entry.kid} is a private key")  # noqa: TRY004 - its content is wrong, not its type
    return key


def _malformed(trust_domain: str, problem: str) -> UsageError:
    return UsageError(Reason.BUNDLE_UNTRUSTED, f"the bundle of {trust_domain}: {problem}", _NEXT)
