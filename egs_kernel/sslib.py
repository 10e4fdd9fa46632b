"""securesystemslib: DSSE envelopes, keys and signers. Everybody takes them from here.

It imports the client of every key service and token that is installed (14 MB and 80 ms with Vault's and PKCS#11's
alone), whoever imports it, the daemon included. Here they are out of its sight; `clients` lets it see them once more.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLIENTS = ("azure.core", "azure.identity", "boto3", "google.cloud.kms", "hvac", "keylet", "pkcs11")


@contextmanager
def _hidden() -> Iterator[None]:
    hidden = [name for name in _CLIENTS if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # importing it is then an ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _hidden():
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import (
        UnsupportedLibraryError,
        UnverifiedSignatureError,
        VerificationError,
    )
    from securesystemslib.formats import encode_canonical
    from securesystemslib.signer import (
        KEY_FOR_TYPE_AND_SCHEME,
        CryptoSigner,
        Key,
        SecretsHandler,
        Signature,
        Signer,
        SSlibKey,
    )

__all__ = (
    "KEY_FOR_TYPE_AND_SCHEME",
    "CryptoSigner",
    "Envelope",
    "Key",
    "SSlibKey",
    "SecretsHandler",
    "Signature",
    "Signer",
    "UnsupportedLibraryError",
    "UnverifiedSignatureError",
    "VerificationError",
    "clients",
    "encode_canonical",
)


def clients(name: str) -> type:
    """The signer class `name` of securesystemslib, with the client it needs where that is installed.

    Raises:
        UnsupportedLibraryError: by the class's methods, when it is not.
    """
    module = sys.modules[getattr(sys.modules["securesystemslib.signer"], name).__module__]
    reloaded: type = getattr(importlib.reload(module), name)
    return reloaded
