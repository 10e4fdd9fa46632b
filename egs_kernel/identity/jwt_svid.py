"""JWT-SVIDs (JWT-SVID.md): PyJWT verifies the signature; what a JWT may be is decided here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from egs_kernel.identity.spiffe import SpiffeId, svid_expired, svid_invalid

if TYPE_CHECKING:
    from jwt.types import Options

    from egs_kernel.identity.bundles import Bundles, JwtKey

MAX_TOKEN: Final = 16 * 1024
LEEWAY: Final = timedelta(seconds=60)
"""How far ahead the clock of who issued it may be. Nothing is added to its end."""
_CURVES: Final = {"ES256": SECP256R1, "ES384": SECP384R1, "ES512": SECP521R1}
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_HEADERS: Final = frozenset({"alg", "kid", "typ"})
_MIN_RSA_BITS: Final = 2048
_LAST_MOMENT: Final = 253402300799  # 9999-12-31T23:59:59Z
_OURS: Final[Options] = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
"""Checked here, with the clock that is passed in."""


def audience_of(host_id: str) -> str:
    """What an SVID for this host's daemon and authority names as its audience: it is of no use on another host."""
    return f"egs-kernel/{host_id}"


@dataclass(frozen=True)
class JwtSvid:
    """A JWT-SVID that verified. `expires`: valid until before."""

    spiffe_id: SpiffeId
    expires: datetime


def verify_jwt_svid(token: str, audience: str, bundles: Bundles, now: datetime) -> JwtSvid:
    """The identity that a token proves.

    Args:
        token: in compact form.
        audience: what we are called; it must be for us.
        bundles: who may sign for which trust domain.
        now: an aware time.

    Raises:
        Refused: SVID_INVALID, SVID_EXPIRED, or BUNDLE_UNTRUSTED.
        UsageError: the bundle of its trust domain is malformed.
    """
    algorithm, key_id, subject = _unverified(token)
    bundle = bundles.get(subject.trust_domain, now)
    if key_id is not None and key_id not in bundle.jwt:
        raise svid_invalid(f"no key {key_id[:80]!r} of {subject.trust_domain} signs JWT-SVIDs")
    keys = bundle.jwt.values() if key_id is None else (bundle.jwt[key_id],)
    claims = _verified(token, algorithm, [key for key in keys if _suits(algorithm, key)])
    found = SpiffeId.of_workload(_text(claims, "sub"))
    _check_audience(claims.get("aud"), audience)
    return JwtSvid(found, _check_times(claims, now))


def _unverified(token: str) -> tuple[str, str | None, SpiffeId]:
    """Algorithm, key id and subject, as the token says: they only choose the key."""
    if len(token) > MAX_TOKEN:
        raise svid_invalid(f"the token is larger than {MAX_TOKEN} bytes")
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token)
        claims: dict[str, Any] = jwt.decode(token, options={**_OURS, "verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise svid_invalid(f"it is no JWT: {error}") from error
    if unknown := header.keys() - _HEADERS:
        raise svid_invalid(f"its header has {min(unknown)!r}, which a JWT-SVID has not")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise svid_invalid(f"it is of the type {header['typ']!r}")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in {*_RSA, *_CURVES}:
        raise svid_invalid(f"the algorithm {algorithm!r} is none of a JWT-SVID's")
    if key_id is not None and not isinstance(key_id, str):
        raise svid_invalid("its key id is no text")
    return algorithm, key_id, SpiffeId.of_workload(_text(claims, "sub"))


def _suits(algorithm: str, key: JwtKey) -> bool:
    if isinstance(key, RSAPublicKey):
        return algorithm in _RSA and key.key_size >= _MIN_RSA_BITS
    curve = _CURVES.get(algorithm)
    return curve is not None and isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, curve)


def _verified(token: str, algorithm: str, keys: list[JwtKey]) -> dict[str, Any]:
    for key in keys:
        try:
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=[algorithm], options=_OURS)
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError) as error:
            raise svid_invalid(f"it is no JWT-SVID: {error}") from error
        return claims
    raise svid_invalid("no key of its trust domain verifies its signature")


def _check_audience(value: object, audience: str) -> None:
    values = value if isinstance(value, list) else [value]
    if audience not in values:
        raise svid_invalid(f"it is for {value!r}, not for {audience!r}")


def _check_times(claims: dict[str, Any], now: datetime) -> datetime:
    expires = _time(claims, "exp")
    if expires is None:
        raise svid_invalid("it says nothing of when it expires")
    if now >= expires:
        raise svid_expired(f"the SVID expired at {expires.isoformat()}")
    for name in ("nbf", "iat"):
        start = _time(claims, name)
        if start is not None and now + LEEWAY < start:
            raise svid_expired(f"the SVID is not valid before {start.isoformat()}")
    return expires


def _time(claims: dict[str, Any], name: str) -> datetime | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        raise svid_invalid(f"its {name} is no time")
    return datetime.fromtimestamp(int(value), UTC)


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise svid_invalid(f"it has no {name}")
    return value
