"""scripts/bench revocation: from `egs revoke` to the next exec denied, and to a running process ended."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel import __version__
from egs_kernel.artifact import statement as st
from egs_kernel.artifact.envelope import parse_envelope, sign
from egs_kernel.cli.client import ask
from egs_kernel.cli.files import inspect_program
from egs_kernel.daemon import protocol
from egs_kernel.trust.passphrases import Passphrases
from egs_kernel.trust.signers import open_signer
from egs_kernel.verify import artifact_id
from tests.bench import machine
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Ratio, Summary, compare, summarize
from tests.bench.subject import Daemon
from tests.bench.timers import say
from tests.harness import BIN, Instance, compile_program

DENIED_MS: Final = 10.0
ENDED_MS: Final = 50.0
_FULL, _QUICK = 200, 10
_WHOLE: Final = 20
"""Whole commands, with Python's start."""
_WORD: Final = struct.Struct("qq")
_CALM: Final = 1.0


class Revocation(msgspec.Struct, frozen=True):
    """One run. Milliseconds from when the request is sent, but for `command` and `killed`.

    Attributes:
        denied: to the end of the first exec that was refused, where one follows the other without a pause.
        allowed: to the start of the last exec that was not; 0: before the request.
        ended: to the end of a process that ran by the artifact.
        answered: to the answer, when all of it is durable.
        command: of the whole `egs revoke`, with the start of Python.
        killed: from a plain SIGKILL to the end of the same process: what the kernel alone takes.
        ratio: ended / killed.
    """

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    denied: Summary
    allowed: Summary
    ended: Summary
    answered: Summary
    command: Summary
    killed: Summary
    ratio: Ratio


@dataclass
class _Times:
    """Milliseconds, one of each a round."""

    denied: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)


def measure(folder: Path, rounds: int) -> Revocation:
    """Each round: an artifact is added, a process runs by it, execs follow each other, and it is revoked."""
    again, program = compile_program("again", folder), compile_program("nothing", folder)
    load = machine.load()
    with contextlib.closing(Instance.create(folder / "host")) as instance:
        issuer = _Issuer(instance)
        instance.egs("gate", "load")
        times = _Times()
        sleeper = folder / "sleeper"
        sleeper.write_bytes(Path("/bin/cat").read_bytes())
        sleeper.chmod(0o755)
        with Daemon(instance), _execs(instance, again, program) as execs:
            for number in range(rounds):
                if number % max(1, rounds // 5) == 0:
                    say(f"revocation {number + 1} of {rounds}")
                _round(instance, issuer, execs, (program, sleeper), times)
            for _ in range(min(_WHOLE, rounds)):
                revoked = issuer.add(program)
                began = time.perf_counter()
                subprocess.run(
                    [str(BIN / "egs"), "revoke", revoked],
                    env=instance.environment,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                times.command.append((time.perf_counter() - began) * 1000)
                issuer.remove(revoked)
        gates = machine.other_gates(instance.paths.pins)
        described = machine.describe(instance.paths.record)
    return Revocation(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=described,
        disturbances=_beside(load, gates),
        denied=summarize(times.denied),
        allowed=summarize(times.allowed),
        ended=summarize(times.ended),
        answered=summarize(times.answered),
        command=summarize(times.command),
        killed=summarize(times.killed),
        ratio=compare(times.killed, times.ended),
    )


class _Issuer:
    """Signs in this process: the command would take most of a round."""

    def __init__(self, instance: Instance) -> None:
        keys = instance.root / "keys"
        instance.egs("keys", "generate", "--name", "bench", "--out", str(keys))
        instance.egs("trust", "add", str(keys / "bench.pub"), "--role", "issuer", "--scope", "test")
        self._signer = open_signer(str(keys / "bench.key"), Passphrases.of_process(None))
        self._paths = instance.paths
        self._count = 0

    def add(self, program: Path) -> str:
        """A new artifact for a program, which stands; its id."""
        self._count += 1
        found = inspect_program(program)
        now = datetime.now(UTC)
        subject = st.Subject(
            name=str(found.path),
            digest=st.Digest(sha256=found.digest),
            annotations=st.Annotations(role=st.SubjectRole.PROGRAM),
        )
        statement = st.Statement(
            type=st.STATEMENT_TYPE,
            predicate_type=st.PREDICATE_TYPE,
            subject=(subject,),
            predicate=st.Predicate(
                issued_at=st.format_time(now),
                not_before=st.format_time(now),
                not_after=st.format_time(now + timedelta(hours=1)),
                scope=st.Scope(name="test"),
                intent=st.DeclaredIntent(purpose=f"round {self._count}"),
            ),
        )
        content = sign(st.encode_statement(statement), [self._signer])
        ask(self._paths, protocol.AddArtifactRequest(artifact=content), protocol.Done)
        return artifact_id(parse_envelope(content))

    def remove(self, identifier: str) -> None:
        """Take it out of the folder: every round begins with the same one."""
        ask(self._paths, protocol.RemoveArtifactRequest(id=identifier), protocol.Done)


@contextlib.contextmanager
def _execs(instance: Instance, again: Path, program: Path) -> Iterator[subprocess.Popen[bytes]]:
    """tests/programs/again.c, in the scope; itself it needs no artifact, as it came there after its exec."""
    with subprocess.Popen(
        [str(again), str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        instance.reap_also(process.pid)
        assert process.stdout is not None
        process.stdout.read(1)  # it runs: its exec is over
        instance.cgroup.procs.write_text(f"{process.pid}\n")
        try:
            yield process
        finally:
            process.kill()


def _round(
    instance: Instance,
    issuer: _Issuer,
    execs: subprocess.Popen[bytes],
    programs: tuple[Path, Path],
    times: _Times,
) -> None:
    assert execs.stdin is not None
    assert execs.stdout is not None
    identifiers = [issuer.add(program) for program in programs]
    sleeper = _Sleeper(instance, programs[1])
    began = _now()
    sleeper.process.kill()
    times.killed.append((sleeper.ended() - began) / 1e6)
    sleeper = _Sleeper(instance, programs[1])
    began = _now()
    ask(instance.paths, protocol.RevokeRequest(id=identifiers[1]), protocol.Done)
    times.ended.append((sleeper.ended() - began) / 1e6)
    execs.stdin.write(b"g")
    time.sleep(0.01)  # some of them have run
    began = _now()
    ask(instance.paths, protocol.RevokeRequest(id=identifiers[0]), protocol.Done)
    times.answered.append((_now() - began) / 1e6)
    last, first = _WORD.unpack(execs.stdout.read(_WORD.size))
    times.allowed.append(max(0.0, (last - began) / 1e6))
    times.denied.append((first - began) / 1e6)
    for identifier in identifiers:
        issuer.remove(identifier)


class _Sleeper:
    """A process that runs by an artifact until somebody ends it, and when it did, to the microsecond."""

    def __init__(self, instance: Instance, program: Path) -> None:
        self.process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=instance.cgroup.enter,
            bufsize=0,
        )
        instance.reap_also(self.process.pid)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"x")
        if self.process.stdout.read(1) != b"x":
            raise RuntimeError("the gate refused what is to be ended")
        self._ended = 0
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self._ended = _now()

    def ended(self) -> int:
        """When it ended, as soon as it has."""
        self._watcher.join()
        self.process.communicate()
        return self._ended


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def render(revocation: Revocation) -> str:
    """What stands between the markers."""
    rows = [
        ("`egs revoke` sent → the next exec denied", _met(revocation.denied, DENIED_MS), revocation.denied),
        ("`egs revoke` sent → the last exec allowed begins", "", revocation.allowed),
        ("`egs revoke` sent → a running process ended", _met(revocation.ended, ENDED_MS), revocation.ended),
        ("a plain SIGKILL → the same process ended", "", revocation.killed),
        ("`egs revoke` sent → answered, all of it durable", "", revocation.answered),
        ("the whole command `egs revoke`, Python's start included", "", revocation.command),
    ]
    cells = [
        (what, f"{one.median:.2f} ms", f"{one.p99:.2f} ms", str(one.count), goal) for what, goal, one in rows
    ]
    host = revocation.machine
    where = f"{host.cpu}, {host.cores} cores; Linux {host.kernel}; the record on {host.record_on}"
    beside = f" **Disturbed**: {'; '.join(revocation.disturbances)}." if revocation.disturbances else ""
    ratio = revocation.ratio
    return (
        f"Measured on {revocation.date} with egs-kernel {revocation.version} on a {'virtual ' * host.virtual}machine: "
        f"{where}.{beside}\n\n{table(('from → to', 'median', 'p99', 'rounds', 'goal (p99)'), cells)}\n\n"
        f"Revocation / plain SIGKILL, pair by pair: {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})."
    )


def _met(summary: Summary, goal: float) -> str:
    return f"≤ {goal:g} ms: {'met' if summary.p99 <= goal else 'missed'}"


def _beside(load: float, gates: list[str]) -> tuple[str, ...]:
    work = (f"other work ran (load {load:.1f} at the start)",) if load > _CALM else ()
    return (*work, "gates of other instances were attached") if gates else work


PART: Final = Part(
    name="revocation",
    description=__doc__,
    kind=Revocation,
    measure=lambda folder, quick: measure(folder, _QUICK if quick else _FULL),
    render=render,
)
