"""How our processes listen: never as root, with limits that no client can use up, behind starlette applications."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

REQUEST_SECONDS: Final = 5
"""How long one request and its answer may take, and how long a connection may be idle."""
MAX_CLIENTS: Final = 16
"""Connections at the same time; further ones are closed at once."""

_MAX_HEADERS: Final = 16 * 1024
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True)
class Address:
    """An address to listen on."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, setting: str) -> Self:
        """`127.0.0.1:9731` or `[::1]:9731`; port 0 takes a free one. `setting`: what to call it in messages.

        Raises:
            UsageError: it is malformed.
        """
        host, separator, port = text.rpartition(":")
        if not separator or not port.isascii() or not port.isdecimal() or int(port) > _HIGHEST_PORT:
            raise _wrong_address(setting, f"{text!r} is no address and port")
        try:
            address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError as error:
            raise _wrong_address(setting, f"{host!r} is no IP address") from error
        return cls(str(address), int(port))

    @classmethod
    def parse_loopback(cls, text: str, setting: str) -> Self:
        """An address that only this host reaches.

        Raises:
            UsageError: it is malformed, or not loopback.
        """
        address = cls.parse(text, setting)
        if not ipaddress.ip_address(address.host).is_loopback:
            raise _wrong_address(setting, f"{address.host} is not a loopback address")
        return address

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LocalNamesOnly:
    """Answers only who asks for a loopback address: a page in a browser may have bound its own name to 127.0.0.1."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        app = self._app if all(map(_is_local, hosts)) else _NOT_LOCAL
        await app(scope, receive, send)


_NOT_LOCAL: Final = PlainTextResponse("ask for a loopback address\n", 403)


def serve(app: ASGIApp, address: Address, setting: str, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: what answers.
        address: where to listen.
        setting: what to call the address in messages.
        ready: told the address as a URL when connections are accepted.

    Raises:
        UsageError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=MAX_CLIENTS)
    except OSError as error:
        raise _wrong_address(setting, f"cannot listen on {address}: {error.strerror}") from error
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what clients do wrong is their own affair
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,  # requests come every few seconds, and say what the client likes
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=REQUEST_SECONDS,
            timeout_graceful_shutdown=REQUEST_SECONDS,
            h11_max_incomplete_event_size=_MAX_HEADERS,
        )
    )
    with listener:
        ready(f"http://{Address(address.host, listener.getsockname()[1])}")
        server.run(sockets=[listener])


def refuse_root(command: str, unit: str) -> None:
    """Check that this process has no power to lose.

    Raises:
        UsageError: it runs as root.
    """
    if os.geteuid() == 0:
        raise UsageError(
            Reason.NOT_PERMITTED,
            f"{command} does not run as root: a root process of egs listens on no port",
            f"Run it as another user, for example: systemctl start {unit} (or: setpriv --reuid=nobody --clear-groups "
            f"{command})",
        )


class Connection(H11Protocol):
    """uvicorn's connection with an end: it waits for a request, and for a client to take the answer, forever.

    `most`: connections at the same time.
    """

    most = MAX_CLIENTS
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """A connection begins; one too many ends at once."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._allow_another()

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended: nothing is waited for."""
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer was taken; the next request has as long."""
        self._allow_another()
        super().on_response_complete()

    def _allow_another(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)


def _is_local(host: str) -> bool:
    name = re.sub(r":\d+$", "", host).removeprefix("[").removesuffix("]")
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _wrong_address(setting: str, problem: str) -> UsageError:
    return UsageError(
        Reason.USAGE, f"{setting}: {problem}", "Use a free address of this host, such as 127.0.0.1:9731."
    )
