"""scripts/bench hooks: what each of the gate's programs costs, here and on the kernels of tests/vm."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import hooks, machine
from tests.bench.hooks import Hooks, measure_hooks
from tests.bench.hooks_in_vm import MEASURED
from tests.bench.hooks_report import MARKERS, render_hooks
from tests.bench.report import replaced
from tests.bench.timers import say
from tests.harness import REPOSITORY
from tests.vm import results as vm
from tests.vm.kernels import SUITES

DOCUMENT: Final = REPOSITORY / "docs/benchmarks.md"
RESULTS: Final = Path(__file__).parent / "results"
HERE: Final = "here"
IN_VM: Final = "tests/bench/hooks_in_vm.py"
VM_SECONDS: Final = 1800


def main(words: list[str]) -> None:
    """Measure what is asked for, keep each result, and write the document's part from all that are kept."""
    parser = argparse.ArgumentParser(prog="scripts/bench hooks", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only",
        action="append",
        choices=(HERE, *SUITES),
        help="only on this host, or on this kernel in a virtual machine; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: prints, writes nothing")
    options = parser.parse_args(words)
    kept = {} if options.quick else _kept()
    for name in options.only or (HERE, *SUITES):
        kept[name] = _measure_here(quick=options.quick) if name == HERE else _measure_in_vm(name)
        if not options.quick:
            _keep(name, kept[name])
    text = render_hooks(kept.get(HERE), [kept[name] for name in SUITES if name in kept])
    sys.stdout.write(f"{text}\n")
    if options.quick:
        say("a quick run is a smoke test: nothing was written")
        return
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), text, MARKERS))
    say(f"wrote {RESULTS.relative_to(REPOSITORY)}/hooks-*.json and {DOCUMENT.relative_to(REPOSITORY)}")


def _measure_here(*, quick: bool) -> Hooks:
    signal.signal(signal.SIGTERM, machine.end_properly)
    with tempfile.TemporaryDirectory(prefix="egs-bench-", dir="/var/tmp") as folder:
        return measure_hooks(Path(folder), hooks.QUICK if quick else hooks.FULL)


def _measure_in_vm(kernel: str) -> Hooks:
    """On one of Debian's kernels, on the tier `lsm`, with the working tree as it is."""
    say(f"Linux {kernel}, in a virtual machine")
    with tempfile.TemporaryDirectory() as folder:
        options = ("--kernel", kernel, "--tier", "lsm", "--results", folder, "--seconds", str(VM_SECONDS))
        command = [sys.executable, "-m", "tests.vm", *options, "--", "-s", IN_VM]
        if subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False).returncode:
            sys.exit(f"bench: Linux {kernel} could not be measured: see above")
        outcome = vm.load(Path(folder) / f"{kernel}-lsm.json").outcomes[0]
    return msgspec.convert(outcome.measured[MEASURED], Hooks)


def _kept() -> dict[str, Hooks]:
    paths = {name: _path(name) for name in (HERE, *SUITES)}
    return {
        name: msgspec.json.decode(path.read_bytes(), type=Hooks)
        for name, path in paths.items()
        if path.exists()
    }


def _keep(name: str, result: Hooks) -> None:
    RESULTS.mkdir(exist_ok=True)
    _path(name).write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def _path(name: str) -> Path:
    return RESULTS / f"hooks-{name}.json"
