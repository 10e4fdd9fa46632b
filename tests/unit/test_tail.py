"""The monitor's tail of the record: every entry once, in order, whatever the daemon does with the journal meanwhile."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from egs_kernel.audit.entries import DaemonStopped
from egs_kernel.audit.layout import find, segment_path, segments_of
from egs_kernel.audit.tiles import Tile
from egs_kernel.monitor.tail import Tail
from tests.recording import open_record
from tests.unit.test_archive import TREE
from tests.unit.trees import publish

if TYPE_CHECKING:
    from pathlib import Path


def test_every_entry_is_read_once_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    with open_record(folder) as record:
        record.append([DaemonStopped(cause=str(number)) for number in range(300)])
        with closing(Tail(folder)) as tail:
            seen = [recorded.seq for recorded in tail.read()]
            assert list(tail.read()) == []
            for size in (1, 7, 600):
                record.append([DaemonStopped(cause="x" * 2000) for _ in range(size)])
                seen += [recorded.seq for recorded in tail.read()]
            assert seen == list(range(908))


def test_another_file_of_the_journal_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    with open_record(folder) as record:
        record.append([DaemonStopped(cause="first")])
    with closing(Tail(folder)) as tail:
        assert [recorded.seq for recorded in tail.read()] == [0]
        while len(segments_of(folder)) < 2:
            with open_record(folder) as record:
                record.append([DaemonStopped(cause="x" * 60_000) for _ in range(64)])
        seen = [recorded.seq for recorded in tail.read()]
        assert seen == list(range(1, seen[-1] + 1))
        assert len(seen) > 64


def test_a_record_that_is_opened_again_is_gone_on_with(tmp_path: Path) -> None:
    """As egsd does when it starts: it may write the journal's last file anew."""
    folder = tmp_path / "record"
    with open_record(folder) as record:
        record.append([DaemonStopped(cause="first")])
    with closing(Tail(folder)) as tail:
        seen = [recorded.seq for recorded in tail.read()]
        for _ in range(3):
            with open_record(folder) as record:
                record.append([DaemonStopped(cause="again")])
            seen += [recorded.seq for recorded in tail.read()]
        assert seen == [0, 1, 2, 3]


def test_a_tail_begins_with_what_comes_when_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    with open_record(folder) as record, closing(Tail(folder)) as tail:
        record.append([DaemonStopped(cause="before")])
        tail.skip()
        record.append([DaemonStopped(cause="after")])
        assert [recorded.seq for recorded in tail.read()] == [1]


def test_what_was_moved_to_cold_storage_is_not_missed(tmp_path: Path) -> None:
    publish(tmp_path, TREE)
    segment_path(tmp_path, 512).parent.mkdir(exist_ok=True)
    segment_path(tmp_path, 512).touch()
    with closing(Tail(tmp_path)) as tail:
        assert tail._reader.first == 0
        oldest = find(tmp_path, None, Tile(None, 0))
        assert oldest is not None
        oldest.unlink()
        assert tail._reader.first == 256
