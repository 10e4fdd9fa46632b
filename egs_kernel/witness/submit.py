"""The log's side of a witness: its published checkpoint goes there, a cosignature or the evidence against it comes back."""

from __future__ import annotations

import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from ssl import SSLError
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.checkpoint import Checkpoint, parse_size, with_signatures
from egs_kernel.audit.merkle import consistency_proof
from egs_kernel.audit.notes import MAX_NOTE, Note
from egs_kernel.audit.tiles import nodes_of
from egs_kernel.errors import EgsError, NoteError
from egs_kernel.witness.state import origin_hash
from egs_kernel.witness.submission import ADD_CHECKPOINT, Submission, parse_lines

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from typing import IO

    from egs_kernel.audit.published import Published
    from egs_kernel.audit.witnesses import Witness

_NO_ANSWER: Final = (
    NoteError,  # it answers something else
    HTTPException,
    SSLError,
    TimeoutError,
    ConnectionError,
)
ANSWER_SECONDS: Final = 10.0
"""How long a witness may keep silent."""


class Outcome(msgspec.Struct, frozen=True):
    """What a witness did with a checkpoint.

    `checkpoint` is one that it cosigned: the one that it was sent, or, when it refused that one, the last one of this log
    that it did cosign. `problem` says why it did not cosign, "" when it did; `refused`: because it does not continue
    the last one.
    """

    checkpoint: bytes | None = None
    problem: str = ""
    refused: bool = False


class Submitter:
    """Submits to one witness, and remembers how far that was."""

    def __init__(self, witness: Witness, log: Published) -> None:
        self.witness = witness
        self._log = log
        self._old = 0

    def submit(self, note: bytes) -> Outcome:
        """Submit a published checkpoint.

        Raises:
            EgsError, OSError: the record's own files cannot be read, or are none.
        """
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        try:
            return self._submit(note, checkpoint)
        except urllib.error.URLError as error:
            return Outcome(problem=f"{self.witness.url}: {error.reason}")
        except _NO_ANSWER as error:
            return Outcome(problem=f"{self.witness.url}: {error}")

    def _submit(self, note: bytes, checkpoint: Checkpoint) -> Outcome:
        status, answer = self._ask(note, checkpoint)
        if status == HTTPStatus.CONFLICT:
            self._old = parse_size(answer.decode(errors="replace").removesuffix("\n"))
            if self._old > checkpoint.size:
                seen = f"it has cosigned {self._old} entries of this log, which has {checkpoint.size}"
                return Outcome(self._evidence(checkpoint), seen, refused=True)
            status, answer = self._ask(note, checkpoint)
        if status == HTTPStatus.OK:
            self._old = checkpoint.size
            return Outcome(with_signatures(note, parse_lines(answer)))
        said = answer.decode(errors="replace").strip()[:200]
        problem = f"it answers {status}: {said}"
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            return Outcome(self._evidence(checkpoint), problem, refused=True)
        return Outcome(problem=problem)

    def _ask(self, note: bytes, checkpoint: Checkpoint) -> tuple[int, bytes]:
        old = min(self._old, checkpoint.size)
        proof = consistency_proof(old, checkpoint.size, nodes_of(self._log.tile, checkpoint.size))
        return _fetch(self.witness.url + ADD_CHECKPOINT, Submission(old, proof, note).encode())

    def _evidence(self, checkpoint: Checkpoint) -> bytes | None:
        """The last checkpoint of this log that the witness cosigned, where it shows that."""
        try:
            status, content = _fetch(f"{self.witness.url}/{origin_hash(checkpoint.origin)}/checkpoint")
            Note.parse(content)
        except (EgsError, OSError, HTTPException):
            return None
        return content if status == HTTPStatus.OK else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A witness is where it is configured to be."""

    def redirect_request(  # noqa: PLR0913, PLR0917 - urllib's
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow nothing."""


_opener: Final = urllib.request.build_opener(_NoRedirect)


def _fetch(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and content of what is at an address; with a body, of what is answered to it."""
    request = urllib.request.Request(url, body, {"Content-Type": "text/plain"} if body else {})  # noqa: S310 - http or https: config.py
    try:
        with _opener.open(request, timeout=ANSWER_SECONDS) as response:
            return response.status, response.read(MAX_NOTE)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MAX_NOTE)
