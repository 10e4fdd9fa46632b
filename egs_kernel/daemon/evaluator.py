"""The daemon's end of the evaluator (policy_process.py): a process of its own, because Cedar takes as much memory as egsd.

Who cannot be asked permits nothing: every failure is POLICY_UNAVAILABLE.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.policy.evaluation import Evaluation

if TYPE_CHECKING:
    from egs_kernel.policy.questions import Question

START_SECONDS: Final = 20.0
ASK_SECONDS: Final = 1.0
"""Less than the gate waits for a heartbeat: the daemon does nothing else meanwhile."""
_OF_ITS_OWN: Final = 2**32 - 3
"""The evaluator's user and group. No account has it: whoever has the same may trace it and stop it, as with nobody's."""
_NOTHING: Final[dict[str, str]] = {}
LENGTH: Final = struct.Struct(">I")
_LONGEST: Final = 4 * 1024 * 1024


class Answer(msgspec.Struct, frozen=True):
    """What the evaluator answers. `problem` is "" when there is an evaluation, or when the set was taken in."""

    problem: str = ""
    evaluation: Evaluation | None = None


_ANSWERS: Final = msgspec.json.Decoder(Answer)


class Evaluator:
    """A running evaluator with a policy set. Not for several threads at once."""

    def __init__(self, payload: bytes) -> None:
        """Start it with the set of this manifest. Takes a while: for a thread.

        Raises:
            Refused: POLICY_INVALID, with what is wrong with the set; POLICY_UNAVAILABLE, when it cannot be started.
        """
        ours, theirs = socket.socketpair()
        own = _OF_ITS_OWN if os.geteuid() == 0 else None  # who is not root cannot become somebody else
        self._channel = ours
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", "egs_kernel.daemon.policy_process"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env=_NOTHING,
                    process_group=0,  # what a terminal sends to egsd is not for it
                    user=own,
                    group=own,
                    extra_groups=None if own is None else [],
                )
            except OSError as error:
                ours.close()
                raise _unavailable(f"the evaluator cannot be started: {error.strerror}") from error
        try:
            self._send(payload, START_SECONDS)
            problem = self._receive().problem
        except BaseException:
            self.close()
            raise
        if problem:
            self.close()
            raise Refused(Reason.POLICY_INVALID, problem, "Correct it: egs policy check")

    @property
    def pid(self) -> int:
        """The process."""
        return int(self._process.pid)

    def ask(self, question: Question) -> Evaluation:
        """What the set says.

        Raises:
            Refused: POLICY_UNAVAILABLE. An evaluator that did not answer is closed: another one must be started.
        """
        try:
            content = msgspec.json.encode(question)
        except UnicodeEncodeError as error:
            raise _unavailable("what is asked holds bytes that are no text") from error
        try:
            self._send(content, ASK_SECONDS)
            answer = self._receive()
        except Refused:
            self.close()
            raise
        if answer.evaluation is None:
            raise _unavailable(answer.problem)
        return answer.evaluation

    @property
    def closed(self) -> bool:
        """Whether it can be asked no more."""
        return self._channel.fileno() < 0 or self._process.poll() is not None

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _send(self, content: bytes, seconds: float) -> None:
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(LENGTH.pack(len(content)) + content)
        except OSError as error:
            raise _unavailable(f"the evaluator takes no question: {error}") from error

    def _receive(self) -> Answer:
        try:
            (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
            if length > _LONGEST:
                raise _unavailable("the evaluator says too much")
            return _ANSWERS.decode(self._exactly(length))
        except (OSError, msgspec.DecodeError) as error:
            raise _unavailable(f"the evaluator does not answer: {error}") from error

    def _exactly(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            data = self._channel.recv(length - len(content))
            if not data:
                raise _unavailable("the evaluator has ended")
            content += data
        return bytes(content)


def _unavailable(problem: str) -> Refused:
    return Refused(
        Reason.POLICY_UNAVAILABLE,
        problem,
        "Try again; look with: egs policy show, and at the journal of egsd.",
    )
