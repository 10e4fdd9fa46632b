"""One X.509 certificate out of bytes that anybody may have sent."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises, at the parse or at the first look into a part: they have no base of their own."""


def read_certificate(content: bytes) -> x509.Certificate:
    """The certificate in DER.

    Raises:
        ValueError: it is none, or none by RFC 5280; or another of `UNREADABLE`.
    """
    certificate = x509.load_der_x509_certificate(content)
    if certificate.serial_number <= 0:  # RFC 5280, 4.1.2.2; cryptography only warns
        raise ValueError("its serial number is not positive")
    return certificate
