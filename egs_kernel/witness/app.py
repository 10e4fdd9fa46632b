"""The witness over HTTP: POST /add-checkpoint, GET /<origin hash>/checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from egs_kernel.errors import EgsError, NoteError
from egs_kernel.witness.judge import NotCosigned
from egs_kernel.witness.submission import (
    ADD_CHECKPOINT,
    MAX_SUBMISSION,
    SIZE_TYPE,
    Submission,
    encode_lines,
)

if TYPE_CHECKING:
    from starlette.requests import Request

    from egs_kernel.witness.state import State

_log = logging.getLogger(__name__)


def application(state: State) -> Starlette:
    """What answers for a witness."""

    async def add_checkpoint(request: Request) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_SUBMISSION:
                return PlainTextResponse("too large\n", 413)
        return await run_in_threadpool(_add, state, bytes(content))

    def checkpoint(request: Request) -> Response:
        try:
            content = state.published(request.path_params["origin"])
        except EgsError as error:
            _log.error("%s\n%s", error, error.next_step)
            return PlainTextResponse("the witness cannot read its state\n", 500)
        if content is None:
            return PlainTextResponse("nothing was cosigned\n", 404)
        return PlainTextResponse(content, headers={"Cache-Control": "no-cache"})

    return Starlette(
        routes=[
            Route(ADD_CHECKPOINT, add_checkpoint, methods=["POST"]),
            Route("/{origin}/checkpoint", checkpoint),
        ]
    )


def _add(state: State, content: bytes) -> Response:
    try:
        return Response(encode_lines([state.add(Submission.parse(content))]), media_type="text/plain")
    except NoteError as error:
        return PlainTextResponse(f"{error.message}\n", 400)
    except NotCosigned as refusal:
        if refusal.shows_a_fork:
            _log.error("NOT COSIGNED, keep this as evidence: %s\n%s", refusal.message, content.decode())
        if refusal.latest is not None:
            return Response(f"{refusal.latest}\n", refusal.status, headers={"Content-Type": SIZE_TYPE})
        return PlainTextResponse(f"{refusal.message}\n", refusal.status)
    except EgsError as error:
        _log.error("%s\n%s", error, error.next_step)
        return PlainTextResponse("the witness cannot keep its state\n", 503)
