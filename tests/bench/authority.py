"""scripts/bench authority: artifacts issued a second, with the record on; how long an answer takes; memory."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.audit.entries import Issuance
from tests.authorities import Home, home
from tests.bench import machine
from tests.bench.asking import Asked
from tests.bench.asking import Plan as Asking
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Summary, summarize
from tests.bench.timers import say

RATE: Final = 300
"""Artifacts a second that it is to issue."""
P99_MS: Final = 50.0
FLAT_MIB: Final = 8.0
CONNECTIONS: Final = 8
_TICKS: Final = 100
_KIB: Final = 1024


class Plan(msgspec.Struct, frozen=True):
    """Seconds of each."""

    steady: int
    full: int
    rounds: int


FULL: Final = Plan(steady=15, full=5, rounds=3)
QUICK: Final = Plan(steady=3, full=3, rounds=1)


class Load(msgspec.Struct, frozen=True):
    """What came of asking: artifacts a second, milliseconds of an answer, milliseconds of CPU time for each."""

    rate: float
    answer: Summary
    cpu: float


class Issuing(msgspec.Struct, frozen=True):
    """One run. `steady`: asked at `RATE` a second; `full`: as fast as it answers. Memory is MiB."""

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    steady: Load
    full: Load
    issued: int
    first_memory: float
    last_memory: float


def measure(plan: Plan) -> Issuing:
    """By turns, at the rate and as fast as it goes; every artifact that was given is in the record at the end."""
    load = machine.load()
    with home() as made:
        made.start()
        _ask(made, Asking(str(made.paths.authority_socket), 2, CONNECTIONS, 0))
        first = _memory(made)
        steady, full = [], []
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            steady.append(
                _ask(made, Asking(str(made.paths.authority_socket), plan.steady, CONNECTIONS, RATE))
            )
            full.append(_ask(made, Asking(str(made.paths.authority_socket), plan.full, CONNECTIONS, 0)))
        last = _memory(made)
        described = machine.describe(made.record)
        made.stop()
        issued = sum(entry.action == "issued" for entry in made.of(Issuance))
        answered = sum(len(asked.milliseconds) for asked, _ in (*steady, *full))
        if issued < answered:
            raise RuntimeError(f"{answered} artifacts were given, and {issued} are in the record")
    return Issuing(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=machine.disturbances(load, []),
        steady=_together(steady),
        full=_together(full),
        issued=issued,
        first_memory=first,
        last_memory=last,
    )


def _ask(made: Home, plan: Asking) -> tuple[Asked, float]:
    """Have a process ask; what came of it, and the authority's CPU seconds meanwhile."""
    before = _cpu(made)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.asking"],
        input=msgspec.json.encode(plan),
        capture_output=True,
        check=True,
    )
    asked = msgspec.json.decode(done.stdout, type=Asked)
    if asked.refused:
        raise RuntimeError(f"{asked.refused} requests were refused")
    return asked, _cpu(made) - before


def _together(rounds: list[tuple[Asked, float]]) -> Load:
    times = [time for asked, _ in rounds for time in asked.milliseconds]
    return Load(
        rate=len(times) / sum(asked.seconds for asked, _ in rounds),
        answer=summarize(times),
        cpu=sum(cpu for _, cpu in rounds) * 1000 / len(times),
    )


def _pid(made: Home) -> int:
    if made.process is None:
        raise RuntimeError("the authority does not run")
    return made.process.pid


def _cpu(made: Home) -> float:
    fields = Path(f"/proc/{_pid(made)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _memory(made: Home) -> float:
    lines = Path(f"/proc/{_pid(made)}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / _KIB


def render(found: Issuing) -> str:
    """What stands between the markers."""
    host, steady, full = found.machine, found.steady, found.full
    beside = f" **Disturbed**: {'; '.join(found.disturbances)}." if found.disturbances else ""
    growth = found.last_memory - found.first_memory
    goals = [
        (
            "artifacts issued a second, sustained",
            f"≥ {RATE}",
            f"{min(steady.rate, full.rate):,.0f} ({full.rate:,.0f} as fast as it goes)",
            _mark(met=min(steady.rate, full.rate) >= RATE - 1),
        ),
        (
            f"an answer at {RATE} a second, p99",
            f"≤ {P99_MS:.0f} ms",
            f"{steady.answer.p99:.1f} ms",
            _mark(met=steady.answer.p99 <= P99_MS),
        ),
        (
            f"memory after {found.issued:,} artifacts more than at the beginning",
            "flat",
            f"{growth:+.1f} MiB (of {found.first_memory:.0f})",
            _mark(met=growth < FLAT_MIB),
        ),
    ]
    rows = [
        (
            name,
            f"{load.rate:,.0f}",
            f"{load.answer.median:.1f} ms",
            f"{load.answer.p99:.1f} ms",
            f"{load.cpu:.2f} ms",
        )
        for name, load in ((f"at {RATE} a second", steady), ("as fast as it answers", full))
    ]
    return (
        f"Measured on {found.date} with egs-kernel {found.version} on a {'virtual ' * host.virtual}machine: "
        f"{host.cpu}, {host.cores} cores; Linux {host.kernel}, Python {host.python}; {host.record_on}.{beside}\n\n"
        f"{table(('figure', 'goal', 'measured', ''), goals)}\n\n"
        f"{CONNECTIONS} connections of one process over the Unix socket, each request with an idempotency key of its own; each is evaluated, signed "
        "(Ed25519), and durable in the record before it is answered.\n\n"
        f"{table(('', 'artifacts a second', 'answer, median', 'p99', 'CPU time of the authority for each'), rows)}"
    )


def _mark(*, met: bool) -> str:
    return "met" if met else "**missed**"


PART: Final = Part(
    name="authority",
    description=__doc__,
    kind=Issuing,
    measure=lambda _folder, quick: measure(QUICK if quick else FULL),
    render=render,
    root=False,
)
