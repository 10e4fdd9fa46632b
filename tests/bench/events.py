"""scripts/bench drift-events: what everybody on the host pays for the drift programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.gate import libbpf
from egs_kernel.gate.drift import FOLDER, TRACEPOINTS
from tests.bench import machine
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Ratio, Summary, compare, median, rotated, summarize
from tests.bench.timers import Timer, say
from tests.harness import Instance, compile_program

WORKS: Final = {
    "calls": (1000, "system call that does next to nothing (getppid)"),
    "reads": (1000, "read of one byte"),
    "opens": (500, "open for reading, and close"),
    "opens-for-writing": (500, "open for writing, and close"),
    "mappings": (300, "mapping of a page that is no code, and unmapping"),
    "faults": (1024, "page fault"),
}
"""Units of each kind of work that are timed together, and what one is."""
_STATES: Final = ("without", "attached")
_FULL, _QUICK = 60, 4
"""Rounds: each measures every state once, in another order."""
_BLOCK: Final = 10
_CALM: Final = 1.0


class Work(msgspec.Struct, frozen=True):
    """One kind of work of a process that is not governed: nanoseconds of CPU time a unit.

    Attributes:
        unit: what is counted.
        without: no drift program is attached.
        attached: all of them are.
        ratio: of these two.
        control_ratio: the first to itself: what the method makes of no difference.
    """

    unit: str
    without: Summary
    attached: Summary
    ratio: Ratio
    control_ratio: Ratio


class Events(msgspec.Struct, frozen=True):
    """One run."""

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    works: tuple[Work, ...]


def measure(folder: Path, rounds: int) -> Events:
    """Every kind of work, in one process each."""
    timer = compile_program("work_timer", folder)
    load = machine.load()
    with contextlib.closing(Instance.create(folder / "host")) as instance:
        instance.configure(drift="required")
        instance.load_gate().close()
        pins = instance.paths.pins / FOLDER
        for name in TRACEPOINTS:
            (pins / f"link_{name}").unlink()
        works = tuple(_measure_work(pins, timer, work, rounds) for work in WORKS)
        gates = machine.other_gates(instance.paths.pins)
        described = machine.describe(folder)
    beside = (f"other work ran (load {load:.1f} at the start)",) if load > _CALM else ()
    return Events(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=(*beside, "gates of other instances were attached") if gates else beside,
        works=works,
    )


def _measure_work(pins: Path, timer: Path, work: str, rounds: int) -> Work:
    count, unit = WORKS[work]
    times: dict[str, list[int]] = {state: [] for state in _STATES}
    medians: dict[str, list[float]] = {state: [] for state in (*_STATES, "control")}
    with Timer(timer, work, [str(count)], cpu=max(os.sched_getaffinity(0))) as timed:
        for number in range(rounds):
            if number % max(1, rounds // 5) == 0:
                say(f"{work}: round {number + 1} of {rounds}")
            for state in rotated(_STATES, number):
                with _attached(pins, attach=state == "attached"):
                    timed.measure(2)  # the processor's caches know the other state
                    measured = timed.measure(_BLOCK)
                    medians[state].append(median(measured))
                    times[state] += measured
                    if state == "without":
                        medians["control"].append(median(timed.measure(_BLOCK)))
    return Work(
        unit=unit,
        without=summarize([round(time / count) for time in times["without"]]),
        attached=summarize([round(time / count) for time in times["attached"]]),
        ratio=compare(medians["without"], medians["attached"]),
        control_ratio=compare(medians["without"], medians["control"]),
    )


@contextlib.contextmanager
def _attached(pins: Path, *, attach: bool) -> Iterator[None]:
    """By links of our own: closing them detaches at once, where unpinning does it later."""
    with contextlib.ExitStack() as stack:
        for name, tracepoint in TRACEPOINTS.items() if attach else ():
            program = libbpf.open_pin(pins / name)
            stack.callback(os.close, libbpf.attach_raw_tracepoint(tracepoint, program))
            os.close(program)
        yield


def render(events: Events) -> str:
    """What stands between the markers."""
    rows = [
        (
            f"a {work.unit}",
            f"{work.without.median:,.0f} ns",
            f"{work.attached.median - work.without.median:+,.0f} ns",
            _ratio(work.ratio),
            _ratio(work.control_ratio),
        )
        for work in events.works
    ]
    host = events.machine
    where = f"{host.cpu}, {host.cores} cores; Linux {host.kernel}"
    beside = f" **Disturbed**: {'; '.join(events.disturbances)}." if events.disturbances else ""
    header = ("CPU time of", "without", "attached", "attached / without", "without / itself")
    return (
        f"Measured on {events.date} with egs-kernel {events.version} on a {'virtual ' * host.virtual}machine: "
        f"{where}.{beside}\n\n{table(header, rows)}"
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


PART: Final = Part(
    name="drift-events",
    description=__doc__,
    kind=Events,
    measure=lambda folder, quick: measure(folder, _QUICK if quick else _FULL),
    render=render,
)
