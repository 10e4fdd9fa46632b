"""What somebody asks the authority for: the intent as a document, its one form of bytes, its digest. Pure."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import (
    AbsolutePath,
    AccountId,
    Argument,
    Constraints,
    EnvironmentRules,
    Label,
    ScopeName,
    Sha256,
    Text,
    Time,
    argv_size,
)
from egs_kernel.artifact.strict import Strict, misfit
from egs_kernel.errors import Refused
from egs_kernel.model import ARGV_MAX, Reason

MAX_REQUEST: Final = 24 * 1024
"""Most bytes of a request: what was asked has to fit into one entry of the record, as text within JSON."""
DAY: Final = 24 * 3600


class NamedFile(Strict, frozen=True):
    """A file by its path and its SHA-256."""

    path: AbsolutePath
    sha256: Sha256


_Files = Annotated[tuple[NamedFile, ...], Meta(max_length=64)]


class IntentDocument(Strict, frozen=True):
    """What is to be executed, for whom and what for.

    `uid` None: by whoever asks. `host` None: on the authority's own host if it was asked there, else on any. `valid_for` is
    seconds. The program is what the kernel executes: for a script its interpreter, and the script is among `scripts`.
    """

    program: NamedFile
    argv: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=1024)]
    scope: ScopeName | None = None
    scripts: _Files = ()
    libraries: _Files = ()
    children: _Files = ()
    cwd: AbsolutePath | None = None
    environment: EnvironmentRules | None = None
    constraints: Constraints | None = None
    purpose: Text | None = None
    ticket: Label | None = None
    risk: Literal["low", "medium", "high", "critical"] | None = None
    uid: AccountId | None = None
    host: Label | None = None
    parent_execution: Label | None = None
    valid_for: Annotated[int, Meta(ge=1, le=30 * DAY)] | None = None
    uses: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None

    def __post_init__(self) -> None:
        if argv_size(self.argv) > ARGV_MAX:
            raise ValueError(f"argv has more than {ARGV_MAX} bytes, a NUL after each argument included")


class NewRequest(Strict, frozen=True):
    """The body of a new request. `asked_at` is the asker's clock: a wrong one is told, not guessed around.

    `host_statement` is what the asker's host signed of it (artifact/hosts.py), for an authority on another one.
    """

    intent: IntentDocument
    asked_at: Time
    host_statement: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class Renewal(Strict, frozen=True):
    """The body of a renewal."""

    asked_at: Time


_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_INTENTS: Final = msgspec.json.Decoder(IntentDocument)


def encode_intent(document: IntentDocument) -> bytes:
    """The one form of an intent: RFC 8785, since its keys are ASCII and it holds no floats."""
    return _ENCODER.encode(document)


def decode_intent(content: bytes | str) -> IntentDocument:
    """The intent in bytes of `encode_intent`.

    Raises:
        msgspec.ValidationError: it is none.
    """
    return _INTENTS.decode(content)


def intent_digest(content: bytes) -> str:
    """What people approve: the SHA-256 (hex) of an intent's one form."""
    return hashlib.sha256(content).hexdigest()


def parse_body(content: bytes, decoder: msgspec.json.Decoder[msgspec.Struct]) -> msgspec.Struct:
    """The body of a request.

    Raises:
        Refused: REQUEST_TOO_LARGE, REQUEST_MALFORMED, ARTIFACT_MALFORMED.
    """
    if len(content) > MAX_REQUEST:
        raise Refused(
            Reason.REQUEST_TOO_LARGE,
            f"the request is larger than {MAX_REQUEST} bytes",
            "Shorten its arguments, environment or lists of files.",
        )
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        if error.__cause__ is not None:  # it fits its type, and contradicts itself
            raise Refused(
                Reason.ARTIFACT_MALFORMED,
                f"no artifact can say this: {misfit(error)}",
                "docs/artifact.md says what an artifact can say.",
            ) from error
        raise _malformed(f"the request does not fit its type: {misfit(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"the request is no JSON: {error}") from error


def _malformed(message: str) -> Refused:
    return Refused(
        Reason.REQUEST_MALFORMED, message, "See the authority's OpenAPI document: GET /v1/openapi.json"
    )
