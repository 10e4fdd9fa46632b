"""Key pairs: Ed25519 and ECDSA P-256, as PEM files and as securesystemslib's keys and signers."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_secret_file

if TYPE_CHECKING:
    from pathlib import Path

KEY_LIMIT = 16 * 1024
"""Most bytes of a key file."""
_KINDS = "Ed25519 and ECDSA P-256 are supported: egs keys generate"
_PUBLIC_HEADER = b"-----BEGIN PUBLIC KEY-----"


class Algorithm(Enum):
    """What a key pair can be."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"


def generate(algorithm: Algorithm) -> CryptoSigner:
    """A new key pair, in memory only."""
    if algorithm is Algorithm.ED25519:
        return CryptoSigner.generate_ed25519()
    return CryptoSigner.generate_ecdsa()


def write_pair(signer: CryptoSigner, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name.key` (PKCS#8 PEM, mode 0600) and `name.pub` (PEM) into `folder`.

    Returns:
        The private and the public file.

    Raises:
        UsageError: one of the files exists; keys are never overwritten.
        OSError: they cannot be written.
    """
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    _create(private, signer.private_bytes, 0o600)
    try:
        _create(public, public_pem(signer.public_key).encode(), 0o644)
    except BaseException:
        private.unlink()
        raise
    return private, public


def load_private(path: Path) -> CryptoSigner:
    """The signer of a private key file.

    Raises:
        UsageError: it is missing, others may read it, or it is no unencrypted Ed25519 or P-256 key.
    """
    try:
        content = read_secret_file(path, KEY_LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND,
            f"cannot read the key {path}: {error.strerror}",
            "Name a file that egs keys generate wrote.",
        ) from error
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(Reason.USAGE, f"{path} is no unencrypted PEM private key", _KINDS) from error
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return CryptoSigner(key)
    raise UsageError(Reason.USAGE, f"{path} is a key of a kind that is not supported", _KINDS)


def load_public(content: bytes, where: str) -> SSlibKey:
    """The key in PEM bytes.

    Args:
        content: one PEM block "PUBLIC KEY".
        where: what to call it in messages.

    Raises:
        UsageError: it is something else, or a key of another kind.
    """
    text = content.strip()
    if not text.startswith(_PUBLIC_HEADER) or text.count(b"-----BEGIN ") != 1:
        raise UsageError(
            Reason.USAGE, f"{where} does not hold exactly one PEM block PUBLIC KEY", "Name the .pub file."
        )
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(Reason.USAGE, f"{where} is no PEM public key", _KINDS) from error
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return SSlibKey.from_crypto(key)
    raise UsageError(Reason.USAGE, f"{where} is a key of a kind that is not supported", _KINDS)


def public_pem(key: SSlibKey) -> str:
    """The PEM form of a public key."""
    if key.keytype != "ed25519":
        return str(key.keyval["public"])
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def algorithm_of(key: SSlibKey) -> Algorithm:
    """What a loaded key is."""
    return Algorithm.ED25519 if key.keytype == "ed25519" else Algorithm.ECDSA_P256


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise UsageError(
            Reason.USAGE, f"{path} exists; keys are never overwritten", "Choose another --name or --out."
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
