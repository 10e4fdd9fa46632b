"""Strict RFC 8785 canonical JSON: one value, one byte string.

Parse, encode again, compare: duplicate keys, floats written as integers, other number forms, white
space, other escapes and other key orders all end here, because none of them survives the round trip.
"""

from __future__ import annotations

from typing import Any

import msgspec
import rfc8785

from egs_kernel.errors import Refused
from egs_kernel.model import Reason

_NEXT = "Ask the issuer for an artifact that egs-kernel wrote."


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        ValueError: the value has no canonical form (NaN, integers beyond 2^53, lone surrogates, ...).
    """
    return rfc8785.dumps(value)


def decode_canonical(payload: bytes) -> Any:
    """The JSON value of canonical bytes.

    Raises:
        Refused: ARTIFACT_MALFORMED when it is no JSON, ARTIFACT_NOT_CANONICAL when it is no RFC 8785 JSON.
    """
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Reason.ARTIFACT_MALFORMED, f"the payload is no JSON: {error}", _NEXT) from error
    try:
        canonical = encode(value)
    except (ValueError, RecursionError) as error:
        raise Refused(
            Reason.ARTIFACT_NOT_CANONICAL, f"the payload has no canonical form: {error}", _NEXT
        ) from error
    if canonical != payload:
        raise Refused(Reason.ARTIFACT_NOT_CANONICAL, "the payload is not RFC 8785 canonical JSON", _NEXT)
    return value
