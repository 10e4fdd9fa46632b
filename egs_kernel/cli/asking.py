"""Asking the authority: HTTP over its Unix socket, or HTTPS; and what it answers."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from egs_kernel.errors import EgsError, ExitCode, Unreachable, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.paths import Paths

ANSWER_SECONDS: Final = 30.0
_LIMIT: Final = 4 * 1024 * 1024
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Remote:
    """An authority on another host: its URL, this workload's certificate and key, and whose certificate it has."""

    url: str
    certificate: Path
    key: Path
    ca: Path


class _LocalConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(str(self._path))


def ask(  # noqa: PLR0913 - the parts of an HTTP request, by name
    paths: Paths,
    method: str,
    resource: str,
    body: object = None,
    *,
    key: str | None = None,
    remote: Remote | None = None,
    svid: str | None = None,
) -> dict[str, Any]:
    """Send a request and return the authority's answer: an artifact, or what else is not a refusal.

    Args:
        paths: of the instance, for the socket.
        method: GET or POST.
        resource: such as `/v1/status`.
        body: JSON, or the bytes of it.
        key: the idempotency key.
        remote: where else than at the socket.
        svid: a JWT-SVID that says which workload asks.

    Raises:
        Unreachable: there is no authority, or it does not speak this protocol.
        EgsError: it refused; with its reason.
    """
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = dict(_JSON if content is not None else {})
    if key is not None:
        headers["Idempotency-Key"] = key
    if svid is not None:
        headers["Authorization"] = f"Bearer {svid}"
    where = remote.url if remote is not None else str(paths.authority_socket)
    try:
        connection = _connect(remote) if remote is not None else _LocalConnection(paths.authority_socket)
        try:
            connection.request(method, resource, content, headers)
            response = connection.getresponse()
            answer = json.loads(response.read(_LIMIT))
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unreachable(where, problem, remote) from error
    if not isinstance(answer, dict):
        raise _unreachable(where, "it does not speak our protocol", remote)
    if answer.get("state") == "denied":
        raise refusal(answer)
    return answer


def refusal(answer: dict[str, Any]) -> EgsError:
    """The error that the authority told."""
    known = {reason.code: reason for reason in Reason}
    reason = known.get(str(answer.get("reason")), Reason.PROTOCOL_ERROR)
    message = str(answer.get("message"))
    if request := answer.get("request"):
        message += f" (request {request})"
    advice = [str(text) for text in answer.get("advice", ())]
    next_step = str(answer.get("nextStep", ""))
    if advice and " ".join(advice) != next_step:
        next_step = " ".join([*advice, next_step])
    error = EgsError(reason, message, next_step)
    error.exit_code = ExitCode.USAGE if reason is Reason.REQUEST_MALFORMED else ExitCode.REFUSED
    return error


def _connect(remote: Remote) -> http.client.HTTPConnection:
    parts = urlsplit(remote.url)
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/"):
        raise UsageError(
            Reason.USAGE, f"{remote.url!r} is no authority's URL", "Give it as https://HOST:PORT"
        )
    return http.client.HTTPSConnection(
        parts.hostname, parts.port or 9734, timeout=ANSWER_SECONDS, context=_context(remote)
    )


def _context(remote: Remote) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(remote.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(remote.certificate, remote.key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # which of the three files it is, ssl does not say
        problem = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            Reason.CONFIG_INVALID,
            f"{remote.certificate}, {remote.key} or {remote.ca} cannot be used: {problem}",
            "They are PEM files that this user may read; the key is not encrypted.",
        ) from error
    return context


def _no_passphrase() -> str:
    """Nobody is asked for one."""
    return ""


def _unreachable(where: str, why: str, remote: Remote | None) -> Unreachable:
    advice = (
        "Start it: systemctl start egs-authority (or: egs authority serve)."
        if remote is None
        else f"Look whether it runs there, and whether it takes {remote.certificate}: its log says why it closes a connection."
    )
    return Unreachable(
        Reason.AUTHORITY_UNREACHABLE,
        f"the authority cannot be reached at {where}: {why}",
        f"{advice} Until it answers, only what has an artifact runs.",
    )
