"""The hybrid key: Ed25519 and ML-DSA-65 as one key, whose signature counts only when both verify.

The construction is Composite ML-DSA's id-MLDSA65-Ed25519-SHA512 (draft-ietf-lamps-pq-composite-sigs): both sign the
same framed hash, so that neither half is a signature of the data by a key of its own. A forger has to break both.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from egs_kernel.sslib import (
    KEY_FOR_TYPE_AND_SCHEME,
    Key,
    Signature,
    Signer,
    UnverifiedSignatureError,
    encode_canonical,
)

if TYPE_CHECKING:
    from egs_kernel.sslib import SecretsHandler

KEYTYPE: Final = "ed25519+ml-dsa-65"
SCHEME: Final = "mldsa65-ed25519-sha512"

_LABEL = b"COMPSIG-MLDSA65-Ed25519-SHA512"
_PREFIX = b"CompositeAlgorithmSignatures2025" + _LABEL
_MLDSA_KEY = 1952
_MLDSA_SIGNATURE = 3309
_ED25519_SIGNATURE = 64


class HybridKey(Key):
    """The public half. `keyval["public"]` is the hex of the ML-DSA-65 key, then of the Ed25519 key."""

    def __init__(self, ed25519: Ed25519PublicKey, mldsa: MLDSA65PublicKey) -> None:
        keyval = {"public": (mldsa.public_bytes_raw() + ed25519.public_bytes_raw()).hex()}
        described = encode_canonical({"keytype": KEYTYPE, "scheme": SCHEME, "keyval": keyval})
        super().__init__(hashlib.sha256(str(described).encode()).hexdigest(), KEYTYPE, SCHEME, keyval)
        self.ed25519 = ed25519
        self.mldsa = mldsa

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> HybridKey:
        """The key of securesystemslib's serialized form.

        Raises:
            ValueError: it is no such key, or has another id.
        """
        raw = bytes.fromhex(key_dict["keyval"]["public"])
        key = cls(
            Ed25519PublicKey.from_public_bytes(raw[_MLDSA_KEY:]),
            MLDSA65PublicKey.from_public_bytes(raw[:_MLDSA_KEY]),
        )
        if key.keyid != keyid:
            raise ValueError(f"the key id of this key is {key.keyid}")
        return key

    def to_dict(self) -> dict[str, Any]:
        """Securesystemslib's serialized form."""
        return self._to_dict()

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Both signatures, of the same data.

        Raises:
            UnverifiedSignatureError: one of them does not verify, or is missing.
        """
        content = bytes.fromhex(signature.signature)
        if len(content) != _MLDSA_SIGNATURE + _ED25519_SIGNATURE:
            raise UnverifiedSignatureError("a hybrid signature has two parts of fixed size")
        message = framed(data)
        try:
            self.mldsa.verify(content[:_MLDSA_SIGNATURE], message, _LABEL)
            self.ed25519.verify(content[_MLDSA_SIGNATURE:], message)
        except InvalidSignature as error:
            raise UnverifiedSignatureError("one of the two signatures does not verify") from error


class HybridSigner(Signer):
    """Signs with both keys."""

    def __init__(self, ed25519: Ed25519PrivateKey, mldsa: MLDSA65PrivateKey) -> None:
        self.ed25519 = ed25519
        self.mldsa = mldsa
        self._public_key = HybridKey(ed25519.public_key(), mldsa.public_key())

    @classmethod
    def generate(cls) -> HybridSigner:
        """A new key, in memory only."""
        return cls(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,  # noqa: ARG003 - securesystemslib's interface
        secrets_handler: SecretsHandler | None = None,  # noqa: ARG003 - as above
    ) -> HybridSigner:
        """Not by securesystemslib's URIs: `trust.signers.open_signer` opens hybrid keys.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{priv_key_uri}: no hybrid key is opened by a URI")

    @property
    def public_key(self) -> HybridKey:
        """The public half."""
        return self._public_key

    def sign(self, payload: bytes) -> Signature:
        """Both signatures, as one."""
        message = framed(payload)
        content = self.mldsa.sign(message, _LABEL) + self.ed25519.sign(message)
        return Signature(self.public_key.keyid, content.hex())


def framed(data: bytes) -> bytes:
    """What both keys sign: prefix, label, an empty context, SHA-512 of the data."""
    return _PREFIX + b"\0" + hashlib.sha512(data).digest()


KEY_FOR_TYPE_AND_SCHEME[KEYTYPE, SCHEME] = HybridKey
