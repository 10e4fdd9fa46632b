"""The evaluator: the process that has Cedar, so that egsd has not. It decides nothing, egsd does.

It runs as a user that nobody else is, holds a policy set and one end of a socket pair, and ends with it. Frames as on egsd's socket: a
length, and JSON. The first is the manifest; it is answered with "" or with what is wrong. Each after it is a question,
answered with an evaluation, or with why there is none.
"""

from __future__ import annotations

import resource
import socket
from typing import Final

import msgspec

from egs_kernel.apply.libc import prctl
from egs_kernel.daemon.evaluator import LENGTH, Answer
from egs_kernel.errors import EgsError
from egs_kernel.packages import Packages
from egs_kernel.policy.evaluate import answer
from egs_kernel.policy.manifest import parse_manifest
from egs_kernel.policy.questions import Question
from egs_kernel.policy.sets import PolicySet

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def main() -> None:
    """Serve until the other end is closed."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
    for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    with socket.socket(fileno=0) as channel:
        payload = _receive(channel)
        if payload is None:
            return
        try:
            policy_set = PolicySet.of(parse_manifest(payload))
        except EgsError as error:
            _send(channel, Answer(problem=error.message))
            return
        _send(channel, Answer())
        packages = Packages(policy_set.packages)
        while (question := _receive(channel)) is not None:
            _send(channel, _answer(policy_set, packages, question))


def _answer(policy_set: PolicySet, packages: Packages, content: bytes) -> Answer:
    try:
        question = packages.filled(msgspec.json.decode(content, type=Question))
        return Answer(evaluation=answer(policy_set, question))
    except (msgspec.DecodeError, ValueError) as error:
        return Answer(problem=f"policy cannot be asked that: {error}")


def _receive(channel: socket.socket) -> bytes | None:
    """The next frame; None at the end."""
    with channel.makefile("rb", buffering=0) as stream:
        head = _exactly(stream, LENGTH.size)
        return None if head is None else _exactly(stream, LENGTH.unpack(head)[0])


def _exactly(stream: socket.SocketIO, length: int) -> bytes | None:
    content = bytearray()
    while len(content) < length:
        data = stream.read(length - len(content))
        if not data:
            return None
        content += data
    return bytes(content)


def _send(channel: socket.socket, message: Answer) -> None:
    content = msgspec.json.encode(message)
    channel.sendall(LENGTH.pack(len(content)) + content)


if __name__ == "__main__":
    main()
