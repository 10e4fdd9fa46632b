"""scripts/bench drift: what the monitor costs with 500 governed processes, and how soon it responds."""

from __future__ import annotations

import os
import select
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.audit.entries import FindingEntry, ResponseEntry
from egs_kernel.findings import Finding
from egs_kernel.gate.cgroups import processes_below
from egs_kernel.monitor.tail import Tail
from tests.bench import audit_daemon, machine
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Summary, summarize
from tests.bench.timers import say
from tests.monitoring import Monitor, Obedient
from tests.running import SECONDS, Running, running_on_disk

PROCESSES: Final = 500
INTERVAL: Final = 30
CPU_PERCENT: Final = 2.0
PROCESS_BYTES: Final = 10 * 1024
RESPONSE_P50_MS, RESPONSE_P99_MS = 5.0, 25.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_FULL, _QUICK = 100, 10


class Drift(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        load: the load average at the end: what else ran.
        cpu_percent: of one core, over whole intervals, with that many processes at rest.
        idle_percent: the same with none.
        sweep_ms: processor time of one sweep of all of them.
        process_bytes: that the monitor grew by, for each process.
        resident_bytes: of the monitor, with all of them.
        suspended: milliseconds from the event to the end of a verified suspension.
        terminated: the same of a termination.
        auditd: why it was not measured; "": it was.
        beside: what it costs, beside the monitor.
    """

    date: str
    version: str
    machine: machine.Machine
    processes: int
    interval: int
    cpu_percent: float
    idle_percent: float
    sweep_ms: float
    process_bytes: float
    resident_bytes: int
    suspended: Summary
    terminated: Summary
    auditd: str
    load: float
    beside: audit_daemon.Beside | None = None


def measure(folder: Path, quick: bool) -> Drift:  # noqa: FBT001 - what a part is called with
    """What it costs at rest, then how soon it responds."""
    processes, rounds, interval = (50, _QUICK, 5) if quick else (PROCESSES, _FULL, INTERVAL)
    execs = 100 if quick else 2000
    with running_on_disk(drift="required") as running:
        monitor = Monitor(running, f'interval = "{interval}s"\n')
        monitor.start("nice", "-n", "-10")  # as its unit has it
        try:
            idle = _cpu(monitor, interval)
            empty = _resident(monitor)
            say(f"{processes} processes")
            crowd = _crowd(running, processes)
            _settle(monitor)
            busy = _cpu(monitor, 2 * interval)
            full = _resident(monitor)
            _clear(running, crowd)
            suspended = _responses(running, monitor, "suspend", Finding.ANONYMOUS_CODE, rounds)
            terminated = _responses(running, monitor, "terminate", Finding.NAMESPACE_CHANGED, rounds)
            why, beside = audit_daemon.missing(), None
            if not why:
                say(f"auditd: {execs} execs")
                beside = audit_daemon.compare(running, folder / "auditd", monitor.pid, monitor.stop, execs)
        finally:
            monitor.end()
        described = machine.describe(running.instance.paths.record)
    return Drift(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        processes=processes,
        interval=interval,
        cpu_percent=busy,
        idle_percent=idle,
        sweep_ms=(busy - idle) / 100 * interval * 1000,
        process_bytes=(full - empty) / processes,
        resident_bytes=full,
        suspended=summarize(suspended),
        terminated=summarize(terminated),
        load=os.getloadavg()[1],
        auditd=why,
        beside=beside,
    )


def _crowd(running: Running, count: int) -> list[subprocess.Popen[bytes]]:
    """Programs at rest, each executed by a plain execve under a standing artifact."""
    program = running.copy("/usr/bin/sleep", "rests")
    running.add(running.issue(program, name="rests.json"))
    return [
        subprocess.Popen([str(program), "900"], preexec_fn=running.instance.cgroup.enter)
        for _ in range(count)
    ]


def _settle(monitor: Monitor) -> None:
    """Until it has taken in what was executed: its processor time stands still for two seconds."""
    before = -1.0
    while (now := _processor(monitor.pid)) - before > 0.02:
        before = now
        time.sleep(2)


def _clear(running: Running, crowd: list[subprocess.Popen[bytes]]) -> None:
    for process in crowd:
        process.kill()
    for process in crowd:
        process.wait(SECONDS)
    assert not list(processes_below(running.instance.cgroup.folder))


def _cpu(monitor: Monitor, seconds: int) -> float:
    before, began = _processor(monitor.pid), time.monotonic()
    time.sleep(seconds)
    return (_processor(monitor.pid) - before) / (time.monotonic() - began) * 100


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(monitor: Monitor) -> int:
    line = next(
        line for line in Path(f"/proc/{monitor.pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) * 1024


def _responses(running: Running, monitor: Monitor, word: str, finding: Finding, rounds: int) -> list[float]:
    """Milliseconds from the kernel's event to the verified end of the response, as the record has them."""
    program = Obedient(running, f"to-{word}", constraints=f'[drift.on]\n{finding.value} = "{word}"\n')
    act = {
        Finding.NAMESPACE_CHANGED: "libc.unshare(0x04000000)",
        Finding.ANONYMOUS_CODE: "kept.append(mmap.mmap(-1,4096,prot=7))",
    }[finding]
    tail = Tail(running.instance.paths.record)
    tail.skip()
    found = []
    for number in range(rounds):
        if number % max(1, rounds // 4) == 0:
            say(f"{word} {number + 1} of {rounds}")
        pid = program.start()
        program.tell("time.sleep(.1)")  # the record has its exec
        program.say(act)
        response = _next(tail, pid, monitor)
        assert response.verified, response
        found.append(response.microseconds / 1000)
        program.stop()
    tail.close()
    return found


def _next(tail: Tail, pid: int, monitor: Monitor) -> ResponseEntry:
    """The response to a finding about this process, as soon as it is recorded."""
    number, deadline = 0, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for recorded in tail.read():
            entry = recorded.entry
            if isinstance(entry, FindingEntry) and entry.pid == pid:
                number = entry.number
            if isinstance(entry, ResponseEntry) and entry.number == number:
                return entry
        select.select([tail], [], [], 1)
    raise AssertionError(f"no response; the monitor said: {monitor.log()}")


def render(measured: Drift) -> str:
    """The section of docs/benchmarks.md."""
    rows = [
        ("", "measured", "limit"),
        (
            f"processor time with {measured.processes} processes at rest, a sweep every {measured.interval} s",
            f"{measured.cpu_percent:.2f} % of a core (idle {measured.idle_percent:.2f} %)",
            f"{CPU_PERCENT:g} %",
        ),
        ("one sweep of all of them", f"{measured.sweep_ms:.0f} ms of processor time", ""),
        (
            "memory for each process",
            f"{measured.process_bytes / 1024:.1f} KiB (in all {measured.resident_bytes / 2**20:.0f} MiB)",
            f"{PROCESS_BYTES // 1024} KiB",
        ),
        _times("event to verified suspension", measured.suspended),
        _times("event to verified termination", measured.terminated),
    ]
    beside = f"auditd beside it: {measured.auditd}." if measured.beside is None else _beside(measured.beside)
    return (
        f"{measured.date}, version {measured.version}, {measured.machine.cpu}, kernel {measured.machine.kernel}, {measured.machine.cores} cores, load average {measured.load:.1f}.\n\n"
        f"{table(rows[0], rows[1:])}\n\n{beside}"
    )


def _beside(beside: audit_daemon.Beside) -> str:
    return (
        f"auditd beside it, for each of {beside.execs:,} programs that were forked and executed: the monitor {beside.monitor_us:.0f} µs of "
        f"processor time, auditd {beside.auditd_us:.0f} µs ({beside.records:.1f} records), a ratio of {beside.ratio:.1f}; "
        f"resident {beside.auditd_bytes / 2**20:.0f} MiB. auditd writes down what happened, and compares nothing."
    )


def _times(what: str, times: Summary) -> tuple[str, str, str]:
    return (
        what,
        f"p50 {times.median:.1f} ms, p99 {times.p99:.1f} ms",
        f"p50 {RESPONSE_P50_MS:g} ms, p99 {RESPONSE_P99_MS:g} ms",
    )


PART: Final = Part(
    name="drift",
    description="What the monitor costs with 500 governed processes, and how soon it responds.",
    kind=Drift,
    measure=measure,
    render=render,
)
