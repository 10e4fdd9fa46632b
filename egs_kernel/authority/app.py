"""The authority over HTTP. Who asks is in the request's scope (server.py); what is answered is in the record by then."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from egs_kernel.artifact.statement import format_time
from egs_kernel.authority.api import Answer, Problem, encode, problem_of, status_of
from egs_kernel.authority.approvals import ApprovalDocument
from egs_kernel.authority.desk import Result
from egs_kernel.authority.intent import MAX_REQUEST, NewRequest, Renewal, parse_body
from egs_kernel.authority.limits import Buckets, Counter
from egs_kernel.authority.measuring import claimed_kind
from egs_kernel.authority.openapi import document
from egs_kernel.authority.said import denial
from egs_kernel.authority.server import ASKER
from egs_kernel.authority.service import Ask
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from starlette.requests import Request

    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.desk import Desk, Session
    from egs_kernel.authority.measuring import Measurer
    from egs_kernel.authority.service import Service
    from egs_kernel.authority.settings import Settings

IDEMPOTENCY_KEY: Final = "idempotency-key"
ANSWER_SECONDS: Final = 4.0
"""How long an answer may take; the connection ends a second later."""
_JSON: Final = "application/json"
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_ID = re.compile(r"[0-9a-f]{32}")
_ARTIFACT = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)

_REQUESTS = msgspec.json.Decoder(NewRequest)
_RENEWALS = msgspec.json.Decoder(Renewal)
_APPROVALS = msgspec.json.Decoder(ApprovalDocument)

Handler = Callable[["Request"], Awaitable[Response]]


class Api:
    """What answers. Everything here belongs to the event loop's thread.

    Args:
        desk: decides.
        service: what it decides.
        measurer: sees the files of this host.
        settings: for the limits on requests.
        status: the answer to GET /v1/status, for the desk.
        identify: who asks, and the bearer token that comes with the request → who that proves; raises EgsError.
    """

    def __init__(  # noqa: PLR0913 - its parts, by name
        self,
        *,
        desk: Desk,
        service: Service,
        measurer: Measurer,
        settings: Settings,
        status: Callable[[Session], Answer],
        identify: Callable[[Asker, str], Asker],
    ) -> None:
        self._desk = desk
        self._service = service
        self._measurer = measurer
        self._status = status
        self._identify = identify
        self._buckets = Buckets(settings.rate, settings.burst)
        self._turned_away = Counter()

    def application(self) -> Starlette:
        """What uvicorn serves."""
        table: dict[str, dict[str, Handler]] = {
            "/v1/requests": {
                "POST": self._recorded(self._ask),
                "GET": self._answered(self._waiting),
            },
            "/v1/requests/{request}": {"GET": self._answered(self._show)},
            "/v1/requests/{request}/approvals": {"POST": self._recorded(self._approve)},
            "/v1/artifacts/{artifact}/renewals": {"POST": self._recorded(self._renew)},
            "/v1/status": {"GET": self._answered(self._tell_status)},
            "/v1/openapi.json": {"GET": _openapi},
        }
        # One route for each path: 405 names every method that the path has.
        routes = [Route(path, _by_method(methods), methods=list(methods)) for path, methods in table.items()]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_there})

    # -- each operation --------------------------------------------------------------------------

    async def _ask(self, request: Request, asker: Asker) -> Answer:
        key = _idempotency_key(request)
        body = await _body(request, _REQUESTS)
        assert isinstance(body, NewRequest)  # noqa: S101 - for the type checker
        kind = self._measurer.recall(body.intent) if asker.is_local else claimed_kind(body.intent)
        if kind is None:
            loop = asyncio.get_running_loop()
            kind = await loop.run_in_executor(None, self._measurer.check, body.intent)
        return await self._decided(
            self._service.ask(
                Ask(
                    asker=asker,
                    document=body.intent,
                    kind=kind,
                    asked_at=body.asked_at,
                    key=key,
                    host_statement=body.host_statement,
                )
            )
        )

    async def _renew(self, request: Request, asker: Asker) -> Answer:
        body = await _body(request, _RENEWALS)
        assert isinstance(body, Renewal)  # noqa: S101 - for the type checker
        artifact = request.path_params["artifact"]
        if not _ARTIFACT.fullmatch(artifact):
            raise _nothing_here()
        return await self._decided(self._service.renew(asker, artifact, body.asked_at))

    async def _approve(self, request: Request, asker: Asker) -> Answer:
        body = await _body(request, _APPROVALS)
        assert isinstance(body, ApprovalDocument)  # noqa: S101 - for the type checker
        return await self._decided(self._service.approve(asker, _request_id(request), body))

    async def _show(self, request: Request, asker: Asker) -> Answer:
        return await self._decided(self._service.show(asker, _request_id(request)))

    async def _waiting(self, _request: Request, asker: Asker) -> Answer:
        return await self._decided(self._service.waiting(asker))

    async def _tell_status(self, _request: Request, _asker: Asker) -> Answer:
        return await self._decided(lambda session: Result((), self._status(session)))

    async def _decided(self, work: Callable[[Session], Result[Answer]]) -> Answer:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._desk.submit(work)

    # -- around them -----------------------------------------------------------------------------

    def _answered(self, operation: Callable[[Request, Asker], Awaitable[Answer]]) -> Handler:
        """An operation that only looks."""

        async def handler(request: Request) -> Response:
            asker: Asker = request.scope[ASKER]
            wait = self._buckets.take(asker.principal, time.monotonic())
            if wait:
                return await self._turn_away(asker, wait)
            try:
                return _response(await operation(request, asker))
            except EgsError as error:
                return _response(problem_of(error))
            except TimeoutError:
                return _response(problem_of(_late()))

        return handler

    def _recorded(self, operation: Callable[[Request, Asker], Awaitable[Answer]]) -> Handler:
        """An operation that somebody is granted or refused something by: what it raises goes into the record, too."""

        async def told(request: Request, asker: Asker) -> Answer:
            try:
                return await operation(request, self._proven(request, asker))
            except EgsError as error:
                return await self._refused(asker, error)

        return self._answered(told)

    def _proven(self, request: Request, asker: Asker) -> Asker:
        """Who asks, with the workload that a bearer token proves, if there is one."""
        header = request.headers.get("authorization")
        if header is None:
            return asker
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Refused(
                Reason.NOT_PERMITTED,
                f"nobody is known by {scheme[:20]!r} here",
                "Show a JWT-SVID, or nothing.",
            )
        return self._identify(asker, token)

    async def _refused(self, asker: Asker, error: EgsError, count: int = 1) -> Answer:
        """Record a refusal that the desk knows nothing of."""

        def work(session: Session) -> Result[Answer]:
            entry = denial(asker, error, format_time(session.now), count=count)
            return Result((entry,), problem_of(error))

        if error.reason in _NOT_RECORDED:
            return problem_of(error)
        return await self._decided(work)

    async def _turn_away(self, asker: Asker, wait: float) -> Response:
        """Too many requests: said to each, and recorded once a second with how many they were."""
        error = Refused(
            Reason.RATE_LIMITED,
            f"{asker.principal} asks too often",
            f"Ask again in {wait:.1f} s, or have the rate raised (authority.toml).",
        )
        if count := self._turned_away.add(asker.principal, time.monotonic()):
            try:
                await self._refused(asker, error, count)
            except EgsError as failure:
                _log.warning("a refusal is not in the record: %s", failure)
        response = _response(problem_of(error))
        response.headers["Retry-After"] = str(max(1, round(wait)))
        return response


_NOT_RECORDED: Final = frozenset({Reason.RECORD_UNAVAILABLE, Reason.RECORD_CORRUPT})
"""What failed because the record does."""


def _response(answer: Answer) -> Response:
    return Response(
        encode(answer), int(status_of(answer)), media_type=_JSON, headers={"Cache-Control": "no-store"}
    )


async def _body(request: Request, decoder: msgspec.json.Decoder[Any]) -> msgspec.Struct:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_REQUEST:
            break
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise Refused(
            Reason.REQUEST_MALFORMED,
            f"the request is of the type {media_type!a}",
            f"Send it as Content-Type: {_JSON}",
        )
    return parse_body(bytes(content), decoder)


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(keys) > 1 or (keys and not _KEY.fullmatch(keys[0])):
        raise Refused(
            Reason.REQUEST_MALFORMED,
            "Idempotency-Key is not one word of 1 to 128 printable ASCII characters",
            "Use a random one for each request, such as a UUID.",
        )
    return keys[0] if keys else None


def _request_id(request: Request) -> str:
    found: str = request.path_params["request"]
    if not _ID.fullmatch(found):
        raise _nothing_here()
    return found


def _nothing_here() -> Refused:
    return Refused(Reason.NOT_FOUND, "there is nothing of this name", "Use an id that the authority gave.")


def _late() -> EgsError:
    return EgsError(
        Reason.RECORD_UNAVAILABLE,
        f"the authority did not decide within {ANSWER_SECONDS:.0f} s",
        "Ask again with the same idempotency key: what was decided meanwhile is told then.",
    )


async def _openapi(_request: Request) -> Response:
    return Response(document(), media_type=_JSON)


async def _not_there(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    reason = Reason.NOT_FOUND if status == 404 else Reason.REQUEST_MALFORMED  # noqa: PLR2004 - HTTP's number
    problem = Problem(
        reason=reason.code,
        message="the authority has no such resource, or not this method",
        next_step="See its OpenAPI document: GET /v1/openapi.json",
    )
    return Response(encode(problem), status, media_type=_JSON, headers=headers)


def _by_method(methods: dict[str, Handler]) -> Handler:
    async def handler(request: Request) -> Response:
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return handler
