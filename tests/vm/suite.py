"""Runs this repository's tests in one machine, and tells what comes of each as it comes."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from tests.vm.host import file_system, say, workshop
from tests.vm.image import copy_checkout
from tests.vm.kernels import Kernel
from tests.vm.machine import Hung, Machine
from tests.vm.results import Outcome, Results

PATIENCE: Final = 8
"""How much longer than natively a test may wait for something: emulation is about ten times slower."""
TEST_SECONDS: Final = 900
MARKS: Final = {"passed": "ok", "failed": "FAILED", "skipped": "skipped", "xfailed": "known failure"}


@dataclass(frozen=True)
class Plan:
    """What to run in every machine."""

    arguments: tuple[str, ...]
    selection: str
    commit: str | None
    seconds: float
    results: Path
    verbose: bool = False


def job_drive(path: Path, tier: str, plan: Plan) -> None:
    """A small file system with the checkout, and what to do with it; it is the machine's /srv."""
    with workshop() as tree:
        copy_checkout(tree / "egs-kernel", plan.commit)
        (tree / "environment").write_text(
            f"export EGS_REQUIRE_KERNEL=1 EGS_TEST_TIER={tier} EGS_TEST_PATIENCE={PATIENCE}\n"
        )
        options = ("-o", f"timeout={TEST_SECONDS}", "-p", "no:cacheprovider")
        (tree / "arguments").write_text("".join(f"{word}\n" for word in (*options, *plan.arguments)))
        shutil.copytree(Path(__file__).parent / "guest", tree / "guest")
        file_system(path, tree, "256M")


def run(disk: Path, kernel: Kernel, tier: str, plan: Plan) -> Results:
    """Boot a machine, have it run the plan's tests, and save what came of it."""
    results = Results(
        kernel=kernel.name,
        tier=tier,
        selection=plan.selection,
        commit=plan.commit or "working tree",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    began = time.monotonic()
    with workshop() as folder:
        job_drive(folder / "job", tier, plan)
        machine = Machine(disk, kernel, tier, folder, job=folder / "job", init="/srv/guest/init")
        ended = False
        try:
            with machine.running(plan.seconds) as lines:
                for line in lines:
                    ended = _take(results, line, began, verbose=plan.verbose) or ended
        except Hung as hung:
            results.broken = str(hung)
        if not ended:
            results.broken = results.broken or "the machine went off before its tests were over"
            _say(results, f"BROKEN: {results.broken}; the console's end:\n{machine.tail()}")
        results.seconds = round(time.monotonic() - began, 1)
        plan.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(machine.console, plan.results / f"{kernel.name}-{tier}.console")
    results.save(plan.results)
    return results


def _take(results: Results, line: bytes, began: float, *, verbose: bool) -> bool:
    """One line from the machine; whether it was the last one."""
    seconds = time.monotonic() - began
    try:
        said = json.loads(line)
    except ValueError:
        _say(results, f"not understood: {line!r}")
        return False
    if "machine" in said:
        results.machine = said["machine"]
        results.release, results.lsm = said["machine"]["release"], said["machine"]["lsm"]
        _say(results, f"Linux {results.release}, lsm={results.lsm}, after {seconds:.0f} s")
    elif "tests" in said:
        results.tests = said["tests"]
        _say(results, f"{results.tests} tests, after {seconds:.0f} s")
    elif "outcome" in said:
        outcome = msgspec.convert(said, Outcome)
        results.outcomes.append(outcome)
        _tell(results, outcome, seconds, verbose=verbose)
    return "end" in said


def _tell(results: Results, outcome: Outcome, seconds: float, *, verbose: bool) -> None:
    done = f"{len(results.outcomes)}/{results.tests}"
    reason = f" ({outcome.reason})" if outcome.reason else ""
    detail = f"\n{outcome.detail}" if outcome.detail else ""
    if verbose or outcome.outcome != "passed" or len(results.outcomes) % 10 == 0:
        text = f"{seconds:5.0f} s {done} {MARKS[outcome.outcome]} {outcome.test}{reason} {outcome.seconds:.1f} s{detail}"
        _say(results, text)


def _say(results: Results, text: str) -> None:
    say(f"[{results.kernel} {results.tier}] {text}")
