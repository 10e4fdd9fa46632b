"""What a refused exec looks like on the tier under test.

On the tier `tracepoint` whoever executes something unauthorized is killed. On the tier `lsm` its execve(2) fails with
EPERM; only what the new image alone has (see `SECOND_LINE`) is still decided at the tracepoint, and killed.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egs_kernel.gate.tiers import lsm_finding
from egs_kernel.model import Reason, Tier, Verdict

_WANTED: Final = os.environ.get("EGS_TEST_TIER", "")
TIER: Final = Tier(_WANTED) if _WANTED else Tier.LSM if lsm_finding().present else Tier.TRACEPOINT
"""What the gate is loaded on: what EGS_TEST_TIER says, else the best that this host offers, as `egs gate load` does."""
TIER_SETTING: Final = f'tier = "{_WANTED}"\n' if _WANTED else ""
"""The line of egs.toml for it."""

DENIED: Final = 126
"""Exit code of a process of the tests whose execve(2) failed with EPERM; a shell's is the same."""


@dataclass(frozen=True)
class Refusal:
    """How a refused exec is reported, and how its process ends: an exit code as subprocess has it."""

    verdict: Verdict
    code: int


KILLED: Final = Refusal(Verdict.KILL, -signal.SIGKILL)
_FAILED: Final = Refusal(Verdict.DENY, DENIED)

SECOND_LINE: Final = frozenset(
    {
        Reason.ARGV_UNREADABLE,
        Reason.ARGV_MISMATCH,
        Reason.ENVIRONMENT_UNREADABLE,
        Reason.ENVIRONMENT_REFUSED,
        Reason.USES_EXHAUSTED,
        Reason.TASKS_FULL,
        Reason.AUDIT_UNAVAILABLE,
    }
)
"""Reasons that the tracepoint alone decides, on both tiers; and so it does who the effective user is after the exec."""


def refusal(reason: Reason) -> Refusal:
    """How an exec ends that is refused for this reason."""
    return _FAILED if TIER is Tier.LSM and reason not in SECOND_LINE else KILLED


REFUSED: Final = refusal(Reason.NO_GRANT)
"""How an exec without an authorization ends."""


@contextmanager
def denied_is_the_end() -> Iterator[None]:
    """End this process, as a shell would, when an exec in here is refused with EPERM."""
    try:
        yield
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        os._exit(DENIED)


def start(
    command: Sequence[str | Path],
    prepare: Callable[[], object] = lambda: None,
    *,
    executable: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a process that prepares itself and executes a command, by its path.

    Popen forgets the process whose execve(2) failed; this one ends with DENIED when it is refused.
    """
    words = [os.fspath(word) for word in command]

    def execute() -> None:
        prepare()
        with denied_is_the_end():
            os.execve(executable or words[0], words, os.environ if env is None else env)

    return subprocess.Popen(words, preexec_fn=execute, **options)


def run(
    command: Sequence[str | Path],
    prepare: Callable[[], object] = lambda: None,
    *,
    timeout: float,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """As `start`, to its end."""
    with start(command, prepare, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
