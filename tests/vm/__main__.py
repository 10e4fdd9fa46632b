"""scripts/test-vm: the tests that need a kernel, on Debian's kernels, in virtual machines by emulation."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.vm import suite
from tests.vm.host import CACHE, Lacking, cache_lock, forget_the_unused, need_tools, say
from tests.vm.image import base_disk
from tests.vm.kernels import SUITES, kernel
from tests.vm.machine import LSM
from tests.vm.results import Results
from tests.vm.system import system_disk

FULL: Final = ("tests/kernel", "tests/adversarial")
QUICK: Final = Path(__file__).parent / "quick.txt"
LACKS: Final = 3
FULL_SECONDS: Final = 6 * 3600.0
QUICK_SECONDS: Final = 1800.0
JOBS: Final = (os.cpu_count() or 1) + 1
"""Three machines share two processors evenly; two at a time would leave the third one alone with one of them."""


def main(words: list[str]) -> int:
    """Run the matrix; the exit code."""
    options = _parse(words)
    tiers = options.tier or list(LSM)
    selection = "given" if options.arguments else "quick" if options.quick else "full"
    cases = options.case or (list(suite.CASES) if selection == "full" else ["tests"])
    chosen = {"given": tuple(options.arguments), "quick": quick_tests(), "full": FULL}[selection]
    plan = suite.Plan(
        arguments=chosen,
        selection=selection,
        commit=options.commit,
        seconds=options.seconds or (QUICK_SECONDS if selection == "quick" else FULL_SECONDS),
        results=options.results or CACHE / "results" / selection,
        verbose=options.verbose or selection == "given",
    )
    try:
        need_tools()
        with cache_lock():
            forget_the_unused()
            ready = [kernel(name) for name in options.kernel or SUITES]
            disks = {case: base_disk() if case == "tests" else system_disk(options.commit) for case in cases}
    except Lacking as lacking:
        say(f"test-vm: not run: {lacking}")
        return LACKS
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = [
            pool.submit(suite.run, case, disks[case], one, tier, plan)
            for case in cases
            for one in ready
            for tier in tiers
        ]
        ran = [future.result() for future in asked]
    return summary(ran, plan.results)


def quick_tests() -> tuple[str, ...]:
    """The tests of quick.txt."""
    lines = (line.partition("#")[0].strip() for line in QUICK.read_text().splitlines())
    return tuple(line for line in lines if line)


def summary(ran: list[Results], folder: Path) -> int:
    """Print a table; the exit code."""
    say(f"\nkernel and tier           passed  failed  skipped  seconds  processor   (results: {folder})")
    for one in ran:
        counts = one.counts
        say(
            f"{one.name:24} {counts['passed']:6}  {counts['failed']:6}  {counts['skipped']:7}"
            f"  {one.seconds:7.0f}    {one.processor_seconds:7.0f}   {one.broken}"
        )
    for one in ran:
        for outcome in one.outcomes:
            if outcome.outcome == "failed":
                say(f"failed on {one.kernel} {one.tier}: {outcome.test}")
    passed, failed, skipped = (
        sum(one.counts[kind] for one in ran) for kind in ("passed", "failed", "skipped")
    )
    failed += sum(bool(one.broken) for one in ran)
    say(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if all(one.good for one in ran) else 1


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/test-vm", description=__doc__)
    parser.add_argument(
        "--kernel", action="append", choices=list(SUITES), help="only this one; may be repeated"
    )
    parser.add_argument("--tier", action="append", choices=list(LSM), help="only this one; may be repeated")
    parser.add_argument(
        "--case", action="append", choices=list(suite.CASES), help="only this one; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="the selection of tests/vm/quick.txt, as in CI")
    parser.add_argument(
        "--jobs",
        type=int,
        default=JOBS,
        help="machines at a time (default: one more than this host has processors)",
    )
    parser.add_argument("--commit", help="what to test (default: the working tree)")
    parser.add_argument("--seconds", type=float, help="how long one machine may run")
    parser.add_argument(
        "--results", type=Path, help="folder for the results (default: in ~/.cache/egs-kernel)"
    )
    parser.add_argument("--verbose", action="store_true", help="every test, not only every tenth")
    parser.add_argument(
        "arguments", nargs="*", metavar="PYTEST ARGS", help="after --: instead of a selection"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
