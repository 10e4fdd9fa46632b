"""scripts/bench constraints: a launch with every constraint, beside what bubblewrap and firejail do of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.constraints.seccomp import compile_filter
from egs_kernel.gate.cgroups import move
from tests.bench import machine
from tests.bench.launches import PROGRAM, Contender, Launch, measure_launches
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Ratio, Summary, summarize
from tests.bench.subject import Daemon
from tests.harness import BIN, Instance, compile_program

ALL: Final = "egs run, all constraints"
FIREJAIL: Final = "firejail"
GOAL_RATIO: Final = 1.0
GOAL_MS: Final = 15.0
_FULL, _QUICK = 150, 6
_MOVES, _PAUSE_SECONDS = 20, 0.1

_WORDS: Final = {
    "syscalls": '[syscalls]\nprofile = "default"\n',
    "filesystem": '[filesystem]\nbase = "system"\nread = ["/usr/share"]\nwrite = ["{folder}"]\n',
    "network": '[network]\nmode = "none"\n',
    "resources": "[resources]\nopenFiles = 256\nfileSize = 1048576\ncpuSeconds = 60\nwallSeconds = 600\n",
    "process": '[process]\nnewPrivileges = "refused"\ncapabilities = "none"\numask = "0077"\n',
}


class Constraints(msgspec.Struct, frozen=True):
    """One run."""

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    lacking: tuple[str, ...]
    launches: tuple[Launch, ...]
    move: Summary | None = None
    """From one cgroup to another, in nanoseconds: each launch waits for one."""


def measure(folder: Path, rounds: int) -> Constraints:
    """All of them, in turn."""
    timer = compile_program("spawn_timer", folder)
    load = machine.load()
    with contextlib.closing(Instance.create(folder / "host")) as instance:
        ways = contenders(instance, folder)
        moved = _measure_moves(instance)
        present = {name: way for name, way in ways.items() if shutil.which(way.command[0])}
        instance.load_gate().close()
        with Daemon(instance):
            launches = measure_launches(instance, timer, present, rounds=rounds)
        gates = machine.other_gates(instance.paths.pins)
        described = machine.describe(instance.paths.record)
    return Constraints(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=machine.disturbances(load, gates),
        lacking=tuple(name for name in ways if name not in present),
        launches=launches,
        move=moved,
    )


def _measure_moves(instance: Instance) -> Summary:
    """What the kernel takes to move a process when none was moved right before: then it has waited already."""
    folders = [instance.cgroup.child(name) for name in ("here", "there")]
    times = []
    with subprocess.Popen(["sleep", "infinity"]) as process:
        instance.reap_also(process.pid)
        for number in range(_MOVES):
            time.sleep(_PAUSE_SECONDS)
            began = time.perf_counter_ns()
            move(process.pid, folders[number % 2].folder)
            times.append(time.perf_counter_ns() - began)
        process.kill()
    for cgroup in folders:
        cgroup.folder.rmdir()
    return summarize(times)


def contenders(instance: Instance, folder: Path) -> dict[str, Contender]:
    """`egs run` without constraints, with each word alone, with all; the others, as near to all as they come."""
    key, out = instance.root / "keys/bench.key", folder / "out"
    out.mkdir()
    instance.egs("keys", "generate", "--name", "bench", "--out", str(key.parent))
    instance.egs("trust", "add", str(key.with_suffix(".pub")), "--role", "issuer", "--scope", "test")
    words = {name: text.format(folder=out) for name, text in _WORDS.items()}
    given = (
        {"egs run": ""}
        | {f"egs run, {name}": text for name, text in words.items()}
        | {ALL: "".join(words.values())}
    )
    ways = {"nothing": Contender("nothing", (PROGRAM,), ALL)}
    for number, (title, text) in enumerate(given.items()):
        artifact, file = folder / f"{number}.json", folder / f"{number}.toml"
        file.write_text(text)
        constrained = ("--constraints", str(file)) if text else ()
        common = ("issue", "--key", str(key), "--scope", "test", "--program", PROGRAM, "--argv", PROGRAM)
        instance.egs(*common, *constrained, "--out", str(artifact))
        command = (str(BIN / "egs"), "run", "--artifact", str(artifact), "--", PROGRAM)
        ways[title] = Contender(title, command, None if title == ALL else ALL)
    program = folder / "filter.bpf"
    program.write_bytes(compile_filter(SyscallConstraint(profile="default")))
    return ways | {"bubblewrap": _bubblewrap(program, out), FIREJAIL: _firejail(out)}


def _bubblewrap(program: Path, out: Path) -> Contender:
    """It takes the filter by a descriptor, and sets neither limits nor umask: a shell before it does."""
    binds = "--ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64"
    command = (
        f"umask 0077; ulimit -n 256; ulimit -f 2048; ulimit -t 60; exec bwrap --unshare-user --unshare-net {binds} --ro-bind /etc /etc "
        f"--dev /dev --bind {out} {out} --cap-drop ALL --die-with-parent --seccomp 9 {PROGRAM} 9<{program}"
    )
    return Contender("bubblewrap", ("/bin/sh", "-c", command), ALL)


def _firejail(out: Path) -> Contender:
    options = (
        "--quiet --noprofile --net=none --seccomp --caps.drop=all --nonewprivs --rlimit-nofile=256 --rlimit-fsize=1048576 "
        f"--rlimit-cpu=60 --read-only=/ --read-write={out} --blacklist=/home --blacklist=/root"
    )
    return Contender(FIREJAIL, ("firejail", *options.split(), PROGRAM), ALL)


def render(measured: Constraints) -> str:
    """What stands between the markers."""
    host = measured.machine
    where = f"{host.cpu}, {host.cores} cores; Linux {host.kernel}"
    beside = f" **Disturbed**: {'; '.join(measured.disturbances)}." if measured.disturbances else ""
    lacking = f" Not installed: {', '.join(measured.lacking)}." if measured.lacking else ""
    everything = next(launch for launch in measured.launches if launch.title == ALL)
    goals = [
        ("median", f"≤ {GOAL_MS:g} ms", _ms(everything.time.median), everything.time.median <= GOAL_MS * 1e6)
    ]
    goals += [
        ("to firejail", f"≤ {GOAL_RATIO:g}", _ratio(launch.egs_ratio), launch.egs_ratio.median <= GOAL_RATIO)
        for launch in measured.launches
        if launch.title == FIREJAIL and launch.egs_ratio is not None
    ]
    rows = [
        (launch.title, _ms(launch.time.median), _ms(launch.time.p99), _ratio(launch.egs_ratio))
        for launch in measured.launches
    ]
    count = measured.launches[0].time.count
    moves = (
        "" if measured.move is None else f" A move between cgroups takes {_ms(measured.move.median)} here."
    )
    head = (
        f"Measured on {measured.date} with egs-kernel {measured.version} on a {'virtual ' * host.virtual}machine: "
        f"{where}.{beside}{lacking}{moves} From before the fork until after the wait, {count} rounds:"
    )
    held = table(
        ("all constraints", "goal", "measured", ""),
        [(name, goal, found, "met" if met else "**missed**") for name, goal, found, met in goals],
    )
    beside_others = table(("started with", "median", "p99", "`egs run`, all constraints / this"), rows)
    return f"{head}\n\n{held}\n\n{beside_others}"


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"


PART: Final = Part(
    name="constraints",
    description=__doc__,
    kind=Constraints,
    measure=lambda folder, quick: measure(folder, _QUICK if quick else _FULL),
    render=render,
)
