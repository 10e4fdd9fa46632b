"""One case in one machine: tells what comes of it as it comes, and saves it.

The case `tests` runs this repository's tests; `boot` and `crash` boot a whole Debian with systemd and egs-kernel
installed, in which an observer looks (guest/units.py, guest/crash.py), and so does `sealed` (guest/sealed.py).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.vm.host import file_system, say, workshop
from tests.vm.image import copy_checkout
from tests.vm.kernels import Kernel
from tests.vm.machine import Hung, Machine
from tests.vm.results import Outcome, Results

CASES: Final = {"tests": "", "boot": "units", "crash": "crash", "sealed": "sealed"}
"""And the module of its observer."""
REBOOT: Final = frozenset({"crash", "sealed"})
PATIENCE: Final = 8
"""How much longer than natively a test may wait for something: emulation is about ten times slower."""
EVERY: Final = 10
MARKS: Final = {"passed": "ok", "failed": "FAILED", "skipped": "skipped", "xfailed": "known failure"}
END, PULL_THE_PLUG, NOTHING = "end", "pull the plug", ""


@dataclass(frozen=True)
class Plan:
    """What holds for every machine."""

    arguments: tuple[str, ...]
    selection: str
    commit: str | None
    seconds: float
    results: Path
    verbose: bool = False


def run(case: str, disk: Path, kernel: Kernel, tier: str, plan: Plan) -> Results:
    """Boot a machine, follow what it says to its end, and save what came of it."""
    results = Results(
        case=case,
        kernel=kernel.name,
        tier=tier,
        selection=plan.selection if case == "tests" else case,
        commit=plan.commit or "working tree",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    teller = _Teller(results, plan.verbose or case != "tests")
    with workshop() as folder:
        machine = _machine(case, disk, kernel, tier, plan, folder)
        try:
            ended = _follow(machine, teller, plan.seconds)
        except Hung as hung:
            results.broken, ended = str(hung), False
        if not ended:
            results.broken = results.broken or "the machine went off before it was done"
            teller.say(f"BROKEN: {results.broken}; the console's end:\n{machine.tail()}")
        results.seconds, results.processor_seconds = round(teller.seconds), round(machine.processor_seconds)
        plan.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(machine.console, plan.results / f"{results.name}.console")
    results.save(plan.results)
    return results


def _machine(case: str, disk: Path, kernel: Kernel, tier: str, plan: Plan, folder: Path) -> Machine:
    if case == "tests":
        _job_drive(folder / "job", tier, plan)
        return Machine(disk, kernel, tier, folder, job=folder / "job", init="/srv/guest/init")
    observer = f"systemd.wants=vm-observer@{CASES[case]}.service"
    return Machine(disk, kernel, tier, folder, more=observer, processors=2, reboots=case in REBOOT)


def _job_drive(path: Path, tier: str, plan: Plan) -> None:
    """A small file system with the checkout, and what to do with it; it is the machine's /srv."""
    with workshop() as tree:
        copy_checkout(tree / "egs-kernel", plan.commit)
        (tree / "environment").write_text(
            f"export EGS_REQUIRE_KERNEL=1 EGS_TEST_TIER={tier} EGS_TEST_PATIENCE={PATIENCE} EGS_TEST_OWN_MACHINE=1\n"
        )
        options = ("-p", "no:cacheprovider")
        (tree / "arguments").write_text("".join(f"{word}\n" for word in (*options, *plan.arguments)))
        shutil.copytree(Path(__file__).parent / "guest", tree / "guest")
        file_system(path, tree, "256M")


def _follow(machine: Machine, teller: _Teller, seconds: float) -> bool:
    """Boot, as often as the machine wants the plug pulled; whether it came to its end."""
    deadline = time.monotonic() + seconds
    word = PULL_THE_PLUG
    while word == PULL_THE_PLUG:
        with machine.running(deadline - time.monotonic()) as lines:
            word = teller.take_all(lines)
    return word == END


class _Teller:
    """Keeps what a machine says, and tells the person."""

    def __init__(self, results: Results, verbose: bool) -> None:  # noqa: FBT001 - two values, and named by its only caller
        self._results = results
        self._verbose = verbose
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this machine was begun with."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line to the person."""
        say(f"[{self._results.name}] {self.seconds:5.0f} s  {text}")

    def take_all(self, lines: Iterator[bytes]) -> str:
        """Every line of a boot. What is to be done now: END, PULL_THE_PLUG, or NOTHING when it just went off."""
        ended = NOTHING
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                self.say(f"not understood: {line!r}")
                continue
            if "host" in said:
                return PULL_THE_PLUG
            self._take(said)
            ended = END if "end" in said else ended
        return ended

    def _take(self, said: dict[str, Any]) -> None:
        results = self._results
        if "machine" in said:
            results.machine = said["machine"]
            results.release, results.lsm = said["machine"]["release"], said["machine"]["lsm"]
            self.say(f"Linux {results.release}, lsm={results.lsm}")
        elif "tests" in said:
            results.tests = said["tests"]
            self.say(f"{results.tests} tests")
        elif "more_tests" in said:
            results.tests += said["more_tests"]
        elif "note" in said and self._verbose:
            self.say(f"{said['note']}: {said['seen']}")
        elif "outcome" in said:
            outcome = msgspec.convert(said, Outcome)
            results.outcomes.append(outcome)
            if self._verbose or outcome.outcome != "passed" or len(results.outcomes) % EVERY == 0:
                self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        done = f"{len(self._results.outcomes)}/{self._results.tests or '?'}"
        reason = f" ({outcome.reason})" if outcome.reason else ""
        detail = f"\n{outcome.detail}" if outcome.detail else ""
        self.say(f"{done} {MARKS[outcome.outcome]} {outcome.test}{reason} {outcome.seconds:.1f} s{detail}")
