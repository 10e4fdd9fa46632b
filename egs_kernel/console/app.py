"""The console over HTTP: `/metrics`, and the log below `/log/`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from egs_kernel.console import metrics
from egs_kernel.web import LocalNamesOnly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request


def application(metrics_file: Path, stale_after: float, clock: Callable[[], float]) -> Starlette:
    """What answers for the console.

    Args:
        metrics_file: what the daemon writes.
        stale_after: seconds after which its values are no longer served.
        clock: Unix seconds.
    """
    metrics_now = partial(metrics.answer, metrics_file, stale_after, clock)

    def serve_metrics(_: Request) -> Response:
        return _plain(metrics_now(), cache="no-store")

    def nothing(_request: Request, _error: Exception) -> Response:
        return _plain(PlainTextResponse("see /metrics\n", 404), cache="no-store")

    return Starlette(
        routes=[Route("/metrics", serve_metrics)],
        middleware=[Middleware(LocalNamesOnly)],
        exception_handlers={404: nothing},
    )


def _plain(response: Response, cache: str) -> Response:
    response.headers["Cache-Control"] = cache
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
