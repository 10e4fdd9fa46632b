"""What the gate holds, and what it kills in a scope that holds all the same. No daemon: nobody lets anything go."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from egs_kernel.errors import ExitCode
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.pins import Gate
from egs_kernel.model import ExecEvent, FileIdentity, Grant, Measurement, Reason, TaskIdentity, Verdict
from egs_kernel.processes import start_ticks
from tests.harness import Instance
from tests.holding import HOLD, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

TRUE = Path("/bin/true")


class Holding:
    """An instance, and one exec after the other in it."""

    def __init__(self, instance: Instance, gate: Gate) -> None:
        self.instance = instance
        self.gate = gate

    def execute(
        self, program: Path = TRUE, *, before: Callable[[], object] = lambda: None
    ) -> tuple[ExecEvent, int]:
        """What the gate decided on an exec, of a program without a grant, and how that ended, killed if need be."""
        self.gate.drain(lambda _event: None)
        waiting = execute(self.instance, program, before=before)
        _, status = os.waitpid(waiting.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(waiting.pid, signal.SIGKILL)
            os.waitpid(waiting.pid, 0)
        os.close(waiting.output)
        events: list[ExecEvent] = []
        self.gate.drain(lambda event: events.append(event) if isinstance(event, ExecEvent) else None)
        (event,) = events
        assert os.WIFSTOPPED(status) is (event.verdict is Verdict.HOLD)
        return event, status


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holding]:
    """A gate whose scope holds."""
    instance = Instance.create(tmp_path_factory.mktemp("hold") / "egs", grace="300s")
    instance.configure(grace="300s", scope=HOLD)
    try:
        gate = instance.load_gate()
        yield Holding(instance, gate)
        gate.close()
    finally:
        instance.close()


def test_without_a_grant_it_waits(holding: Holding) -> None:
    holding.gate.beat()
    event, _ = holding.execute()
    assert (event.verdict, event.reason, event.enforced) == (Verdict.HOLD, Reason.NO_GRANT, True)
    assert event.execution != 0


def test_without_a_heartbeat_it_dies(holding: Holding) -> None:
    holding.gate.stop_beating()
    event, _ = holding.execute()
    assert event.verdict in (Verdict.KILL, Verdict.DENY)  # the tier lsm refuses it earlier
    assert event.reason is Reason.DAEMON_STALE


def test_with_a_variable_that_loads_code_it_dies(holding: Holding) -> None:
    """An approval would not cure that."""
    holding.gate.beat()
    event, _ = holding.execute(before=lambda: os.environ.update(LD_PRELOAD="/none"))
    assert (event.verdict, event.reason) == (Verdict.KILL, Reason.ENVIRONMENT_REFUSED)


@pytest.mark.lsm
def test_what_was_opened_for_writing_since_it_was_measured_waits(holding: Holding, tmp_path: Path) -> None:
    """As what was changed does."""
    holding.gate.beat()
    program = copy_of_true(tmp_path)
    grant = permit(holding.gate, program)
    standing = holding.gate.install(grant)
    assert holding.execute(program)[0].verdict is Verdict.ALLOW
    program.open("ab").close()
    event, _ = holding.execute(program)
    holding.gate.withdraw(standing)
    assert (event.verdict, event.reason) == (Verdict.HOLD, Reason.FILE_OPENED)


@pytest.mark.lsm
def test_what_the_kernel_hashes_to_another_digest_waits(holding: Holding, tmp_path: Path) -> None:
    if not holding.gate.digests:
        pytest.skip("this kernel hashes nothing for the gate")
    holding.gate.beat()
    program = copy_of_true(tmp_path)
    standing = holding.gate.install(msgspec.structs.replace(permit(holding.gate, program), digest="12" * 32))
    event, _ = holding.execute(program)
    holding.gate.withdraw(standing)
    assert (event.verdict, event.reason) == (Verdict.HOLD, Reason.DIGEST_DIFFERS)


@pytest.mark.lsm
def test_a_script_that_nobody_names_waits_and_is_told(holding: Holding, tmp_path: Path) -> None:
    holding.gate.beat()
    script, shell = tmp_path / "script", Path("/bin/sh")
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    standing = holding.gate.install(permit(holding.gate, shell))
    event, _ = holding.execute(script)
    holding.gate.withdraw(standing)
    assert (event.verdict, event.reason) == (Verdict.HOLD, Reason.SCRIPT_UNAUTHORIZED)
    assert (event.file, event.script) == (identify(holding.gate, shell), identify(holding.gate, script))


def copy_of_true(folder: Path) -> Path:
    program = folder / "true"
    program.write_bytes(TRUE.read_bytes())
    program.chmod(0o755)
    return program


def identify(gate: Gate, path: Path) -> FileIdentity:
    descriptor = os.open(path, os.O_PATH)
    try:
        return gate.identify(descriptor)
    finally:
        os.close(descriptor)


def permit(gate: Gate, program: Path) -> Grant:
    """A grant for a program as it is now, with any arguments."""
    file, digest = identify(gate, program), hashlib.sha256(program.read_bytes()).hexdigest()
    gate.openings.last(file)
    measured = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Grant(
        artifact_id="11" * 32,
        scope="test",
        file=file,
        digest=digest,
        measured=measured,
        subjects=(Measurement(digest, file, measured),),
        not_before=0,
        not_after=2**62,
    )


def test_who_is_armed_executes_that_or_dies(holding: Holding, instance_grant: Callable[[int], None]) -> None:
    holding.gate.beat()
    event, _ = holding.execute(before=lambda: instance_grant(os.getpid()))
    assert (event.verdict, event.reason) == (Verdict.KILL, Reason.ARGV_MISMATCH)


@pytest.fixture
def instance_grant(holding: Holding) -> Callable[[int], None]:
    """Arms a process for other arguments than those that it will have."""
    identity = identify(holding.gate, TRUE)

    def arm(pid: int) -> None:
        grant = Grant(
            artifact_id="00" * 32,
            scope="test",
            file=identity,
            digest=hashlib.sha256(TRUE.read_bytes()).hexdigest(),
            not_before=0,
            not_after=2**62,
            argv=(b"another",),
        )
        holding.gate.arm(grant, TaskIdentity(pid, start_ticks(pid)))

    return arm


def test_one_more_than_fits_dies(holding: Holding) -> None:
    holding.gate.beat()
    counts = libbpf.Map(
        libbpf.open_pin(holding.instance.paths.pins / "held_counts"), ctypes.c_uint32, ctypes.c_uint64
    )
    zero = ctypes.c_uint32(0)
    counts.put(zero, ctypes.c_uint64(abi.HELD_MAX - 1))
    assert holding.execute()[0].verdict is Verdict.HOLD
    counts.put(zero, ctypes.c_uint64(abi.HELD_MAX))
    event, _ = holding.execute()
    left = counts.get(zero)
    counts.put(zero, ctypes.c_uint64(0))
    os.close(counts.descriptor)
    assert (event.verdict, event.reason) == (Verdict.KILL, Reason.HOLDS_FULL)
    assert left is not None
    assert left.value == abi.HELD_MAX


def test_a_scope_that_observes_holds_nobody(holding: Holding) -> None:
    holding.gate.beat()
    holding.instance.configure(grace="300s", mode="observe", scope=HOLD)
    holding.instance.egs("gate", "load")
    event, status = holding.execute()
    holding.instance.configure(grace="300s", scope=HOLD)
    holding.instance.egs("gate", "load")
    assert (event.verdict, event.reason, event.enforced) == (Verdict.KILL, Reason.NO_GRANT, False)
    assert status == 0


def test_the_count_is_of_those_who_wait(holding: Holding) -> None:
    """Ended by a signal, by a guard: whoever waits no more is not counted."""
    holding.gate.beat()
    for by_a_guard in (False, True):
        waiting = execute(holding.instance, TRUE)
        assert waiting.is_stopped()
        assert len(holding.gate.holds.held()) == 1
        if by_a_guard:
            assert waiting.freed() == (-signal.SIGKILL, b"")
        else:
            os.kill(waiting.pid, signal.SIGKILL)
            assert waiting.end() == (-signal.SIGKILL, b"")
    descriptor = libbpf.open_pin(holding.instance.paths.pins / "held_counts")
    counts = libbpf.Map(descriptor, ctypes.c_uint32, ctypes.c_uint64)
    left = counts.get(ctypes.c_uint32(0))
    os.close(descriptor)
    assert left is not None
    assert left.value == 0


def test_a_kernel_on_which_the_guards_do_not_guard(instance: Instance) -> None:
    """What a load leaves behind there; a configuration that holds is refused, and the old one stays."""
    gate = instance.load_gate()
    gate.holds.give_up()
    gate.close()
    instance.configure(scope=HOLD)
    refused = instance.egs("gate", "load", check=False)
    assert refused.returncode == ExitCode.HOST_LACKS
    assert "x86_fpu_regs_activated" in refused.stderr
    gate = Gate.open(instance.paths.pins)
    (scope,) = (raw for _, raw in gate.scope_slots.items() if raw.name == b"test")
    gate.close()
    assert scope.on_missing == abi.Missing.KILL
