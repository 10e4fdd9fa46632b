"""Where the kernel can skip the decision on an exec (Linux 7.0), as on this one when it is said to.

The skip itself takes a preempted gate; here the gate is detached from the exec instead, which comes to the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.config import load_config
from egs_kernel.errors import GateError
from egs_kernel.gate import abi, loader, parts, selftest_guards
from egs_kernel.gate.pins import Gate
from egs_kernel.model import ExecEvent, Grant, Reason, Tier, Verdict
from tests.harness import Instance
from tests.refusals import TIER

pytestmark = pytest.mark.kernel

KILLED = -9
REALLY_SKIPS = parts.can_skip()
ON_TRACEPOINT = pytest.mark.skipif(
    TIER is Tier.LSM,
    reason="the tier lsm refuses it before; that the guard kills there too, each load proves",
)


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loader, parts, selftest_guards):
        monkeypatch.setattr(module, "can_skip", lambda: True)
    assert "guard_exec" in parts.links_of(Tier.TRACEPOINT)


@pytest.fixture
def guarded(instance: Instance, skipping: None) -> Iterator[Gate]:
    loaded = loader.load_gate(instance.paths, load_config(instance.paths.config))
    assert any("an exec that the kernel skips is decided by the guard" in check for check in loaded.checks)
    gate = Gate.open(instance.paths.pins)
    gate.beat()
    yield gate
    gate.close()


def inside(instance: Instance, *command: str) -> int:
    return subprocess.run(command, check=False, preexec_fn=instance.cgroup.enter).returncode


def observe(gate: Gate) -> None:
    for key, raw in gate.scope_slots.items():
        if raw.name == b"test":
            raw.mode = abi.Mode.OBSERVE
            gate.scope_slots.put(key, raw)


def test_only_new_kernels_skip() -> None:
    assert [parts.can_skip(f"{release}-amd64") for release in ("6.1.0", "6.18.44", "7.0.0", "10.1")] == [
        False,
        False,
        True,
        True,
    ]


def test_what_is_decided_runs(instance: Instance, guarded: Gate) -> None:
    """Hundreds of processes and threads: the guard sees each of them, and takes nobody for skipped."""
    observe(guarded)
    command = "for i in $(seq 300); do /bin/true & done; wait; exec /bin/true"
    assert inside(instance, "/bin/sh", "-c", command) == 0
    assert REALLY_SKIPS or guarded.counters().failures["exec_skipped"] == 0


def test_what_is_skipped_is_decided_as_ever(instance: Instance, guarded: Gate) -> None:
    """By file and arguments, and a use is one use; and it is told as every exec is."""
    true = Path("/bin/true").resolve()
    descriptor = os.open(true, os.O_PATH)
    grant = Grant(
        artifact_id="ab" * 32,
        scope="test",
        file=guarded.identify(descriptor),
        digest=hashlib.sha256(true.read_bytes()).hexdigest(),
        not_before=0,
        not_after=2**62,
        argv=(b"/bin/true", b"one"),
        uses=1,
    )
    os.close(descriptor)
    guarded.install(grant)
    (instance.paths.pins / "link_gate_exec").unlink()
    assert inside(instance, "/bin/true", "two") == KILLED
    assert inside(instance, "/bin/true", "one") == 0
    assert inside(instance, "/bin/true", "one") == KILLED
    assert guarded.counters().failures["exec_skipped"] == 3
    events: list[ExecEvent] = []
    guarded.drain(lambda event: events.append(event) if isinstance(event, ExecEvent) else None)
    assert [(event.verdict, event.reason, event.argv, event.filename) for event in events] == [
        (Verdict.KILL, Reason.ARGV_MISMATCH, ("/bin/true", "two"), "/bin/true"),
        (Verdict.ALLOW, Reason.AUTHORIZED, ("/bin/true", "one"), "/bin/true"),
        (Verdict.KILL, Reason.USES_EXHAUSTED, ("/bin/true", "one"), "/bin/true"),
    ]
    assert events[1].file == grant.file
    assert guarded.counters().decisions[Verdict.ALLOW, Reason.AUTHORIZED, True] == 1


@ON_TRACEPOINT
def test_an_exec_that_is_skipped_without_a_grant_dies(
    instance: Instance, guarded: Gate, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    command = ("/bin/sh", "-c", f"echo ran > {written}")
    (instance.paths.pins / "link_gate_exec").unlink()
    assert inside(instance, *command) == KILLED
    assert not written.exists()
    assert guarded.counters().failures["exec_skipped"] == 1
    (instance.paths.pins / "link_guard_exec").unlink()
    assert inside(instance, *command) == 0
    assert written.exists()  # so it is the guard that killed


def test_a_scope_that_observes_counts_it(instance: Instance, guarded: Gate) -> None:
    observe(guarded)
    (instance.paths.pins / "link_gate_exec").unlink()
    assert inside(instance, "/bin/true") == 0
    assert guarded.counters().failures["exec_skipped"] == 1


def test_a_gate_without_its_guard_is_not_whole(instance: Instance, guarded: Gate) -> None:
    (instance.paths.pins / "link_guard_exec").unlink()
    with pytest.raises(GateError, match="guard_exec detached"):
        Gate.open(instance.paths.pins)
