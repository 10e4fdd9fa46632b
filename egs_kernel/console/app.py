"""The console over HTTP: `/metrics`, and the log below `/log/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from egs_kernel.web import LocalNamesOnly

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from egs_kernel.console.log import PublishedLog

_LOG = "/log/"


def application(metrics_now: Callable[[], Response], log: PublishedLog) -> Starlette:
    """What answers for the console.

    Args:
        metrics_now: answers `/metrics` (metrics.py).
        log: answers below `/log/`.
    """

    def serve_metrics(_: Request) -> Response:
        return _plain(metrics_now())

    def serve_log(request: Request) -> Response:
        compressed = "gzip" in request.headers.get("accept-encoding", "")
        path = request.scope["path"].removeprefix(
            _LOG
        )  # not the route's: that one loses a newline at the end
        return _plain(log.answer(path, compressed=compressed))

    def nothing(_request: Request, _error: Exception) -> Response:
        return _plain(PlainTextResponse("see /metrics and /log/checkpoint\n", 404))

    return Starlette(
        routes=[Route("/metrics", serve_metrics), Route(f"{_LOG}{{path:path}}", serve_log)],
        middleware=[Middleware(LocalNamesOnly)],
        exception_handlers={404: nothing},
    )


def _plain(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
