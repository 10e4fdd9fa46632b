"""A round of submissions: the published checkpoint to every witness at once, what comes back to the daemon."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, NoReturn

from egs_kernel.audit.published import Published
from egs_kernel.cli.client import ask
from egs_kernel.daemon import protocol
from egs_kernel.errors import EgsError, UsageError
from egs_kernel.model import Reason
from egs_kernel.witness.submit import Outcome, Submitter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.audit.witnesses import Witness
    from egs_kernel.paths import Paths

ROUND_SECONDS: Final = 30.0
"""How long a round waits for a witness that answers slowly; that one is left out until it has answered."""


class Round:
    """Submissions to some witnesses, round after round.

    Raises:
        UsageError: there is no witness.
    """

    def __init__(self, paths: Paths, witnesses: Sequence[Witness]) -> None:
        if not witnesses:
            raise UsageError(
                Reason.CONFIG_INVALID, f"{paths.config} names no witness", "Add a [[witness]]: docs/log.md."
            )
        self._paths = paths
        self._log = Published(paths.record)
        self._submitters = [Submitter(witness, self._log) for witness in witnesses]
        self._threads = ThreadPoolExecutor(len(witnesses), thread_name_prefix="egs-submit")
        self._asked: dict[Submitter, Future[Outcome]] = {}

    def submit(self) -> list[tuple[str, bool]]:
        """Submit to each witness that has answered the last time; what came of it in words, and whether it is good."""
        try:
            note = self._log.checkpoint()
        except (EgsError, OSError) as error:
            return [(f"{self._paths.record} cannot be read: {error}", False)]
        for submitter in self._submitters:
            if submitter not in self._asked or self._asked[submitter].done():
                self._asked[submitter] = self._threads.submit(submitter.submit, note)
        wait(self._asked.values(), timeout=ROUND_SECONDS)
        return [self._deliver(submitter) for submitter in self._submitters]

    def _deliver(self, submitter: Submitter) -> tuple[str, bool]:
        name = submitter.witness.key.name
        outcome = self._outcome(submitter)
        request = protocol.WitnessRequest(
            witness=str(submitter.witness.key),
            checkpoint=outcome.checkpoint,
            problem=outcome.problem,
            refused=outcome.refused,
        )
        try:
            answer = ask(self._paths, request, protocol.Done)
        except EgsError as error:
            return f"{name}: {outcome.problem or 'it answered'}; the daemon: {error}", False
        if outcome.problem:
            return f"{name}: {outcome.problem}: {answer.message}", False
        return f"{name}: {answer.message}", True

    def _outcome(self, submitter: Submitter) -> Outcome:
        asked = self._asked[submitter]
        if not asked.done():
            return Outcome(problem=f"{submitter.witness.url} has not answered for {ROUND_SECONDS:.0f} s")
        try:
            return asked.result()
        except (EgsError, OSError) as error:
            return Outcome(problem=f"the record's files cannot be read: {error}")


def submit_often(submissions: Round, interval: float) -> NoReturn:
    """A round each `interval` seconds, until a signal; speaks when what is wrong has changed."""
    never = threading.Event()
    wrong: list[str] | None = None
    while True:
        said = submissions.submit()
        now = [line for line, good in said if not good]
        if now != wrong:
            sys.stderr.writelines(f"{line}\n" for line, _ in said)
        wrong = now
        never.wait(interval)
