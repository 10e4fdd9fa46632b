"""Findings about the host, of what really happens to one: its clock is set, a module comes and goes, its kernel is tainted.

Only where the machine is the tests' own (scripts/test-vm): a taint lasts until the next boot.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import FindingEntry
from egs_kernel.findings import Finding
from tests.harness import OWN_MACHINE
from tests.monitoring import Monitor
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not OWN_MACHINE, reason="needs a machine of the tests' own: tests/vm has them"),
]

MODULE: Final = "dummy"
"""A driver of network interfaces that are none; with `numdummies=0` it makes none of those either."""
STEP: Final = 600_000_000_000
USER_TAINT: Final = 64
"""What a user says that the kernel is tainted by (Documentation/admin-guide/tainted-kernels.rst)."""


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these."""
    with running_on_disk(drift="required") as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor, whose next sweep no test waits for, but for those that start it anew."""
    started = Monitor(system, 'interval = "1h"\n')
    started.start()
    yield started
    started.stop()


def found(system: Running, finding: Finding, word: str) -> FindingEntry:
    return system.wait_for(FindingEntry, lambda entry: entry.finding is finding and word in entry.detail)


def set_clock(nanoseconds: int) -> None:
    """Set it to so much later."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME) + nanoseconds)


def steps(system: Running) -> list[FindingEntry]:
    return [entry for entry in system.entries(FindingEntry) if entry.finding is Finding.CLOCK_STEPPED]


def test_a_clock_that_is_set_and_set_back(system: Running, monitor: Monitor) -> None:
    """Each is told, by no sweep; and a record in which time goes backwards is one that verifies."""
    assert monitor.pid
    set_clock(STEP)
    try:
        system.wait_for(FindingEntry, lambda _: len(steps(system)) == 1)
    finally:
        set_clock(-STEP)
    system.wait_for(FindingEntry, lambda _: len(steps(system)) == 2)
    assert [entry.source for entry in steps(system)] == ["clock"] * 2
    system.instance.egs("audit", "verify")


def test_a_module_is_told_as_it_is_loaded(system: Running, monitor: Monitor) -> None:
    assert monitor.pid
    subprocess.run(["modprobe", MODULE, "numdummies=0"], check=True)
    assert found(system, Finding.MODULE_LOADED, MODULE).source == "drift"
    subprocess.run(["rmmod", MODULE], check=True)


def test_what_came_while_nobody_looked_is_told_by_a_sweep(system: Running, monitor: Monitor) -> None:
    """A module that is there and a taint, after a monitor that saw neither; the module that went, and came back, it has told of already."""
    monitor.stop()
    subprocess.run(["modprobe", MODULE, "numdummies=0"], check=True)
    Path("/proc/sys/kernel/tainted").write_text(f"{USER_TAINT}\n")
    try:
        monitor.rules('interval = "1s"\n')
        monitor.start()
        assert found(system, Finding.KERNEL_TAINTED, "tainted: 0 → 64").source == "kernel"
        assert found(system, Finding.MODULE_LOADED, f"{MODULE}: none → loaded").source == "kernel"
    finally:
        subprocess.run(["rmmod", MODULE], check=True)
    assert found(system, Finding.MODULE_LOADED, f"{MODULE}: loaded → none").source == "kernel"
