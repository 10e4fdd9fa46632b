"""Asking the daemon: one request, one answer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, TypeVar

from egs_kernel.daemon import protocol
from egs_kernel.errors import EgsError, ExitCode, Unreachable
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.paths import Paths

ANSWER_SECONDS: Final = 120.0
"""An artifact whose program is large takes a while to be measured."""

_CHUNK: Final = 64 * 1024
_A = TypeVar("_A", bound=protocol.Answer)


def ask(
    paths: Paths,
    request: protocol.Request,
    expected: type[_A],
    *,
    descriptor: int | None = None,
    seconds: float = ANSWER_SECONDS,
) -> _A:
    """Send a request, and a copy of a descriptor if one is given, and return the daemon's answer.

    Args:
        paths: of the instance.
        request: what is asked.
        expected: the answer's type.
        descriptor: whose copy goes along.
        seconds: how long each part of the answer may take.

    Raises:
        Unreachable: there is no daemon, or it does not speak this protocol.
        EgsError: the daemon refused, or failed; with its reason and exit code.
    """
    answer = _converse(paths, protocol.encode(request), descriptor, seconds)
    if isinstance(answer, protocol.Failure):
        raise refusal(answer)
    if not isinstance(answer, expected):
        raise _unreachable(paths, "its answer does not fit the question")
    return answer


def refusal(answer: protocol.Failure) -> EgsError:
    """The error that the daemon told."""
    known = {reason.code: reason for reason in Reason}
    error = EgsError(known.get(answer.reason, Reason.PROTOCOL_ERROR), answer.message, answer.next_step)
    codes = {int(code): code for code in ExitCode}
    error.exit_code = codes.get(answer.exit_code, ExitCode.REFUSED)
    return error


def _converse(paths: Paths, request: bytes, descriptor: int | None, seconds: float) -> protocol.Answer:
    frames = protocol.FrameReader()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
            daemon.settimeout(seconds)
            daemon.connect(str(paths.socket))
            if descriptor is not None:
                request = request[socket.send_fds(daemon, [request], [descriptor]) :]
            daemon.sendall(request)
            while (content := frames.next_frame()) is None:
                data = daemon.recv(_CHUNK)
                if not data:
                    raise _unreachable(paths, "it closed the connection")
                frames.feed(data)
        return protocol.decode_answer(content)
    except OSError as error:
        raise _unreachable(paths, error.strerror or str(error)) from error


def _unreachable(paths: Paths, why: str) -> Unreachable:
    return Unreachable(
        Reason.DAEMON_UNREACHABLE,
        f"the daemon cannot be reached at {paths.socket}: {why}",
        "Start it: systemctl start egsd (or: egsd --foreground). Until it runs, the gate refuses everything in scope.",
    )
