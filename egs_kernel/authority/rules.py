"""What the authority goes by: its settings, the trust store, the active policy set. Read again when one of them changed."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import EgsError
from egs_kernel.packages import Packages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from egs_kernel.authority.settings import Settings
    from egs_kernel.policy.sets import PolicySet
    from egs_kernel.trust.store import TrustStore

LOOK_SECONDS: Final = 0.5
"""How old what is gone by may be: the folders are looked at so often."""


@dataclass(frozen=True)
class Rules:
    """What requests are decided by. `labels`: of the authority's own host."""

    settings: Settings
    trust: TrustStore
    policy: PolicySet
    host_id: str
    labels: tuple[str, ...]

    @cached_property
    def packages(self) -> Packages:
        """Which files of this host are of a package that the policy set names."""
        return Packages(self.policy.packages)


class RuleBook:
    """The rules as they are now. Wrong ones refuse everything until they are right: nothing old is gone by.

    Args:
        read: reads them.
        watched: the folders that they are in; a change in one of them has them read again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        read: Callable[[], Rules],
        watched: tuple[Path, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._watched = watched
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = -LOOK_SECONDS
        self._seen: object = None
        self._rules: Rules | EgsError | None = None

    def now(self) -> Rules:
        """The rules.

        Raises:
            EgsError: they cannot be read, or are wrong.
        """
        with self._lock:
            now = self._clock()
            if self._rules is None or now - self._looked >= LOOK_SECONDS:
                self._looked = now
                self._look()
            if isinstance(self._rules, Rules):
                return self._rules
            assert self._rules is not None  # noqa: S101 - for the type checker
            raise self._rules.with_traceback(None)

    def forget(self) -> None:
        """Have them read again, whatever changed."""
        with self._lock:
            self._rules = None

    def _look(self) -> None:
        seen = tuple(_fingerprint(folder) for folder in self._watched)
        if seen == self._seen and self._rules is not None:
            return
        self._seen = seen
        try:
            self._rules = self._read()
        except EgsError as error:
            self._rules = error


def _fingerprint(folder: Path) -> object:
    """Another one for other content: names, numbers and change times of what is in a folder."""
    try:
        entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in _scan(folder)]
    except OSError:
        return None
    return tuple(sorted((name, status.st_ino, status.st_ctime_ns) for name, status in entries))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)
