"""What the monitor does to the gate: by itself, or through egsd while the gate is sealed and lets nobody else do it."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from egs_kernel.daemon import protocol
from egs_kernel.daemon.client import ask
from egs_kernel.errors import EgsError, Refused, Unreachable
from egs_kernel.gate.abi import Restrain
from egs_kernel.gate.parts import SEAL_MAPS
from egs_kernel.gate.pins import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.model import FileIdentity
    from egs_kernel.paths import Paths

_PATIENCE: Final = 30.0
"""Seconds for a daemon that is started again."""
_PAUSE: Final = 0.1
_SOON: Final = 2.0
"""Seconds for an answer that nothing may wait for: a daemon that hangs is none that a seal protects."""
_A = TypeVar("_A", bound=protocol.Answer)
_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Hands(Protocol):
    """What a monitor needs of the gate; `Gate` has it."""

    def governed(self) -> list[GovernedTask]:
        """Every governed process."""

    def governed_task(self, pid: int) -> GovernedTask | None:
        """A governed process; None: nobody governs it."""

    def identify(self, fd: int) -> FileIdentity:
        """The identity of an open file, as the gate sees it."""

    def restrain(self, pid: int, execution: int, how: Restrain, key: int = 0) -> bool:
        """Mark a process of a tree that drifted, or take that back; False: it is not of that execution (any more)."""

    def guard(self) -> bool:
        """Attach the guards of what is suspended; whether all of them are there."""

    def refresh_scopes(self) -> None:
        """Read the scopes' names again."""


class ThroughDaemon:
    """Has egsd do it, which is the only one that a sealed gate lets. A daemon that is being started is waited for."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def governed(self) -> list[GovernedTask]:
        """As `Hands`."""
        found: list[GovernedTask] = []
        more = True
        while more:
            after = found[-1].pid if found else 0
            page = self._ask(protocol.GovernedRequest(after=after), protocol.GovernedAnswer)
            found += page.tasks
            more = page.more
        return found

    def governed_task(self, pid: int) -> GovernedTask | None:
        """As `Hands`."""
        return next(iter(self._ask(protocol.GovernedRequest(pid=pid), protocol.GovernedAnswer).tasks), None)

    def identify(self, fd: int) -> FileIdentity:
        """As `Hands`."""
        return self._ask(protocol.IdentifyRequest(), protocol.IdentityAnswer, fd).file

    def restrain(self, pid: int, execution: int, how: Restrain, key: int = 0) -> bool:  # noqa: ARG002 - the daemon has its own key
        """As `Hands`."""
        words = {Restrain.QUARANTINE: "quarantine", Restrain.SUSPEND: "suspend", Restrain.RESUME: "resume"}
        request = protocol.RestrainRequest(pid=pid, execution=execution, how=words[how])  # type: ignore[arg-type]  # one of them
        return self._ask(request, protocol.RestrainAnswer).done

    def guard(self) -> bool:
        """As `Hands`."""
        return self._ask(protocol.GuardRequest(), protocol.RestrainAnswer).done

    def refresh_scopes(self) -> None:
        """Nothing: the daemon has read them."""

    def _ask(self, request: protocol.LentRequest, expected: type[_A], descriptor: int | None = None) -> _A:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask(self._paths, request, expected, descriptor=descriptor)
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE)


class MonitorGate:
    """By itself as long as the gate lets it, through egsd while it is sealed. `look` notices that it is sealed no more."""

    def __init__(self, paths: Paths) -> None:
        """Open it.

        Raises:
            EgsError: there is no gate, or it cannot be opened.
        """
        self._paths = paths
        self._through = ThroughDaemon(paths)
        self._own: Gate | None = None
        if is_sealed(paths):
            _log.info("the gate is sealed: egsd is asked to do to it what has to be done")
        else:
            self._own = Gate.open(paths.pins)

    def close(self) -> None:
        """Let go of it."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def look(self) -> None:
        """Whether the seal was lifted; then there is nothing to ask egsd for. Before a sweep."""
        if self._own is None and not is_sealed(self._paths, otherwise=True):
            with contextlib.suppress(Refused):  # sealed again since
                self._own = Gate.open(self._paths.pins)

    def governed(self) -> list[GovernedTask]:
        """As `Hands`."""
        return self._do(lambda gate: gate.governed())

    def governed_task(self, pid: int) -> GovernedTask | None:
        """As `Hands`."""
        return self._do(lambda gate: gate.governed_task(pid))

    def identify(self, fd: int) -> FileIdentity:
        """As `Hands`."""
        return self._do(lambda gate: gate.identify(fd))

    def restrain(self, pid: int, execution: int, how: Restrain, key: int = 0) -> bool:
        """As `Hands`."""
        return self._do(lambda gate: gate.restrain(pid, execution, how, key))

    def guard(self) -> bool:
        """As `Hands`."""
        return self._do(lambda gate: gate.guard())

    def refresh_scopes(self) -> None:
        """As `Hands`."""
        self._do(lambda gate: gate.refresh_scopes())

    def _do(self, act: Callable[[Hands], _T]) -> _T:
        if self._own is not None:
            try:
                return act(self._own)
            except PermissionError:
                _log.info("the gate was sealed: egsd is asked from now on")
                self.close()
        return act(self._through)


def is_sealed(paths: Paths, *, otherwise: bool = False) -> bool:
    """Whether the gate is sealed now. The daemon is asked: who asks the gate itself is refused, which is an attempt.

    Args:
        paths: of the instance.
        otherwise: the answer when nobody can be asked.
    """
    if not (paths.pins / SEAL_MAPS[0]).exists():
        return False  # on the tier tracepoint there is no seal
    try:
        answer = ask(paths, protocol.StatusRequest(), protocol.StatusAnswer, seconds=_SOON)
    except EgsError:
        return otherwise
    return answer.seal == "sealed"
