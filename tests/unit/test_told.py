"""What the monitor tells: a difference once, a change of the host each time, and of a flood how much it was."""

from __future__ import annotations

import msgspec
import pytest

from egs_kernel.audit.entries import Exec, WatchChange
from egs_kernel.daemon import protocol
from egs_kernel.drift.baselines import Baselines
from egs_kernel.drift.compare import Found
from egs_kernel.findings import Finding
from egs_kernel.monitor import report
from egs_kernel.monitor.report import Reporter
from egs_kernel.monitor.told import MOST, Told
from tests.unit.test_drift import EVENT
from tests.unit.test_drift import Told as Record

LINK = Found(finding=Finding.GATE_LINK_LOST, detail="link_gate_exec: gone", source="integrity", time=1)
LOST = Found(
    finding=Finding.EVENTS_LOST, detail="files: the sweeps have to find it", source="files", time=1, count=3
)


def of_execution(finding: Finding, number: int = 0) -> Found:
    return Found(
        finding=finding,
        detail=f"number {number}",
        source="sweep",
        time=1,
        execution=EVENT.execution,
        pid=EVENT.pid,
    )


@pytest.fixture
def told() -> Told:
    return Told(Record().tell(Exec(event=EVENT)).baselines)


def test_a_difference_is_told_once(told: Told) -> None:
    assert told.is_new(of_execution(Finding.TRACED))
    assert not told.is_new(of_execution(Finding.TRACED))


def test_a_flood_of_one_kind_hides_no_other_and_is_counted(told: Told) -> None:
    """Each kind has its response: whoever floods with what is only told does not get around what ends it."""
    flood = [told.is_new(of_execution(Finding.CODE_MAPPED, number)) for number in range(MOST + 9)]
    assert flood == [True] * MOST + [False] * 9
    assert told.is_new(of_execution(Finding.ANONYMOUS_CODE))
    (counted,) = told.next_interval(5)
    assert (counted.finding, counted.count, counted.source) == (Finding.EVENTS_LOST, 9, "monitor")
    assert str(EVENT.execution) in counted.detail
    assert told.next_interval(6) == []


def test_a_link_that_is_lost_again_is_told_again(told: Told) -> None:
    assert [told.is_new_of_host(LINK) for _ in range(2)] == [True, True]


def test_what_lasts_is_not_told_again_by_the_next_monitor_and_what_happens_again_is() -> None:
    baselines = Baselines()
    baselines.told.add((LINK.finding, 0, 0, LINK.detail))
    told = Told(baselines)
    told.begin()
    assert [told.is_new_of_host(LINK) for _ in range(2)] == [False, True]
    told = Told(baselines)
    told.begin()
    told.next_interval(1)
    told.next_interval(2)
    assert told.is_new_of_host(LINK), "the first sweep saw it whole"


def test_losses_are_told_in_each_interval_with_how_many(told: Told) -> None:
    assert [told.is_new_of_host(LOST) for _ in range(3)] == [True, False, False]
    assert [found.count for found in told.next_interval(7)] == [6]
    assert told.is_new_of_host(LOST)


def test_who_writes_to_the_gate_all_the_time_is_told_once_an_interval(told: Told) -> None:
    written = msgspec.structs.replace(LINK, finding=Finding.GATE_TAMPERED, source="drift")
    assert [told.is_new_of_host(written) for _ in range(2)] == [True, False]
    told.next_interval(2)
    assert told.is_new_of_host(written)


def test_reports_that_find_no_room_are_counted_and_told_when_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "ROOM", 2)
    taken: list[protocol.DriftRequest] = []

    reporter = Reporter(taken.append)
    entry = WatchChange(action="stopped", pid=1, boot_id="")
    reporter.put(*[entry] * 5)
    assert reporter.take_dropped() == 0, "there is no room to say so"
    reporter.start()
    reporter.stop(10)
    assert sum(len(request.reports) for request in taken) == 2
    assert [reporter.take_dropped() for _ in range(2)] == [3, 0]
