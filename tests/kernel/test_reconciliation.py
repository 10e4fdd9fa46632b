"""Every exec that the gate saw has exactly one decision in the record, and what is missing there is counted there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec, Gap, Outcome
from egs_kernel.gate.parts import can_skip
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Reason, Verdict
from tests.harness import COMMAND_SECONDS, PATIENCE, compile_program
from tests.refusals import REFUSED

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.audit.entries import EntryType
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120 * PATIENCE)]

PARENTS: Final = os.cpu_count() or 1
TRIES: Final = 6000
RING: Final = 16_000
"""More execs than the gate's ring buffer has room for."""


@pytest.fixture
def programs(running: Running) -> dict[str, Path]:
    built = {name: compile_program(name, running.folder, "-pthread") for name in ("burst", "nothing")}
    built["strange"] = running.copy(str(built["nothing"]), "strange")
    running.add(running.issue(built["nothing"]))
    return built


def burst(running: Running, programs: dict[str, Path], target: str, tries: int) -> Counter[str]:
    """Execute a program as often and as fast as this host can; how the processes ended."""
    command = [
        programs["burst"],
        running.instance.cgroup.procs,
        "vfork",
        PARENTS,
        tries,
        programs[target],
        "/dev/null",
    ]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True
    )
    words = done.stdout.split()
    return Counter({word: int(count) for word, count in zip(words[::2], words[1::2], strict=True)})


def recorded(entries: list[EntryType], programs: dict[str, Path]) -> list[Exec]:
    names = {str(path) for path in programs.values()}
    return [entry for entry in entries if isinstance(entry, Exec) and entry.event.filename in names]


def test_every_exec_has_exactly_one_decision(running: Running, programs: dict[str, Path]) -> None:
    started = time.monotonic()
    ended = burst(running, programs, "nothing", TRIES) + burst(running, programs, "strange", TRIES)
    rate = 2 * TRIES / (time.monotonic() - started)
    running.stop()

    entries = running.record()
    execs = recorded(entries, programs)
    with closing(Gate.open(running.instance.paths.pins)) as gate:
        counters = gate.counters()
    skipped = counters.failures["exec_skipped"]  # from Linux 7.0 on; what the kernel skips the guard kills
    assert can_skip() or not skipped
    assert len(execs) == 2 * TRIES - skipped, f"at {rate:.0f} execs a second"
    keys = {(entry.event.time, entry.event.pid, entry.event.start_ticks) for entry in execs}
    assert len(keys) == len(execs)
    verdicts = Counter(entry.event.verdict for entry in execs)
    assert set(verdicts) == {Verdict.ALLOW, REFUSED.verdict}
    assert (
        ended["exited"]
        == verdicts[Verdict.ALLOW]
        == counters.decisions[Verdict.ALLOW, Reason.AUTHORIZED, True]
    )
    assert verdicts[REFUSED.verdict] == counters.decisions[REFUSED.verdict, Reason.NO_GRANT, True]
    assert ended["killed"] + ended["denied"] == 2 * TRIES - verdicts[Verdict.ALLOW]
    outcomes = Counter(entry.event.execution for entry in entries if isinstance(entry, Outcome))
    assert {entry.event.execution for entry in execs if entry.event.execution} <= outcomes.keys()
    assert set(outcomes.values()) == {1}
    told = [entry.total for entry in entries if isinstance(entry, Gap) and entry.what == "exec_skipped"]
    assert told[-1:] == ([skipped] if skipped else [])
    assert {entry.what for entry in entries if isinstance(entry, Gap)} <= {None, "exec_skipped"}


def test_what_there_was_no_room_for_is_refused_and_counted(
    running: Running, programs: dict[str, Path]
) -> None:
    """While the daemon stands still the gate's buffer fills up: then nothing runs that cannot be told of."""
    running.instance.configure(grace="90s")
    running.instance.egs("reload")
    os.kill(running.pid, signal.SIGSTOP)
    try:
        ended = burst(running, programs, "nothing", RING)
    finally:
        os.kill(running.pid, signal.SIGCONT)
    gap = running.wait_for(Gap, lambda entry: entry.what == "event")
    running.stop()

    entries = running.record()
    execs = recorded(entries, programs)
    ran = [entry for entry in execs if entry.event.verdict is Verdict.ALLOW]
    assert len(ran) == ended["exited"]
    assert 0 < ended["killed"] + ended["denied"] == RING - len(ran)
    lost = [entry for entry in entries if isinstance(entry, Gap) and entry.what == "event"]
    skipped = [
        entry.total or 0 for entry in entries if isinstance(entry, Gap) and entry.what == "exec_skipped"
    ]
    assert sum(entry.lost or 0 for entry in lost) == lost[-1].total == RING - len(execs) - sum(skipped[-1:])
    assert gap.lost
    running.start()
    running.stop()
    again = [entry for entry in running.record() if isinstance(entry, Gap) and entry.what == "event"]
    assert again == lost  # a restarted daemon does not tell it again
