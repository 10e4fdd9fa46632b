"""The DSSE envelope: securesystemslib's, parsed more strictly than it parses.

DSSE lets a reader ignore unknown fields; we refuse them, and duplicate keys, because a reader that
sees something else in the same file is one surprise too many.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from egs_kernel.artifact import canonical
from egs_kernel.artifact.strict import misfit
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.sslib import Envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.sslib import Signer

MAX_ARTIFACT: Final = 64 * 1024
"""Most bytes of an artifact file."""
MAX_SIGNATURES: Final = 16
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"

_NEXT = "Use the file as `egs issue` or the authority wrote it."
_UNKNOWN_FIELD = "Object contains unknown field"  # how msgspec's message begins; test_artifact.py pins it


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    keyid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    sig: str


class _EnvelopeFile(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    payload: str
    payload_type: str
    signatures: Annotated[list[_Signature], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)]


class _DuplicateKeyError(ValueError):
    """The same key twice in one JSON object."""


def parse_envelope(content: bytes, payload_type: str = PAYLOAD_TYPE, limit: int = MAX_ARTIFACT) -> Envelope:
    """The envelope in the bytes of an artifact file, or of something else that is signed.

    Raises:
        Refused: too large, malformed, with unknown fields, or of another payload type.
    """
    if len(content) > limit:
        raise Refused(Reason.ARTIFACT_TOO_LARGE, f"the file is larger than {limit} bytes", _NEXT)
    try:
        value = json.loads(content.decode(), object_pairs_hook=_distinct)
        file = msgspec.convert(value, _EnvelopeFile)
        envelope = Envelope.from_dict(msgspec.to_builtins(file))
    except msgspec.ValidationError as error:
        raise type_error(error) from error
    except (ValueError, RecursionError) as error:
        # ValueError: no UTF-8, no JSON, a duplicate key, no base64, two signatures with one key id.
        raise Refused(Reason.ARTIFACT_MALFORMED, f"the envelope is malformed: {error}", _NEXT) from error
    if envelope.payload_type != payload_type:
        raise Refused(
            Reason.ARTIFACT_UNKNOWN_VERSION,
            f"the payload type is {envelope.payload_type!r}, not {payload_type!r}",
            _NEXT,
        )
    return envelope


def sign(
    payload: bytes, signers: Sequence[Signer], payload_type: str = PAYLOAD_TYPE, limit: int = MAX_ARTIFACT
) -> bytes:
    """The file of `payload`, signed by each of `signers`.

    Raises:
        Refused: ARTIFACT_TOO_LARGE.
    """
    return sign_also(Envelope(payload, payload_type, {}), signers, limit)


def sign_also(envelope: Envelope, signers: Sequence[Signer], limit: int = MAX_ARTIFACT) -> bytes:
    """The artifact file of `envelope` with further signatures.

    Raises:
        Refused: ARTIFACT_TOO_LARGE, in bytes or in signatures.
    """
    for signer in signers:
        envelope.sign(signer)
    content = canonical.encode(envelope.to_dict()) + b"\n"
    if len(content) > limit or len(envelope.signatures) > MAX_SIGNATURES:
        raise Refused(
            Reason.ARTIFACT_TOO_LARGE,
            f"it would have over {limit} bytes or {MAX_SIGNATURES} signatures",
            "Shorten it.",
        )
    return content


def type_error(error: msgspec.ValidationError) -> Refused:
    """The refusal for JSON that does not fit its type."""
    unknown = str(error).startswith(_UNKNOWN_FIELD)
    return Refused(
        Reason.ARTIFACT_UNKNOWN_FIELD if unknown else Reason.ARTIFACT_MALFORMED,
        f"the artifact does not fit its type: {misfit(error)}",
        "Upgrade egs-kernel if a newer version issued it; otherwise have it issued again.",
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _DuplicateKeyError("a key occurs twice in one object")
    return table
