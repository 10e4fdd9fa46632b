"""What the authority answers: types, status codes, bytes. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from egs_kernel.artifact.strict import Strict
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.errors import EgsError


class Issued(Strict, frozen=True, tag_field="state", tag="issued"):
    """An artifact. `artifact` is the text of its file, whole."""

    request: str
    artifact_id: str
    artifact: str
    not_after: str
    intent_digest: str


class Vote(Strict, frozen=True):
    """Who approved a request, or did not."""

    keyid: str
    name: str
    action: Literal["approved", "denied"]


class Pending(Strict, frozen=True, tag_field="state", tag="pending"):
    """It waits for people. `intent_digest` is what they sign; `intent` the canonical JSON that it is of."""

    request: str
    principal: str
    scope: str
    intent: str
    intent_digest: str
    required: int
    until: str
    approvals: tuple[Vote, ...] = ()


class Waiting(Strict, frozen=True):
    """Requests that wait, the oldest first."""

    waiting: tuple[Pending, ...]


class Problem(Strict, frozen=True, tag_field="state", tag="denied"):
    """A refusal. `policies` determined it; `advice` is what they say to whoever asks."""

    reason: str
    message: str
    next_step: str
    request: str | None = None
    policies: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


class Status(Strict, frozen=True):
    """What everybody may know of the authority."""

    name: str
    version: str
    host: str
    key_id: str
    default_scope: str | None
    policy_name: str
    policy_version: int
    policy_digest: str
    record_origin: str
    record_key: str
    record_size: int


Answer = Issued | Pending | Waiting | Problem | Status

_STATUSES: Final = {
    Reason.REQUEST_MALFORMED: HTTPStatus.BAD_REQUEST,
    Reason.REQUEST_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Reason.IDEMPOTENCY_CONFLICT: HTTPStatus.CONFLICT,
    Reason.QUOTA_EXCEEDED: HTTPStatus.TOO_MANY_REQUESTS,
    Reason.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Reason.RECORD_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.RECORD_CORRUPT: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.SIGNER_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.POLICY_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.POLICY_INVALID: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.CONFIG_INVALID: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.PATH_UNSAFE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_ENCODER: Final = msgspec.json.Encoder()


def status_of(answer: Answer) -> HTTPStatus:
    """The status code of an answer. A denial is 403, whatever denied it."""
    if isinstance(answer, Pending):
        return HTTPStatus.ACCEPTED
    if isinstance(answer, Problem):
        return _STATUSES.get(Reason[answer.reason.upper()], HTTPStatus.FORBIDDEN)
    return HTTPStatus.OK


def problem_of(
    error: EgsError, request: str | None = None, policies: tuple[str, ...] = (), advice: tuple[str, ...] = ()
) -> Problem:
    """The refusal that an error is."""
    return Problem(
        reason=error.reason.code,
        message=error.message,
        next_step=error.next_step,
        request=request,
        policies=policies,
        advice=advice,
    )


def encode(answer: Answer) -> bytes:
    """The body of an answer."""
    return _ENCODER.encode(answer)
