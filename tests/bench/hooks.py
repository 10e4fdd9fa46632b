"""What each of the gate's programs costs, by the kernel's own count; and how many instructions it has."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.gate import libbpf
from egs_kernel.gate.parts import GUARDS, called_of, links_of
from egs_kernel.gate.pins import Gate
from tests.bench import machine
from tests.bench.chores import Chores, do_chores
from tests.bench.execs import counting_run_time
from tests.bench.stats import median, rotated
from tests.bench.subject import Daemon, wait_for_grants
from tests.bench.timers import Timer, say
from tests.harness import Instance, compile_program

OUTSIDE, AUTHORIZED, REFUSED = "outside", "authorized", "refused"
GUARDED_OUTSIDE, GUARDED = "outside, guarded", "authorized, guarded"
CHORES_OUTSIDE, CHORES = "chores outside", "chores in scope"
_GOVERNED: Final = frozenset({AUTHORIZED, REFUSED, GUARDED})
_INSTRUCTION: Final = 8  # bytes


class Program(msgspec.Struct, frozen=True):
    """A loaded program.

    Attributes:
        at: the tracepoint or hook that it is attached to; empty when user space runs it.
        instructions: as the kernel has them after its rewriting, before they become machine code.
        verified: instructions that the verifier looked at, on every path: what the load takes, not what a run takes.
    """

    at: str
    instructions: int
    verified: int


class Cost(msgspec.Struct, frozen=True):
    """Runs of a program, and the nanoseconds of one: the mean of each round, and of those the median.

    The kernel keeps sums alone, in which one interruption hides a hundred runs; so rounds are kept apart.
    """

    runs: int
    mean: float


class Work(msgspec.Struct, frozen=True):
    """Something done `count` times, one after the other.

    Attributes:
        count: how often.
        median: nanoseconds that it takes while runs are counted; None when it was not timed.
        costs: of the programs that ran meanwhile, whoever it was that made them run.
    """

    count: int
    median: float | None
    costs: dict[str, Cost]


class Hooks(msgspec.Struct, frozen=True):
    """One machine. `emulated`: times are those of an emulator, and mean something among themselves at most."""

    date: str
    version: str
    machine: machine.Machine
    emulated: bool
    disturbances: tuple[str, ...]
    tier: str
    digests: bool
    programs: dict[str, Program]
    works: dict[str, Work]


class Plan(msgspec.Struct, frozen=True):
    """How much: rounds of each work, execs in a round, chores in a round."""

    rounds: int
    block: int
    chores: int


FULL: Final = Plan(rounds=40, block=200, chores=10)
QUICK: Final = Plan(rounds=2, block=50, chores=3)
EMULATED: Final = Plan(rounds=9, block=20, chores=2)


class _Works:
    """What is done, and what came of it so far."""

    def __init__(self, gate: Gate, daemon: Daemon, programs: Mapping[str, int]) -> None:
        self._gate = gate
        self._daemon = daemon
        self._programs = programs
        self._times: dict[str, list[int]] = {}
        self._counts: dict[str, int] = {}
        self._costs: dict[str, dict[str, list[tuple[int, int]]]] = {}

    def do(self, name: str, work: Callable[[int], list[int] | None], count: int) -> None:
        """Do a work `count` times, while the daemon stands still: its own files and calls are not to be counted."""
        decided, recorded = self._decided(), self._daemon.recorded()
        self._daemon.pause()
        try:
            before = self._run_times()
            times = work(count)
            after = self._run_times()
        finally:
            self._daemon.resume()
        decided = self._decided() - decided
        if name in _GOVERNED:
            assert decided >= count, f"{name}: {decided} of {count} execs were governed"
            self._daemon.wait_for_record(recorded + count)
        else:
            assert decided == 0, f"{name}: {decided} execs were governed"
        self._counts[name] = self._counts.get(name, 0) + count
        self._times.setdefault(name, []).extend(times or ())
        rounds = self._costs.setdefault(name, {})
        for program, (runs, ns) in after.items():
            if runs > before[program][0]:
                rounds.setdefault(program, []).append((runs - before[program][0], ns - before[program][1]))

    def found(self) -> dict[str, Work]:
        """Everything, by name."""
        return {
            name: Work(
                count=count,
                median=median(self._times[name]) if self._times[name] else None,
                costs={program: cost_of(rounds) for program, rounds in self._costs[name].items()},
            )
            for name, count in self._counts.items()
        }

    def _decided(self) -> int:
        return sum(self._gate.counters().decisions.values())

    def _run_times(self) -> dict[str, tuple[int, int]]:
        infos = {name: libbpf.program_info(fd) for name, fd in self._programs.items()}
        return {name: (info.run_cnt, info.run_time_ns) for name, info in infos.items()}


def cost_of(rounds: Sequence[tuple[int, int]]) -> Cost:
    """The cost of a program that ran so often in each round, and took so many nanoseconds in it. Pure."""
    return Cost(sum(runs for runs, _ in rounds), median([ns / runs for runs, ns in rounds]))


def measure_hooks(folder: Path, plan: Plan, *, emulated: bool = False) -> Hooks:
    """Load a gate of its own, on the best tier that there is, and measure its programs.

    Args:
        folder: an empty one.
        plan: how much.
        emulated: whether this machine is an emulated one, which no machine can tell of itself.

    Raises:
        RuntimeError: something that is to be measured does not work.
    """
    load, timer = machine.load(), compile_program("spawn_timer", folder)
    named, unnamed = compile_program("nothing", folder), folder / "unnamed"
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(contextlib.closing(Instance.create(folder / "host")))
        # Only its cgroup is of interest, which is in no scope.
        elsewhere = stack.enter_context(contextlib.closing(Instance.create(folder / "elsewhere")))
        gates = machine.other_gates(instance.paths.pins)
        _trust_and_issue(instance, named)
        say("gate load")
        gate = stack.enter_context(contextlib.closing(instance.load_gate()))
        programs = stack.enter_context(_opened(instance.paths.pins, gate))
        daemon = stack.enter_context(Daemon(instance))
        _wait_for_grant(instance, gate)
        cpu = max(os.sched_getaffinity(0))

        def started(program: Path, method: str, governed: Instance | None) -> Callable[[int], list[int]]:
            cgroup = governed.cgroup if governed else None
            return stack.enter_context(Timer(timer, method, [program], cpu=cpu, cgroup=cgroup)).measure

        def done(name: str, where: Instance) -> Callable[[int], None]:
            chores = Chores(where.cgroup, folder / name, instance.paths.pins)
            chores.folder.mkdir()
            return lambda count: do_chores(chores, count)

        outside, inside = started(named, "fork", None), started(named, "fork", instance)
        refused = started(unnamed, "refused", instance)
        shutil.copy(
            named, unnamed
        )  # only now: a timer tries once before it is governed, which has to fail, too
        works = _Works(gate, daemon, programs)
        stack.enter_context(counting_run_time())
        _do_all(
            works,
            plan,
            {
                OUTSIDE: outside,
                AUTHORIZED: inside,
                REFUSED: refused,
                CHORES_OUTSIDE: done("outside", elsewhere),
                CHORES: done("inside", instance),
            },
        )
        if GUARDS.keys() <= programs.keys():
            with _guarded(gate):
                _do_all(works, plan, {GUARDED_OUTSIDE: outside, GUARDED: inside})
        gates = sorted({*gates, *machine.other_gates(instance.paths.pins)})
        return Hooks(
            date=datetime.now(UTC).date().isoformat(),
            version=__version__,
            machine=machine.describe(instance.paths.record),
            emulated=emulated,
            disturbances=() if emulated else machine.disturbances(load, gates),
            tier=gate.tier.value,
            digests=gate.digests,
            programs=_described(gate, programs),
            works=works.found(),
        )


def _do_all(works: _Works, plan: Plan, todo: Mapping[str, Callable[[int], list[int] | None]]) -> None:
    """By turns, so that a machine that gets slower favours nobody."""
    for number in range(plan.rounds):
        if number % max(1, plan.rounds // 5) == 0:
            say(f"{', '.join(todo)}: round {number + 1} of {plan.rounds}")
        for name in rotated(tuple(todo), number):
            works.do(name, todo[name], plan.chores if name in (CHORES, CHORES_OUTSIDE) else plan.block)


def _trust_and_issue(instance: Instance, program: Path) -> None:
    """A standing artifact for `program`."""
    keys = instance.root / "keys"
    instance.paths.artifacts.mkdir()
    instance.egs("keys", "generate", "--name", "bench", "--out", str(keys))
    instance.egs("trust", "add", str(keys / "bench.pub"), "--role", "issuer", "--scope", "test")
    artifact = instance.paths.artifacts / "nothing.json"
    words = ("--key", str(keys / "bench.key"), "--scope", "test", "--program", str(program))
    instance.egs("issue", *words, "--out", str(artifact))


def _wait_for_grant(instance: Instance, gate: Gate) -> None:
    try:
        wait_for_grants(gate, 1)
    except RuntimeError as error:
        listed = instance.egs("artifacts", "list", "--json", check=False)
        raise RuntimeError(f"{error}: {listed.stdout}{listed.stderr}") from error


@contextlib.contextmanager
def _opened(pins: Path, gate: Gate) -> Iterator[dict[str, int]]:
    """Descriptors of every program of the gate. The guards are not there on a kernel on which nothing can be held."""
    names = (*links_of(gate.tier), *GUARDS, *called_of(gate.tier))
    programs = {name: libbpf.open_pin(pins / name) for name in names if (pins / name).exists()}
    try:
        yield programs
    finally:
        for descriptor in programs.values():
            os.close(descriptor)


@contextlib.contextmanager
def _guarded(gate: Gate) -> Iterator[None]:
    """As while a scope holds."""
    gate.holds.attach_guards()
    try:
        yield
    finally:
        gate.holds.detach_guards()


def _described(gate: Gate, programs: Mapping[str, int]) -> dict[str, Program]:
    places = {**links_of(gate.tier), **GUARDS}
    infos = {name: libbpf.program_info(fd) for name, fd in programs.items()}
    return {
        name: Program(places.get(name, ""), info.xlated_prog_len // _INSTRUCTION, info.verified_insns)
        for name, info in infos.items()
    }
