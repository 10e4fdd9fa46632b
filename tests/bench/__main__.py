"""scripts/bench: every figure, measured in one run; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.daemon.app import METRICS_SECONDS
from egs_kernel.gate.pins import Gate
from tests.bench import (
    authority,
    constraints,
    drift,
    events,
    execs,
    fapolicyd,
    guards,
    hooks_command,
    launches,
    loading,
    log,
    machine,
    policy,
    report,
    revocation,
    verifying,
)
from tests.bench.results import DaemonFigures, Results
from tests.bench.subject import Attachment, Daemon, wait_for_grants
from tests.bench.timers import say
from tests.harness import REPOSITORY, Instance, compile_program

DOCUMENT: Final = REPOSITORY / "docs/benchmarks.md"
LATEST: Final = Path(__file__).parent / "results/latest.json"
PARTS: Final = {
    part.name: part
    for part in (
        authority.PART,
        constraints.PART,
        drift.PART,
        events.PART,
        guards.PART,
        log.PART,
        policy.PART,
        revocation.PART,
    )
}
"""Each with a part of the document of its own: scripts/bench NAME."""
GOVERNED_EXECS: Final = 10_000
IDLE_SECONDS: Final = METRICS_SECONDS + 1
"""After this the daemon has done once whatever it does again and again."""


class Plan(msgspec.Struct, frozen=True):
    """How much of everything."""

    loads: int
    rounds: int
    block: int
    programs: int
    launches: int
    execs: int
    verify_blocks: int
    verify_block: int
    peer_rounds: int


FULL: Final = Plan(
    loads=7,
    rounds=150,
    block=200,
    programs=4000,
    launches=150,
    execs=GOVERNED_EXECS,
    verify_blocks=20,
    verify_block=500,
    peer_rounds=60,
)
QUICK: Final = Plan(
    loads=2,
    rounds=6,
    block=100,
    programs=500,
    launches=10,
    execs=1000,
    verify_blocks=4,
    verify_block=200,
    peer_rounds=6,
)


def main() -> None:
    """Measure, print, and write results and document."""
    part = PARTS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if part is not None:
        part.run(sys.argv[2:])
        return
    if os.geteuid() != 0:
        sys.exit("bench: it loads the gate, and must be root")
    if sys.argv[1:2] == ["hooks"]:
        hooks_command.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog=f"scripts/bench NAME --help says more of one benchmark: hooks, {', '.join(sorted(PARTS))}",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of eight; writes nothing")
    quick = parser.parse_args().quick
    signal.signal(signal.SIGTERM, machine.end_properly)
    with tempfile.TemporaryDirectory(prefix="egs-bench-", dir="/var/tmp") as folder:
        results = measure(Path(folder), QUICK if quick else FULL)
    text = report.render(results)
    sys.stdout.write(f"{text}\n")
    if quick:
        say("a quick run is a smoke test: nothing was written")
        return
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    DOCUMENT.write_text(report.replaced(DOCUMENT.read_text(), text))
    say(f"wrote {LATEST.relative_to(REPOSITORY)} and {DOCUMENT.relative_to(REPOSITORY)}")


def measure(folder: Path, plan: Plan) -> Results:
    """Everything, one after the other: nothing of ours runs beside what is measured."""
    timer, program = compile_program("spawn_timer", folder), compile_program("nothing", folder)
    load = machine.load()
    with contextlib.closing(Instance.create(folder / "host")) as instance:
        ours = instance.paths.pins
        gates = machine.other_gates(ours)
        artifacts = _issue(instance, program)
        loaded = loading.measure_loads(instance, times=plan.loads)
        with _subject(instance, timer, program) as subject:
            time.sleep(IDLE_SECONDS)
            idle = subject.daemon.memory()
            compared = tuple(
                execs.measure_execs(subject, method, rounds=plan.rounds, block=plan.block)
                for method in execs.METHODS
            )
            say("the gate's programs, the daemon's CPU time")
            programs = execs.measure_programs(subject, execs=plan.programs)
            cpu = execs.daemon_cost(subject, execs=plan.execs)
            started = launches.measure_launches(
                instance, timer, launches.contenders(*artifacts), rounds=plan.launches
            )
            daemon = DaemonFigures(idle, subject.daemon.memory(), subject.attachment.decided(), cpu)
            described = machine.describe(instance.paths.record)
    # From here on nothing is governed, and no process that may bear a reused number is to be killed.
    verified = verifying.measure_verifying(folder, blocks=plan.verify_blocks, block=plan.verify_block)
    work = fapolicyd.Work(
        folder="",
        version="",
        timer=str(timer),
        program=str(program),
        cpu=_cpu(),
        rounds=plan.peer_rounds,
        block=plan.block,
    )
    peer = fapolicyd.measure_fapolicyd(folder / "peer", work)
    gates = sorted({*gates, *machine.other_gates(ours)})
    return Results(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=machine.disturbances(load, gates),
        loading=loaded,
        execs=compared,
        programs=programs,
        launches=started,
        daemon=daemon,
        verifying=verified,
        fapolicyd=peer,
    )


def _issue(instance: Instance, program: Path) -> tuple[Path, Path]:
    """A trusted key; a standing artifact for `program`; two to launch /bin/true: without and with a filter."""
    keys, key = instance.root / "keys", instance.root / "keys/bench.key"
    instance.paths.artifacts.mkdir()
    constraints = instance.root / "constraints.toml"
    constraints.write_text('[syscalls]\nprofile = "default"\n')
    plain, constrained = instance.root / "true.json", instance.root / "true-seccomp.json"
    common = ("issue", "--key", str(key), "--scope", "test", "--program")
    launched = (*common, launches.PROGRAM, "--argv", launches.PROGRAM)
    instance.egs("keys", "generate", "--name", "bench", "--out", str(keys))
    instance.egs("trust", "add", str(keys / "bench.pub"), "--role", "issuer", "--scope", "test")
    instance.egs(*common, str(program), "--out", str(instance.paths.artifacts / "nothing.json"))
    instance.egs(*launched, "--out", str(plain))
    instance.egs(*launched, "--constraints", str(constraints), "--out", str(constrained))
    return plain, constrained


@contextlib.contextmanager
def _subject(instance: Instance, timer: Path, program: Path) -> Iterator[execs.Subject]:
    gate = Gate.open(instance.paths.pins)
    with contextlib.ExitStack() as stack:
        stack.callback(gate.close)
        attachment = stack.enter_context(contextlib.closing(Attachment(gate, instance.paths.pins)))
        daemon = stack.enter_context(Daemon(instance))
        wait_for_grants(gate, 1)
        try:
            yield execs.Subject(timer, program, attachment, daemon, instance.cgroup, _cpu())
        except (RuntimeError, AssertionError):
            say(f"the gate refused {attachment.refusals()}")
            raise


def _cpu() -> int:
    """Where what is timed is kept, so that it is not moved in the middle. The daemon runs where it likes."""
    return max(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
