"""The active policy set on this node: which it is, whether it can be asked, and what it says of an execution.

The record says which set is active; the file of it is `Paths.policy_set`. A scope that is under a set which cannot be
asked executes nothing: a lost file, or an evaluator that died, refuses.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason
from egs_kernel.posture import EMPTY_POLICY

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.checks.policy_sets import SignedSet
    from egs_kernel.daemon.evaluator import Evaluator
    from egs_kernel.policy.evaluation import Evaluation
    from egs_kernel.policy.manifest import Manifest
    from egs_kernel.policy.questions import Question

ANY_SCOPE: Final = "*"
_RETRY_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class Policy:
    """The active set. Belongs to the event loop's thread, but for `start`.

    Attributes:
        digest: the set's; EMPTY_POLICY: none ever was active.
        name: the set's.
        version: the set's.
        scopes: those that are under it.
        problem: why it cannot be asked; "": it can.
        newest: version and digest of the newest set of each name that was active.
        signers: the ids of the keys that signed the set, and whether each signature was verified here.
        revived: called when another evaluator has taken the place of one that ended.
    """

    def __init__(self, newest: dict[str, tuple[int, str]] | None = None, digest: str = EMPTY_POLICY) -> None:
        self.digest = digest
        self.name = ""
        self.version = 0
        self.scopes: frozenset[str] = frozenset() if digest == EMPTY_POLICY else frozenset({ANY_SCOPE})
        self.problem = "" if digest == EMPTY_POLICY else "its file was not read yet"
        self.newest = dict(newest or {})
        self.signers: dict[str, bool] = {}
        self.revived: Callable[[], None] = lambda: None
        self._payload = b""
        self._evaluator: Evaluator | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def answers(self) -> bool:
        """Whether its set was taken in."""
        return bool(self._payload)

    @property
    def trouble(self) -> str:
        """Why it cannot be asked now; "": it can, or there is none."""
        if self.problem or self._evaluator is None:
            return self.problem
        return "its evaluator ended" if self._evaluator.closed else ""

    @property
    def pid(self) -> int | None:
        """The process that evaluates, when there is one."""
        return None if self._evaluator is None else self._evaluator.pid

    def governs(self, scope: str) -> bool:
        """Whether executions in this scope need what the set permits."""
        return scope in self.scopes or ANY_SCOPE in self.scopes

    def put(self, signed: SignedSet, signers: dict[str, bool], evaluator: Evaluator) -> None:
        """This set, with these signatures, is active from now on."""
        manifest: Manifest = signed.manifest
        previous, self._evaluator = self._evaluator, evaluator
        if previous is not None:
            previous.close()
        self.digest, self.problem = signed.digest, ""
        self.name, self.version = manifest.name, manifest.version
        self.scopes = frozenset(manifest.scopes)
        self.signers = signers
        self.newest[manifest.name] = manifest.version, signed.digest
        self._payload = manifest.payload

    def ask(self, question: Callable[[], Question]) -> Evaluation:
        """What the set says.

        Raises:
            Refused: POLICY_UNAVAILABLE.
        """
        evaluator = self._evaluator
        if evaluator is None or evaluator.closed:
            self._start_again()
            raise Refused(
                Reason.POLICY_UNAVAILABLE,
                f"the active policy set cannot be asked: {self.problem or 'its evaluator ended'}",
                "Try again; if that does not help: egs policy activate FILE",
            )
        return evaluator.ask(question())

    def close(self) -> None:
        """End the evaluator."""
        if self._starting is not None:
            self._starting.cancel()
        if self._evaluator is not None:
            self._evaluator.close()

    def _start_again(self) -> None:
        """An evaluator that died is replaced; whoever asks meanwhile is refused."""
        if self._payload and (self._starting is None or self._starting.done()):
            self._starting = asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        from egs_kernel.daemon.evaluator import Evaluator  # noqa: PLC0415 - where policy is active

        _log.error("the policy evaluator ended: it is started again")
        payload = self._payload
        try:
            evaluator = await asyncio.to_thread(Evaluator, payload)
        except EgsError as error:
            _log.error("the policy evaluator cannot be started: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        if payload != self._payload:
            evaluator.close()
        else:
            self._evaluator = evaluator
            self.revived()


def require_permitted(evaluation: Evaluation) -> None:
    """Raise unless it is permitted.

    Raises:
        Refused: POLICY_DENIED, with what determined that.
    """
    if evaluation.permitted:
        return
    by = ", ".join(evaluation.determining)
    said = f"{by} forbids it" if by else "no policy permits it"
    if evaluation.errors:  # then what determined it are permits, which do not count
        said = f"what cannot be evaluated denies: {'; '.join(evaluation.errors)}"
    advice = " ".join(evaluation.advice)
    raise Refused(
        Reason.POLICY_DENIED,
        f"the active policy set does not permit it here: {said}",
        advice or "Look what it takes: egs policy explain -- CMD",
    )
