"""How the authority listens: a Unix socket, where the kernel says who asks; and HTTPS, where a client's certificate does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding

from egs_kernel.authority.askers import certified_asker, local_asker
from egs_kernel.errors import EgsError, UsageError
from egs_kernel.model import Reason
from egs_kernel.web import REQUEST_SECONDS, Address, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from egs_kernel.authority.askers import Asker
    from egs_kernel.authority.settings import HttpsConfig
    from egs_kernel.identity.bundles import Bundles

ASKER: Final = "egs.asker"
"""Where in a request's scope the one who asks is."""
MOST_CONNECTIONS: Final = 256
MOST_OF_ONE: Final = 64
"""Connections of one principal, at the same time; root's are not counted."""

_MAX_HEADERS: Final = 16 * 1024
_log = logging.getLogger(__name__)


class _AskedConnection(Connection):
    """A connection that knows who is at its other end. One that does not is closed."""

    most = MOST_CONNECTIONS
    asker: Asker | None = None
    of_each: Counter[str] = Counter()  # noqa: RUF012 - shared by all connections of this process

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        try:
            self.asker = self.find_asker(transport)
        except (EgsError, OSError) as error:
            _log.warning("a connection was closed: %s", error)
            transport.abort()
            return
        self.of_each[self.asker.principal] += 1
        if self.of_each[self.asker.principal] > MOST_OF_ONE and self.asker.uid != 0:
            transport.abort()
        self.app = _with_asker(self.app, self.asker)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asker is not None:
            self.of_each[self.asker.principal] -= 1
            self.of_each += Counter()  # forgets who has none
        super().connection_lost(exc)

    def find_asker(self, transport: asyncio.Transport) -> Asker:
        """Who connected.

        Raises:
            EgsError: nobody knows.
        """
        return local_asker(transport.get_extra_info("socket"))


def _certified(bundles: Bundles | None) -> type[_AskedConnection]:
    """As above, over TLS."""

    class CertifiedConnection(_AskedConnection):
        def find_asker(self, transport: asyncio.Transport) -> Asker:
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return certified_asker(certificate, bundles, datetime.now(UTC))

    return CertifiedConnection


def _with_asker(app: Any, asker: Asker) -> ASGIApp:
    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ASKER] = asker
        await app(scope, receive, send)

    return asked


class _Server(uvicorn.Server):
    """Signals are ours: two servers in one process would take them from each other."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(  # noqa: PLR0913 - where it listens, and who is told
    app: ASGIApp,
    path: Path,
    https: HttpsConfig | None,
    bundles: Bundles,
    *,
    ready: Callable[[str], None],
    reload: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: what answers; `ASKER` in a request's scope is who asks.
        path: the Unix socket.
        https: where else; None: nowhere.
        bundles: whose X.509-SVIDs are clients' certificates, where `https` names no CA.
        ready: told each address when connections are accepted.
        reload: called on SIGHUP.

    Raises:
        UsageError: an address cannot be bound, or a certificate cannot be read.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what clients do wrong is their own affair
    with contextlib.ExitStack() as open_sockets:
        local = open_sockets.enter_context(_bind_path(path))
        pairs = [(_Server(_config(app, _AskedConnection)), local, f"unix:{path}")]
        if https is not None:
            address = Address.parse(https.listen, "https.listen")
            remote = open_sockets.enter_context(_bind(address))
            config = _config(app, _certified(None if https.client_ca is not None else bundles))
            config.load()
            config.ssl = _context(https, bundles)
            bound = Address(address.host, remote.getsockname()[1])
            pairs.append((_Server(config), remote, f"https://{bound}"))
        try:
            asyncio.run(_run(pairs, ready, reload))
        finally:
            path.unlink(missing_ok=True)


async def _run(
    pairs: list[tuple[_Server, socket.socket, str]], ready: Callable[[str], None], reload: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()

    def end() -> None:
        for server, _, _ in pairs:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    tasks = [loop.create_task(server.serve(sockets=[listener])) for server, listener, _ in pairs]
    for _, _, name in pairs:
        ready(name)  # the sockets listen: who connects now waits a moment
    await asyncio.gather(*tasks)


def _config(app: ASGIApp, protocol: type[_AskedConnection]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,  # the record says who asked what
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=REQUEST_SECONDS,
        timeout_graceful_shutdown=REQUEST_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADERS,
        backlog=MOST_CONNECTIONS,
    )


def _authorities(bundles: Bundles) -> bytes:
    """DER of every authority of every trust domain, for a handshake; which is whose is looked at after it."""
    found = [certificate for bundle in bundles.all(datetime.now(UTC)) for certificate in bundle.x509]
    if not found:
        raise UsageError(
            Reason.CONFIG_INVALID,
            "https: no client_ca is named, and no trust bundle has an authority for X.509-SVIDs",
            "Name client_ca, or put a bundle into the folder of bundles (docs/identity.md).",
        )
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in found)


def _bind_path(path: Path) -> socket.socket:
    """A socket that everybody may connect to; one that a killed process left is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise UsageError(
            Reason.USAGE,
            f"cannot listen on {path}: {error.strerror}",
            f"Let this user write to {path.parent}.",
        ) from error
    return listener


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise UsageError(
            Reason.USAGE,
            f"https.listen: cannot listen on {address}: {error.strerror}",
            "Use a free address of this host.",
        ) from error


def _context(https: HttpsConfig, bundles: Bundles) -> ssl.SSLContext:
    """TLS 1.3, with a certificate from every client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_cert_chain(https.certificate, https.key)
        if https.client_ca is not None:
            context.load_verify_locations(https.client_ca)
        else:
            context.load_verify_locations(cadata=_authorities(bundles))
    except (OSError, ssl.SSLError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            Reason.CONFIG_INVALID,
            f"https: a certificate or key cannot be read: {problem}",
            "certificate, key and client_ca are PEM files that the authority's user may read.",
        ) from error
    return context
