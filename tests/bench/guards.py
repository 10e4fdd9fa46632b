"""scripts/bench guards: what everybody on the host pays while a scope holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.gate import libbpf
from egs_kernel.gate.parts import GUARDS
from egs_kernel.gate.pins import Gate
from tests.bench import machine
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Ratio, Summary, compare, median, rotated, summarize
from tests.bench.timers import Timer, say
from tests.harness import Instance, compile_program

WORKS: Final = {"faults": (1024, "page fault"), "switches": (500, "switch to another process and back")}
"""Units of each kind of work that are timed together, and what one is."""

_FULL, _QUICK = 100, 6
"""Rounds: each measures every state once, in another order."""
_CALM: Final = 1.0
_BLOCK: Final = 10
_STATES: Final = ("without", "guarded", "holding")


class Work(msgspec.Struct, frozen=True):
    """One kind of work: nanoseconds of CPU time a unit.

    Attributes:
        unit: what is counted.
        without: no guard is attached.
        guarded_ratio: both guards attached, and nothing held.
        holding_ratio: both attached, and something is held, somewhere on the host.
        control_ratio: the first to itself: what the method makes of no difference.
    """

    unit: str
    without: Summary
    guarded_ratio: Ratio
    holding_ratio: Ratio
    control_ratio: Ratio


class Guards(msgspec.Struct, frozen=True):
    """One run."""

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    works: tuple[Work, ...]


def measure(folder: Path, rounds: int) -> Guards:
    """Every kind of work, in one process each."""
    timer = compile_program("work_timer", folder)
    load = machine.load()
    with contextlib.closing(Instance.create(folder / "host")) as instance:
        with contextlib.closing(instance.load_gate()) as gate:
            works = tuple(_measure_work(gate, instance.paths.pins, timer, work, rounds) for work in WORKS)
        gates = machine.other_gates(instance.paths.pins)
        described = machine.describe(folder)
    return Guards(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=_beside(load, gates),
        works=works,
    )


def _measure_work(gate: Gate, pins: Path, timer: Path, work: str, rounds: int) -> Work:
    count, unit = WORKS[work]
    times: list[int] = []
    medians: dict[str, list[float]] = {state: [] for state in (*_STATES, "control")}
    with Timer(timer, work, [str(count)], cpu=max(os.sched_getaffinity(0))) as timed:
        for number in range(rounds):
            if number % max(1, rounds // 5) == 0:
                say(f"{work}: round {number + 1} of {rounds}")
            for state in rotated(_STATES, number):
                with _guards(pins, state):
                    timed.measure(2)  # the processor's caches know the other state
                    measured = timed.measure(_BLOCK)
                    medians[state].append(median(measured))
                    if state == "without":
                        times += measured
                        medians["control"].append(median(timed.measure(_BLOCK)))
    assert gate.counters().missed == 0
    return Work(
        unit=unit,
        without=summarize([round(time / count) for time in times]),
        guarded_ratio=compare(medians["without"], medians["guarded"]),
        holding_ratio=compare(medians["without"], medians["holding"]),
        control_ratio=compare(medians["without"], medians["control"]),
    )


@contextlib.contextmanager
def _guards(pins: Path, state: str) -> Iterator[None]:
    """The guards attached by links of our own: closing them detaches at once, where unpinning does it later."""
    with contextlib.ExitStack() as stack:
        if state != "without":
            for name, tracepoint in GUARDS.items():
                program = libbpf.open_pin(pins / name)
                stack.callback(os.close, libbpf.attach_raw_tracepoint(tracepoint, program))
                os.close(program)
        _say_held(pins, 1 if state == "holding" else 0)
        yield


def _say_held(pins: Path, held: int) -> None:
    """With something held the guards look into the table of processes, each time."""
    counts = libbpf.Map(libbpf.open_pin(pins / "held_counts"), ctypes.c_uint32, ctypes.c_uint64)
    counts.put(ctypes.c_uint32(0), ctypes.c_uint64(held))
    os.close(counts.descriptor)


def render(guards: Guards) -> str:
    """What stands between the markers."""
    rows = [
        (
            f"a {work.unit}",
            f"{work.without.median:,.0f} ns",
            _ratio(work.control_ratio),
            _ratio(work.guarded_ratio),
            _ratio(work.holding_ratio),
        )
        for work in guards.works
    ]
    host = guards.machine
    where = f"{host.cpu}, {host.cores} cores; Linux {host.kernel}"
    beside = f" **Disturbed**: {'; '.join(guards.disturbances)}." if guards.disturbances else ""
    header = ("CPU time of", "without guards", "itself", "attached / without", "something held / without")
    return (
        f"Measured on {guards.date} with egs-kernel {guards.version} on a {'virtual ' * host.virtual}machine: "
        f"{where}.{beside}\n\n{table(header, rows)}"
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _beside(load: float, gates: list[str]) -> tuple[str, ...]:
    """What went on beside: CPU time does not count it, but caches do."""
    work = (f"other work ran (load {load:.1f} at the start)",) if load > _CALM else ()
    return (*work, "gates of other instances were attached") if gates else work


PART: Final = Part(
    name="guards",
    description=__doc__,
    kind=Guards,
    measure=lambda folder, quick: measure(folder, _QUICK if quick else _FULL),
    render=render,
)
