"""`egs run` beside other ways to start a confined program: wall time until it has run and been waited for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.stats import Ratio, Summary, compare, rotated, summarize
from tests.bench.timers import Timer, say
from tests.harness import BIN, Instance

PROGRAM: Final = "/bin/true"
PLAIN: Final = "plain"


class Launch(msgspec.Struct, frozen=True):
    """One way to start the program: nanoseconds. `ratio`: of `egs run` to it, in the same round."""

    title: str
    command: str
    time: Summary
    egs_ratio: Ratio | None


class Contender(msgspec.Struct, frozen=True):
    """A way to start the program; `rival` names the `egs run` that it is compared with."""

    title: str
    command: tuple[str, ...]
    rival: str | None = None


def contenders(artifact: Path, constrained: Path) -> dict[str, Contender]:
    """All of them; those that this host lacks are left out."""
    egs = str(BIN / "egs")
    found = {
        PLAIN: Contender("nothing", (PROGRAM,), "egs"),
        "egs": Contender("egs run", (egs, "run", "--artifact", str(artifact), "--", PROGRAM)),
        "egs seccomp": Contender(
            "egs run, seccomp constraint", (egs, "run", "--artifact", str(constrained), "--", PROGRAM)
        ),
        "bwrap": Contender(
            "bubblewrap, all namespaces",
            ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", PROGRAM),
            "egs",
        ),
        "firejail": Contender("firejail", ("firejail", "--quiet", "--noprofile", PROGRAM), "egs"),
        "firejail seccomp": Contender(
            "firejail, its default seccomp filter",
            ("firejail", "--quiet", "--noprofile", "--seccomp", PROGRAM),
            "egs seccomp",
        ),
    }
    return {name: contender for name, contender in found.items() if shutil.which(contender.command[0])}


def measure_launches(
    instance: Instance, timer: Path, ways: dict[str, Contender], *, rounds: int
) -> tuple[Launch, ...]:
    """Start each once per round, in an order that turns."""
    times: dict[str, list[int]] = {name: [] for name in ways}
    with contextlib.ExitStack() as stack:
        timers = {
            name: stack.enter_context(
                Timer(timer, "vfork", _resolved(way.command), environment=instance.environment)
            )
            for name, way in ways.items()
        }
        for name in ways:
            timers[name].measure(2)  # what is only slow once: bytecode, caches, first measurement
        for number in range(rounds):
            if number % max(1, rounds // 5) == 0:
                say(f"launches: round {number + 1} of {rounds}")
            for name in rotated(tuple(ways), number):
                times[name] += timers[name].measure(1)
    return tuple(
        Launch(
            title=way.title,
            command=shown(way.command),
            time=summarize(times[name]),
            egs_ratio=None if way.rival is None else compare(times[name], times[way.rival]),
        )
        for name, way in ways.items()
    )


def _resolved(command: Sequence[str]) -> list[str]:
    return [shutil.which(command[0]) or command[0], *command[1:]]


def shown(command: Sequence[str]) -> str:
    """The command as a reader types it: without this run's paths."""
    words = [Path(word).name if word.startswith(("/tmp", "/var", str(BIN))) else word for word in command]
    return " ".join(words)
