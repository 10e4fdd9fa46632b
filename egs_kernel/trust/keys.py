"""Key pairs as PEM files and as securesystemslib's keys and signers.

A hybrid key is two PEM blocks in one file: Ed25519, then ML-DSA-65. Keys that are not in files: signers.py.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from egs_kernel.durable import create_file
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_secret_file
from egs_kernel.sslib import CryptoSigner, SSlibKey
from egs_kernel.trust.hybrid import HybridKey, HybridSigner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from egs_kernel.sslib import Key

KEY_LIMIT = 16 * 1024
"""Most bytes of a key file."""
MIN_PASSPHRASE = 16
"""Fewest characters of a passphrase: the file format slows guessing down by little."""
_KINDS = "Ed25519, ECDSA P-256, ML-DSA-65 and Ed25519 with ML-DSA-65 are supported: egs keys generate"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n[A-Za-z0-9+/=\r\n:, -]*?-----END \1-----\s*")

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | MLDSA65PublicKey


class Algorithm(Enum):
    """What a key pair can be."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"
    ML_DSA_65 = "ml-dsa-65"
    HYBRID = "ed25519+ml-dsa-65"


_ALGORITHMS = {
    ("ed25519", "ed25519"): Algorithm.ED25519,
    ("ecdsa", "ecdsa-sha2-nistp256"): Algorithm.ECDSA_P256,
    ("ml-dsa", "ml-dsa-65/1"): Algorithm.ML_DSA_65,
}


def generate(algorithm: Algorithm) -> CryptoSigner | HybridSigner:
    """A new key pair, in memory only."""
    match algorithm:
        case Algorithm.ED25519:
            return CryptoSigner.generate_ed25519()
        case Algorithm.ECDSA_P256:
            return CryptoSigner.generate_ecdsa()
        case Algorithm.ML_DSA_65:
            return CryptoSigner.generate_mldsa()
        case Algorithm.HYBRID:
            return HybridSigner.generate()


def write_pair(
    signer: CryptoSigner | HybridSigner, folder: Path, name: str, passphrase: str | None = None
) -> tuple[Path, Path]:
    """Write `name.key` (PKCS#8 PEM, mode 0600, encrypted with the passphrase) and `name.pub` (PEM) into `folder`.

    Returns:
        The private and the public file.

    Raises:
        UsageError: one of the files exists (keys are never overwritten), or the passphrase is short.
        OSError: they cannot be written.
    """
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    protection = _protection(passphrase)
    parts = (signer.ed25519, signer.mldsa) if isinstance(signer, HybridSigner) else (_key_of(signer),)
    content = b"".join(part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection) for part in parts)
    _create(private, content, 0o600)
    try:
        write_public(signer.public_key, public)
    except BaseException:
        private.unlink()
        raise
    return private, public


def write_public(key: Key, path: Path) -> None:
    """Write a `.pub` file.

    Raises:
        UsageError: it exists.
        OSError: it cannot be written.
    """
    _create(path, public_pem(key).encode(), 0o644)


def load_private(path: Path, passphrase: Callable[[], str] | None = None) -> CryptoSigner | HybridSigner:
    """The signer of a private key file.

    Args:
        path: the file.
        passphrase: asked once when the file is encrypted; None: there is none.

    Raises:
        UsageError: it is missing, others may read it, the passphrase is wrong or missing, or it is no private key of
            a kind that is supported.
    """
    try:
        content = read_secret_file(path, KEY_LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND,
            f"cannot read the key {path}: {error.strerror}",
            "Name a file that egs keys generate wrote.",
        ) from error
    blocks = _blocks(content)
    if not blocks:
        raise UsageError(Reason.USAGE, f"{path} is no whole PEM private key: empty, or cut off", _KINDS)
    secret = None
    if any(b"ENCRYPTED" in block for block in blocks):
        secret = _ask(path, passphrase).encode()
    return _signer(tuple(_private(block, secret, path) for block in blocks), str(path))


def load_public(content: bytes, where: str) -> SSlibKey | HybridKey:
    """The key in PEM bytes.

    Args:
        content: PEM blocks "PUBLIC KEY": one, or the two of a hybrid key.
        where: what to call it in messages.

    Raises:
        UsageError: it is something else, or a key of another kind.
    """
    blocks = _blocks(content)
    if not blocks or any(not block.startswith(b"-----BEGIN PUBLIC KEY-----") for block in blocks):
        raise UsageError(
            Reason.USAGE, f"{where} holds something else than a PEM block PUBLIC KEY", "Name the .pub file."
        )
    try:
        parts = tuple(load_pem_public_key(block) for block in blocks)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(Reason.USAGE, f"{where} is no PEM public key", _KINDS) from error
    match parts:
        case (Ed25519PublicKey() | MLDSA65PublicKey() as key,):
            return SSlibKey.from_crypto(key)
        case (EllipticCurvePublicKey() as key,) if isinstance(key.curve, SECP256R1):
            return SSlibKey.from_crypto(key)
        case (Ed25519PublicKey() as ed25519, MLDSA65PublicKey() as mldsa):
            return HybridKey(ed25519, mldsa)
    raise _unsupported(where)


def public_pem(key: Key) -> str:
    """The PEM form of a public key."""
    if isinstance(key, HybridKey):
        return _pem(key.ed25519) + _pem(key.mldsa)
    if key.keytype == "ed25519":
        return _pem(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"])))
    return str(key.keyval["public"])


def algorithm_of(key: Key) -> Algorithm:
    """What a loaded key is.

    Raises:
        UsageError: of a kind that is not supported.
    """
    if isinstance(key, HybridKey):
        return Algorithm.HYBRID
    algorithm = _ALGORITHMS.get((key.keytype, key.scheme))
    if algorithm is None:
        raise _unsupported(f"the key {key.keyid[:16]} ({key.scheme})")
    return algorithm


def parts_of(key: Key) -> tuple[bytes, ...]:
    """The raw public keys in a key: two in a hybrid. Whoever has one of them signs for both keys that hold it."""
    return tuple(_blocks(public_pem(key).encode()))


def _blocks(content: bytes) -> list[bytes]:
    """The PEM blocks of a file that holds nothing else; empty when it does not."""
    found = [match.group() for match in _BLOCK.finditer(content)]
    return found if b"".join(found) == content.lstrip() else []


def _signer(parts: tuple[object, ...], where: str) -> CryptoSigner | HybridSigner:
    """Of a private key, or of the two parts of a hybrid."""
    match parts:
        case (Ed25519PrivateKey() | MLDSA65PrivateKey() as key,):
            return CryptoSigner(key)
        case (EllipticCurvePrivateKey() as key,) if isinstance(key.curve, SECP256R1):
            return CryptoSigner(key)
        case (Ed25519PrivateKey() as ed25519, MLDSA65PrivateKey() as mldsa):
            return HybridSigner(ed25519, mldsa)
    raise _unsupported(where)


def _key_of(signer: CryptoSigner) -> PrivateKeyTypes:
    return load_pem_private_key(signer.private_bytes, None)


def _private(block: bytes, secret: bytes | None, path: Path) -> object:
    try:
        return load_pem_private_key(block, secret if b"ENCRYPTED" in block else None)
    except UnsupportedAlgorithm as error:
        raise _unsupported(str(path)) from error
    except (ValueError, TypeError) as error:
        if b"ENCRYPTED" in block:
            raise UsageError(
                Reason.KEY_SECRET_WRONG,
                f"{path}: this is not its passphrase, or the file is damaged",
                "Give the passphrase that it was written with.",
            ) from error
        raise UsageError(Reason.USAGE, f"{path} is no PEM private key", _KINDS) from error


def _ask(path: Path, passphrase: Callable[[], str] | None) -> str:
    if passphrase is None:
        raise UsageError(
            Reason.KEY_SECRET_WRONG, f"{path} is encrypted", "Use it where its passphrase can be given."
        )
    return passphrase()


def _protection(passphrase: str | None) -> KeySerializationEncryption:
    if passphrase is None:
        return NoEncryption()
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            Reason.USAGE,
            f"a passphrase has {MIN_PASSPHRASE} characters at least",
            "Make a random one: openssl rand -base64 24",
        )
    return BestAvailableEncryption(passphrase.encode())


def _pem(key: PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _unsupported(where: str) -> UsageError:
    return UsageError(Reason.USAGE, f"{where} is a key of a kind that is not supported", _KINDS)


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        create_file(path, content, mode)
    except FileExistsError as error:
        raise UsageError(
            Reason.USAGE, f"{path} exists; keys are never overwritten", "Choose another --name or --out."
        ) from error
