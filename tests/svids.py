"""A trust domain for tests: an authority, an intermediate, and SVIDs of every kind, good and bad."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
DOMAIN = "example.org"
AGENT = f"spiffe://{DOMAIN}/agents/report"
AUDIENCE = "egs-authority"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_NO_USAGE: dict[str, bool] = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Who signs certificates."""

    key: Key
    certificate: x509.Certificate


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a certificate says; the defaults are those of a good leaf."""

    uris: tuple[str, ...] = (AGENT,)
    start: datetime = NOW - timedelta(minutes=30)
    end: datetime = NOW + timedelta(minutes=30)
    ca: bool | None = False
    path_length: int | None = None
    usage: frozenset[str] | None = frozenset({"digital_signature"})
    usage_critical: bool = True
    extended: tuple[x509.ObjectIdentifier, ...] | None = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    name: str = "workload"


AUTHORITY = Shape(
    uris=(f"spiffe://{DOMAIN}",),
    start=NOW - timedelta(days=30),
    end=NOW + timedelta(days=30),
    ca=True,
    usage=frozenset({"key_cert_sign", "crl_sign"}),
    extended=None,
    name="authority",
)


def certificate(shape: Shape, key: Key, signer: Authority | None = None) -> x509.Certificate:
    """A certificate; self-signed without a signer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shape.name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(shape.start)
        .not_valid_after(shape.end)
    )
    issuer_key = (key if signer is None else signer.key).public_key()
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    if shape.uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in shape.uris])
        builder = builder.add_extension(names, critical=False)
    if shape.ca is not None:
        builder = builder.add_extension(
            x509.BasicConstraints(shape.ca, shape.path_length if shape.ca else None), critical=True
        )
    if shape.usage is not None:
        usage = x509.KeyUsage(**{**_NO_USAGE, **dict.fromkeys(shape.usage, True)})
        builder = builder.add_extension(usage, critical=shape.usage_critical)
    if shape.extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(shape.extended), critical=False)
    return builder.sign(key if signer is None else signer.key, hashes.SHA256())


def authority(shape: Shape = AUTHORITY, signer: Authority | None = None) -> Authority:
    """An authority, by itself or below another one."""
    key = new_key()
    return Authority(key=key, certificate=certificate(shape, key, signer))


def der(found: x509.Certificate) -> bytes:
    return found.public_bytes(Encoding.DER)


@dataclass
class TrustDomain:
    """An authority for X.509-SVIDs, and keys for JWT-SVIDs by key id."""

    name: str = DOMAIN
    root: Authority = field(default_factory=authority)
    jwt_keys: dict[str, Key] = field(default_factory=lambda: {"k1": new_key()})
    extra: dict[str, Any] = field(default_factory=dict)

    def bundle(self) -> bytes:
        """As `spire-server bundle show -format spiffe` prints it."""
        keys: list[dict[str, Any]] = [
            {"use": "x509-svid", "kty": "EC", "x5c": [b64encode(der(self.root.certificate)).decode()]}
        ]
        keys += [{**_jwk(key), "use": "jwt-svid", "kid": kid} for kid, key in self.jwt_keys.items()]
        return json.dumps({"keys": keys, "spiffe_sequence": 1, **self.extra}).encode()

    def write(self, folder: Path) -> Path:
        """Put the bundle where it is trusted."""
        path = folder / f"{self.name}.json"
        path.write_bytes(self.bundle())
        return path

    def chain(self, shape: Shape | None = None, *between: Authority) -> tuple[bytes, ...]:
        """An X.509-SVID, and the intermediates that sign it, the nearest first."""
        signer = between[0] if between else self.root
        leaf = certificate(shape or Shape(), new_key(), signer)
        return (der(leaf), *(der(one.certificate) for one in between))

    def token(
        self,
        *,
        kid: str = "k1",
        algorithm: str = "ES256",
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A JWT-SVID for our audience with these claims instead; None leaves one out."""
        said = {"sub": AGENT, "aud": [AUDIENCE], "iat": moment(-60), "exp": moment(300), **claims}
        present = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(present, self.jwt_keys[kid], algorithm, {"kid": kid, **(header or {})})


def moment(seconds: int) -> int:
    """So many seconds from NOW on, as a JWT says it."""
    return int(NOW.timestamp()) + seconds


def _jwk(key: Key) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return dict(RSAAlgorithm.to_jwk(public, as_dict=True))
    return dict(ECAlgorithm.to_jwk(public, as_dict=True))
