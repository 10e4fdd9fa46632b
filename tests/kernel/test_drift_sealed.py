"""The monitor and a sealed gate, which lets nobody but egsd at its maps: egsd does for it what has to be done."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.entries import Attempt, Exec, FindingEntry, ResponseEntry
from egs_kernel.daemon import protocol
from egs_kernel.daemon.client import ask
from egs_kernel.drift.rules import Rules
from egs_kernel.errors import EgsError
from egs_kernel.findings import Finding, Response
from egs_kernel.gate.grants import QUARANTINED
from egs_kernel.gate.pins import Gate
from egs_kernel.monitor.app import Monitor as Watching
from egs_kernel.monitor.hands import ThroughDaemon
from egs_kernel.monitor.resume import resume
from tests.harness import BIN, REPOSITORY
from tests.monitoring import Monitor, Obedient
from tests.running import SECONDS, Running, running_on_disk
from tests.sealing import Sealed, sealable_host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

SHELLCODE = "kept.append(mmap.mmap(-1,4096,prot=7))"


# -- what egsd does for it, on any gate ----------------------------------------------------------------


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these."""
    with running_on_disk() as running:
        yield running


@pytest.fixture
def program(system: Running, request: pytest.FixtureRequest) -> Iterator[Obedient]:
    """A program that does what it is told, and a child of it."""
    found = Obedient(system, f"obeys-{request.node.name[:40]}")
    found.start()
    found.tell("kept.append(os.fork() or (os.close(0),os.close(1),time.sleep(900)))")
    yield found
    found.stop()


def test_it_sees_what_the_gate_has(system: Running, program: Obedient) -> None:
    assert program.process is not None
    through = ThroughDaemon(system.instance.paths)
    with closing(Gate.open(system.instance.paths.pins)) as gate, program.program.open("rb") as file:
        assert sorted(through.governed(), key=str) == sorted(gate.governed(), key=str)
        task = through.governed_task(program.process.pid)
        assert task is not None
        assert task == gate.governed_task(program.process.pid)
        assert through.identify(file.fileno()) == gate.identify(file.fileno())
        assert through.governed_task(os.getpid()) is None
        assert through.guard() is gate.guard()


def test_nobody_but_root_may_ask(system: Running) -> None:
    """And nobody is authorized by what root can have done."""
    code = (
        "import sys;sys.path.append(sys.argv[1]);from egs_kernel.daemon import client,protocol;"
        "from egs_kernel.paths import Paths;"
        "client.ask(Paths.from_environment(),protocol.GovernedRequest(),protocol.GovernedAnswer)"
    )
    asked = system.as_nobody(str(BIN / "python"), "-c", code, str(REPOSITORY))
    assert "only root may ask this" in asked.stderr
    with pytest.raises(EgsError, match="comes as a descriptor"):
        ask(system.instance.paths, protocol.IdentifyRequest(), protocol.IdentityAnswer)


@pytest.mark.parametrize("response", [Response.TERMINATE, Response.SUSPEND, Response.QUARANTINE])
def test_it_finds_and_responds(system: Running, program: Obedient, response: Response) -> None:
    assert program.process is not None
    pid = program.process.pid
    paths = system.instance.paths
    rules = Rules(responses={Finding.ANONYMOUS_CODE: response})
    executed = system.wait_for(Exec, lambda entry: entry.event.pid == pid)
    watching = Watching(paths, ThroughDaemon(paths), rules)
    watching.start()
    try:
        program.tell(SHELLCODE)
        watching.sweep_now()
        found = system.wait_for(FindingEntry, lambda entry: entry.pid == pid)
        assert (found.finding, found.response) == (Finding.ANONYMOUS_CODE, response.word)
        done = system.wait_for(ResponseEntry, lambda entry: entry.number == found.number)
        assert (done.verified, done.processes, done.detail) == (True, 2, "")
        if response is Response.TERMINATE:
            assert program.process.wait(SECONDS) == -9
        elif response is Response.SUSPEND:
            task = ThroughDaemon(paths).governed_task(pid)
            assert task is not None
            assert task.suspended
            assert resume(paths, executed.event.execution).verified
            program.tell("pass")
        else:
            task = ThroughDaemon(paths).governed_task(pid)
            assert task is not None
            assert task.artifact == QUARANTINED
    finally:
        watching.stop()
        watching.close()


# -- a gate that is sealed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    """A host that can be sealed."""
    with sealable_host(tmp_path_factory.mktemp("watched")) as found:
        yield found


@pytest.fixture(scope="module")
def monitor(host: Sealed) -> Monitor:
    """Its monitor, not started yet; its rules are there before the seal."""
    return Monitor(host.running, 'interval = "1s"\n[responses]\nanonymous_code = "terminate"\n')


def drifts(host: Sealed, monitor: Monitor, name: str) -> None:
    """A program that drifts, and is ended."""
    program = Obedient(host.running, name)
    pid = program.start()
    monitor.begun(pid)
    program.say(SHELLCODE)
    found = monitor.finding(Finding.ANONYMOUS_CODE, pid)
    assert monitor.response(found).verified
    assert program.process is not None
    assert program.process.wait(SECONDS) == -9


@pytest.mark.lsm
def test_a_monitor_that_starts_on_a_sealed_gate_watches(host: Sealed, monitor: Monitor) -> None:
    host.seal()
    before = len(host.running.entries(Attempt))
    monitor.start()
    drifts(host, monitor, "under-the-seal")
    tried = [entry.event for entry in host.running.entries(Attempt)[before:] if entry.event.what == "bpf"]
    assert tried == [], "what the gate has it does not even ask it for"


@pytest.mark.lsm
def test_it_goes_on_through_a_maintenance_and_another_daemon(host: Sealed, monitor: Monitor) -> None:
    host.lift(seconds=3600)
    drifts(host, monitor, "lifted")
    host.seal()
    drifts(host, monitor, "sealed-again")
    host.crash()
    host.start()
    drifts(host, monitor, "another-daemon")
    found = [entry.finding for entry in host.running.entries(FindingEntry) if not entry.execution]
    assert Finding.GATE_TAMPERED not in found
    assert Finding.GATE_LINK_LOST not in found
    status = json.loads(host.instance.egs("status", "--json").stdout)
    assert (status["seal"], status["watched"]) == ("sealed", True)
    assert monitor.stop() == 0
