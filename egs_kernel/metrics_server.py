"""Serves the daemon's metrics file over HTTP on loopback. Never runs as root; reads one file and nothing else."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, Self

from egs_kernel.errors import EgsError, UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FILE_LIMIT: Final = 4 * 1024 * 1024
REQUEST_SECONDS: Final = 5
"""How long a client may take for its request."""
MAX_CLIENTS: Final = 16
"""Requests at the same time; further ones are closed at once."""

_TIMESTAMP: Final = re.compile(rb"^egs_snapshot_timestamp_seconds (\S+)$", re.MULTILINE)
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True)
class Address:
    """A loopback address to listen on."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`127.0.0.1:9731` or `[::1]:9731`; port 0 takes a free one.

        Raises:
            UsageError: it is malformed, or not loopback.
        """
        host, separator, port = text.rpartition(":")
        if not separator or not port.isascii() or not port.isdecimal() or int(port) > _HIGHEST_PORT:
            raise _wrong_address(f"{text!r} is no address and port")
        try:
            address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError as error:
            raise _wrong_address(f"{host!r} is no IP address") from error
        if not address.is_loopback:
            raise _wrong_address(f"{address} is not a loopback address")
        return cls(str(address), int(port))


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class MetricsServer(ThreadingHTTPServer):
    """Serves `/metrics` from the file that the daemon writes. `close` it, or use it as a context."""

    daemon_threads = True
    request_queue_size = MAX_CLIENTS

    def __init__(
        self, address: Address, file: Path, stale_after: float, clock: Callable[[], float] = time.time
    ) -> None:
        """Bind the address.

        Args:
            address: where to listen.
            file: what the daemon writes.
            stale_after: seconds after which the file's values are no longer served.
            clock: Unix seconds.

        Raises:
            UsageError: it runs as root, or the address cannot be bound.
        """
        refuse_root()
        self.answer = partial(answer, file=file, stale_after=stale_after, clock=clock)
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._free = threading.BoundedSemaphore(MAX_CLIENTS)
        try:
            super().__init__((address.host, address.port), _Handler)
        except OSError as error:
            raise _wrong_address(
                f"cannot listen on {address.host}:{address.port}: {error.strerror}"
            ) from error

    def process_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Serve in a thread of its own, unless too many are at work."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Serve one request, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Drop a client that went away or dawdled; that is its own affair, and not worth a traceback."""


def refuse_root() -> None:
    """Check that this process has no power to lose.

    Raises:
        UsageError: it runs as root.
    """
    if os.geteuid() == 0:
        raise UsageError(
            Reason.NOT_PERMITTED,
            "egs metrics serve does not run as root: a root process of egs listens on no port",
            "Run it as another user, for example: systemctl start egs-metrics (or: setpriv --reuid=nobody --clear-groups "
            "egs metrics serve)",
        )


def answer(file: Path, stale_after: float, clock: Callable[[], float]) -> Answer:
    """What `/metrics` answers now: the file, or 503 and why not. Prometheus then shows the target as down."""
    try:
        content = read_private_file(file, FILE_LIMIT)
    except (EgsError, OSError) as error:
        return _unavailable(f"no metrics: {error}. Is egsd running?")
    match = _TIMESTAMP.search(content)
    taken = _number(match[1]) if match else math.nan
    age = clock() - taken
    # Written so that a missing or absurd time is stale as well. From the future: the clock was set back.
    if not -stale_after <= age <= stale_after:
        return _unavailable(
            f"the metrics are {age:.0f} s old; at most {stale_after:.0f} s are served. Is egsd running?"
        )
    return Answer(HTTPStatus.OK, content, CONTENT_TYPE)


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    server_version = "egs"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def _reply(self, *, with_body: bool) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def _answer(self) -> Answer:
        if not _is_local_name(self.headers.get("Host", "")):
            # A page in a browser on this host may have bound its own name to 127.0.0.1.
            return Answer(HTTPStatus.FORBIDDEN, b"ask for a loopback address\n")
        if self.path.partition("?")[0] != "/metrics":
            return Answer(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        return self.server.answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's naming
        """Requests are not logged: they come every few seconds, and say what the client likes."""


def _is_local_name(host: str) -> bool:
    name = re.sub(r":\d+$", "", host).removeprefix("[").removesuffix("]")
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _unavailable(why: str) -> Answer:
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n".encode())


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _wrong_address(problem: str) -> UsageError:
    return UsageError(
        Reason.USAGE, f"metrics.listen: {problem}", "Use a free loopback address, such as 127.0.0.1:9731."
    )
