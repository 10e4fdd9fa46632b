"""Whether a witness may cosign: the checks of tlog-witness, in its order. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from egs_kernel.audit.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from egs_kernel.audit.merkle import EMPTY_ROOT, verify_consistency
from egs_kernel.audit.notes import Note
from egs_kernel.errors import EgsError, NoteError, ProofError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from egs_kernel.audit.notes import VerifierKey
    from egs_kernel.witness.submission import Submission


class NotCosigned(EgsError):
    """The witness does not cosign. `status` is its answer; `latest`, with 409, the size that it has cosigned."""

    def __init__(self, status: HTTPStatus, reason: Reason, message: str, latest: int | None = None) -> None:
        super().__init__(reason, message)
        self.status = status
        self.latest = latest

    @property
    def shows_a_fork(self) -> bool:
        """Whether the log itself signed a checkpoint that does not continue the one before: keep it as evidence."""
        return self.status is HTTPStatus.UNPROCESSABLE_ENTITY


def origin_of(content: bytes) -> str:
    """The origin in a checkpoint whose signatures are not verified yet.

    Raises:
        NotCosigned: 400: it is no checkpoint.
    """
    try:
        return Checkpoint.parse(Note.parse(content).text).origin
    except NoteError as error:
        raise NotCosigned(HTTPStatus.BAD_REQUEST, error.reason, error.message) from error


def judge(
    submission: Submission,
    logs: Mapping[str, tuple[VerifierKey, ...]],
    latest_of: Callable[[str], Checkpoint | None],
) -> SignedCheckpoint:
    """The checkpoint that may be cosigned: its log signed it, and it continues the latest one.

    Args:
        submission: what was asked.
        logs: the keys of each log that is known, by origin.
        latest_of: the latest checkpoint that was cosigned of an origin.

    Raises:
        NotCosigned: 400, 403, 404, 409 or 422, as tlog-witness says.
    """
    origin = origin_of(submission.checkpoint)
    if origin not in logs:
        raise NotCosigned(HTTPStatus.NOT_FOUND, Reason.NOT_FOUND, f"no log {origin!a} is known here")
    try:
        signed = open_checkpoint(submission.checkpoint, origin, logs[origin])
    except NoteError as error:
        raise NotCosigned(HTTPStatus.FORBIDDEN, error.reason, error.message) from error
    fresh = signed.checkpoint
    if submission.old > fresh.size:
        raise NotCosigned(
            HTTPStatus.BAD_REQUEST, Reason.NOTE_MALFORMED, "the old size is larger than the checkpoint's"
        )
    latest = latest_of(origin) or Checkpoint(origin, 0, EMPTY_ROOT)
    if submission.old != latest.size:
        message = f"the latest checkpoint that was cosigned has {latest.size} entries, not {submission.old}"
        raise NotCosigned(HTTPStatus.CONFLICT, Reason.PROOF_INVALID, message, latest.size)
    try:
        verify_consistency(latest.size, latest.root, fresh.size, fresh.root, submission.proof)
    except ProofError as error:
        raise NotCosigned(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason, error.message) from error
    return signed
