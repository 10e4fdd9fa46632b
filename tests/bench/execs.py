"""What fork and exec cost without the gate, beside it, and under it; and what the gate's programs take."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.stats import Ratio, Summary, compare, median, rotated, summarize
from tests.bench.subject import Attachment, Daemon
from tests.bench.timers import Timer, say
from tests.harness import Cgroup

METHODS: Final = ("fork", "vfork")
_ENTRIES_PER_EXEC: Final = 2  # its decision and its outcome
_SETTLE_SECONDS: Final = 0.02
_DETACH_SECONDS: Final = 5.0
_RUN_TIME: Final = 0  # enum bpf_stats_type


class Program(msgspec.Struct, frozen=True):
    """What one of the gate's programs takes, nanoseconds, mean: outside of every scope, and inside."""

    ungoverned: float
    governed: float


class Execs(msgspec.Struct, frozen=True):
    """Fork, exec, wait of a static program: nanoseconds.

    Attributes:
        method: how the child is made.
        without: the gate is detached and the daemon stopped.
        ungoverned: gate and daemon run; the process is in no scope.
        governed: gate and daemon run; in a scope, under a standing grant, recorded.
        ungoverned_ratio: the second to the first.
        governed_ratio: the third to the same process while it was not governed.
        control_ratio: the first to itself, measured twice: what the method makes of no difference.
    """

    method: str
    without: Summary
    ungoverned: Summary
    governed: Summary
    ungoverned_ratio: Ratio
    governed_ratio: Ratio
    control_ratio: Ratio


class Subject(msgspec.Struct, frozen=True):
    """What takes part."""

    timer: Path
    program: Path
    attachment: Attachment
    daemon: Daemon
    cgroup: Cgroup
    cpu: int


class _Blocks:
    """The times of one method, by what was measured: all of them, and the median of each block."""

    def __init__(self) -> None:
        self.times: dict[str, list[int]] = {}
        self.medians: dict[str, list[float]] = {}

    def add(self, name: str, times: list[int]) -> None:
        self.times.setdefault(name, []).extend(times)
        self.medians.setdefault(name, []).append(median(times))

    def ratio(self, baseline: str, other: str) -> Ratio:
        return compare(self.medians[baseline], self.medians[other])


def measure_execs(subject: Subject, method: str, *, rounds: int, block: int) -> Execs:
    """Measure one method; afterwards gate and daemon run.

    Args:
        subject: with the gate attached and the daemon running.
        method: one of `METHODS`.
        rounds: pairs of states.
        block: execs per measurement.
    """
    blocks = _Blocks()
    timer, program, cpu = subject.timer, subject.program, subject.cpu
    with (
        Timer(timer, method, [program], cpu=cpu) as outside,
        Timer(timer, method, [program], cpu=cpu, cgroup=subject.cgroup) as inside,
    ):
        for number in range(rounds):
            if number % max(1, rounds // 5) == 0:
                say(f"{method}: round {number + 1} of {rounds}")
            for state in rotated(("off", "on"), number):
                if state == "off":
                    _measure_off(subject, blocks, (outside, inside), block)
                else:
                    _measure_on(subject, blocks, (outside, inside), block)
    return Execs(
        method=method,
        without=summarize(blocks.times["without"]),
        ungoverned=summarize(blocks.times["ungoverned"]),
        governed=summarize(blocks.times["governed"]),
        ungoverned_ratio=blocks.ratio("without", "ungoverned"),
        governed_ratio=blocks.ratio("inside without", "governed"),
        control_ratio=blocks.ratio("without", "control"),
    )


def _measure_off(subject: Subject, blocks: _Blocks, timers: tuple[Timer, Timer], block: int) -> None:
    outside, inside = timers
    subject.daemon.pause()  # before it can see that the gate is gone
    subject.attachment.detach()
    _wait_until_detached(subject.attachment, outside)
    outside.measure(max(1, block // 10))  # the processor's caches know the other state
    decided = subject.attachment.decided()
    blocks.add("without", outside.measure(block))
    blocks.add("inside without", inside.measure(block))
    blocks.add("control", outside.measure(block))
    assert subject.attachment.decided() == decided, "the gate was attached all the time"
    subject.attachment.attach()
    subject.daemon.resume()


def _measure_on(subject: Subject, blocks: _Blocks, timers: tuple[Timer, Timer], block: int) -> None:
    outside, inside = timers
    time.sleep(_SETTLE_SECONDS)  # the daemon catches up with what it does every second
    outside.measure(max(1, block // 10))
    blocks.add("ungoverned", outside.measure(block))
    decided, recorded = subject.attachment.decided(), subject.daemon.recorded()
    inside.measure(max(1, block // 10))
    blocks.add("governed", inside.measure(block))
    execs = block + max(1, block // 10)
    assert subject.attachment.decided() == decided + execs, "not every exec was governed"
    subject.daemon.wait_for_record(recorded + _ENTRIES_PER_EXEC * execs)
    assert subject.attachment.governed() == 1, "the gate did not notice how a governed process ended"


def _wait_until_detached(attachment: Attachment, outside: Timer) -> None:
    """The kernel lets go of a link after a grace period.

    Meanwhile some programs run and others do not. So nothing governed may be started: its end would go unnoticed,
    and who bears its number next would be governed.
    """
    deadline = time.monotonic() + _DETACH_SECONDS
    with counting_run_time():
        while _runs(attachment, outside):
            if time.monotonic() > deadline:
                raise RuntimeError("the gate cannot be detached")
            time.sleep(_SETTLE_SECONDS)


def _runs(attachment: Attachment, outside: Timer) -> bool:
    before = attachment.costs()
    outside.measure(2)
    return attachment.costs() != before


def measure_programs(subject: Subject, *, execs: int) -> dict[str, Program]:
    """The mean run time of the gate's programs that run on every fork, exec and exit."""
    with (
        counting_run_time(),
        Timer(subject.timer, "fork", [subject.program], cpu=subject.cpu) as outside,
        Timer(subject.timer, "fork", [subject.program], cpu=subject.cpu, cgroup=subject.cgroup) as inside,
    ):
        ungoverned = _mean_costs(subject.attachment, outside, execs)
        recorded = subject.daemon.recorded()
        governed = _mean_costs(subject.attachment, inside, execs)
        subject.daemon.wait_for_record(recorded + _ENTRIES_PER_EXEC * execs)
    return {name: Program(ungoverned[name], governed[name]) for name in ungoverned}


def _mean_costs(attachment: Attachment, timer: Timer, execs: int) -> dict[str, float]:
    before = attachment.costs()
    timer.measure(execs)
    after = attachment.costs()
    return {
        name: (after[name][1] - before[name][1]) / (after[name][0] - before[name][0])
        for name in ("gate_fork", "gate_exec", "gate_exit")
    }


@contextlib.contextmanager
def counting_run_time() -> Iterator[None]:
    """Have the kernel count what BPF programs take. It stops when the descriptor goes, however we end."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    descriptor = library.bpf_enable_stats(_RUN_TIME)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "the kernel does not count the run time of BPF programs")
    try:
        yield
    finally:
        os.close(descriptor)


def daemon_cost(subject: Subject, *, execs: int) -> float:
    """CPU microseconds that the daemon takes for one governed exec: drain, encode, chain, write, sync."""
    with Timer(subject.timer, "vfork", [subject.program], cgroup=subject.cgroup) as inside:
        recorded, cpu = subject.daemon.recorded(), subject.daemon.cpu_seconds()
        inside.measure(execs)
        subject.daemon.wait_for_record(recorded + _ENTRIES_PER_EXEC * execs)
        return (subject.daemon.cpu_seconds() - cpu) / execs * 1e6
