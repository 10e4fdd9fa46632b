"""A private Ed25519 key in a file: PEM, for its owner alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from egs_kernel.durable import create_file
from egs_kernel.errors import EgsError, UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_secret_file

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT: Final = 16 * 1024


def write_private(path: Path, private: Ed25519PrivateKey) -> None:
    """Write a key into a file that was not there, 0600, durably.

    Raises:
        OSError: it is there, or cannot be written.
    """
    create_file(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def read_private(path: Path) -> Ed25519PrivateKey:
    """The key in a file.

    Raises:
        EgsError: NOT_FOUND (it cannot be read), PATH_UNSAFE (others may read or change it), CONFIG_INVALID (it is no
            unencrypted Ed25519 key).
    """
    try:
        content = read_secret_file(path, _LIMIT)
    except OSError as error:
        raise EgsError(
            Reason.NOT_FOUND,
            f"cannot read the key {path}: {error.strerror}",
            "Restore it from a copy; docs/log.md says what to do when there is none.",
        ) from error
    try:
        private = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key(path)
    return private


def _no_key(path: Path) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID, f"{path} is no unencrypted Ed25519 key in PEM", "Restore it from a copy."
    )
