"""The record after a crash and on a disk that fails: nothing acknowledged is lost, and nothing else is acknowledged."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit import record, segments
from egs_kernel.audit.check import verify as verify_with
from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.entries import (
    Gap,
)
from egs_kernel.audit.frames import frames_in
from egs_kernel.audit.layout import JOURNAL, STATE, segments_of
from egs_kernel.audit.reader import Reader, read
from egs_kernel.audit.record import Record
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason
from tests.recording import log_keys, open_record, path_of
from tests.unit.recorded import (
    Hooked,
    causes,
    drop_anchors,
    fail_with,
    file_size_limit,
    fill,
    journal,
    launch,
    make,
    note,
    torn_files,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "record"


# --- crashes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    """A record of a few entries, as its daemon left it."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name) / "record", "one", "two", "three", "four")
        yield Path(name) / "record"


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder.parent / "log-keys", Path(name) / "log-keys")
        yield Path(shutil.copytree(folder, Path(name) / "record"))


@given(data=st.data())
def test_a_cut_anywhere_loses_no_whole_frame_and_is_repaired(written: Path, data: st.DataObject) -> None:
    content = journal(written).read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    whole = [frame.end for frame in frames_in(content[:cut])]
    end = whole[-1] if whole else 0
    with copied(written) as folder:
        drop_anchors(folder)
        os.truncate(journal(folder), cut)
        make(folder, "after")
        assert journal(folder).read_bytes().startswith(content[:end])
        assert causes(folder) == [*("one", "two", "three", "four")[: len(whole)], "after"]
        assert torn_files(folder) == ([content[end:cut]] if cut > end else [])
        gaps = [got.entry for got in read(folder) if isinstance(got.entry, Gap)]
        assert [gap.kept for gap in gaps] == [path.name for path in folder.glob("torn-*.bin")]
        verify(folder)


@given(data=st.data())
def test_a_cut_into_what_was_acknowledged_is_refused(written: Path, data: st.DataObject) -> None:
    size = journal(written).stat().st_size
    with copied(written) as folder:
        lost = data.draw(st.sampled_from([None, CHECKPOINT, STATE]))
        if lost is not None:
            (folder / lost).unlink()
        os.truncate(journal(folder), data.draw(st.integers(0, size - 1)))
        before = journal(folder).read_bytes()
        for action in (open_record, verify):
            with pytest.raises(RecordError) as caught:
                action(folder)
            assert caught.value.reason is Reason.RECORD_CORRUPT
        assert journal(folder).read_bytes() == before  # evidence stays as it is


@given(data=st.data())
def test_zeros_that_a_power_loss_left_are_set_aside(written: Path, data: st.DataObject) -> None:
    """The size of an unacknowledged append was durable, its data not or in part."""
    with copied(written) as folder:
        drop_anchors(folder)
        whole = journal(folder).read_bytes()
        ends = [frame.end for frame in frames_in(whole)]
        torn = bytearray(whole[ends[-2] :])
        start = data.draw(st.integers(0, len(torn) - 1))
        stop = data.draw(st.integers(start + 1, len(torn)))
        torn[start:stop] = bytes(stop - start)
        if torn == whole[ends[-2] :]:
            return
        journal(folder).write_bytes(whole[: ends[-2]] + torn)
        make(folder, "after")
        assert causes(folder) == ["one", "two", "three", "after"]
        assert torn_files(folder) == [torn]
        verify(folder)


def test_damage_that_entries_follow_is_no_torn_tail(folder: Path) -> None:
    make(folder, "one", "two", "three")
    drop_anchors(folder)
    content = bytearray(journal(folder).read_bytes())
    frames = list(frames_in(bytes(content)))
    content[frames[1].end - 1] ^= 1
    journal(folder).write_bytes(content)
    for action in (open_record, verify):
        with pytest.raises(RecordError, match="entry 1") as caught:
            action(folder)
        assert caught.value.reason is Reason.RECORD_CORRUPT


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.recording import open_record\nfrom egs_kernel.audit.entries import DaemonStopped\n"
        "record = open_record(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    seqs = record.append([DaemonStopped(cause=str(number))] * 50)\n"
        "    print(seqs[-1], flush=True)\n"
    )
    published = 0
    for _round in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, folder],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as writer:
            assert writer.stdout is not None
            acknowledged = [int(line) for line in itertools.islice(writer.stdout, 25)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        checkpoint = Reader(folder).checkpoint()
        published = checkpoint.size if checkpoint else published
        with open_record(folder) as opened:
            assert opened.size > acknowledged[-1]
            assert opened.size >= published
        assert verify(folder).size > acknowledged[-1]


# --- failing disks -------------------------------------------------------------------------------


def test_a_write_that_fits_in_part_is_taken_back(folder: Path) -> None:
    with open_record(folder, in_background=False) as opened:
        opened.append([note("one")])
        before = journal(folder).read_bytes()
        with file_size_limit(len(before) + 300), pytest.raises(RecordError) as caught:
            opened.append([note("x" * 100), note("y" * 100), note("z" * 100)])
        assert caught.value.reason is Reason.RECORD_UNAVAILABLE
        assert journal(folder).read_bytes() == before
        assert not opened.failed
        assert opened.append([note("two")]) == (1,)  # there is room again
    assert causes(folder) == ["one", "two"]
    verify(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=0750", "egs-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_refuses_and_loses_nothing_and_goes_on_by_itself(
    small_disk: Path, tmp_path: Path, *, in_background: bool
) -> None:
    folder = small_disk / "record"
    keys = log_keys(tmp_path / "keys" / "record")
    with Record.open(folder, keys, in_background=in_background) as opened:
        caught = fill(opened)
        acknowledged = opened.size
        assert caught.reason is Reason.RECORD_UNAVAILABLE
        assert "No space left" in caught.message
        assert "df" in caught.next_step
        assert acknowledged % 3 == 0
        assert acknowledged > 0
        assert not opened.failed
        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
        assert opened.append([note("room again")]) == (acknowledged,)  # the same writer, and no hand
        opened.publish()
        assert opened.degraded is None
    assert verify_with(folder, keys.listed.verifiers).size == acknowledged + 1
    assert verify_with(folder, keys.listed.verifiers).published == acknowledged + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_disk_that_becomes_read_only_refuses_and_goes_on_when_it_can_be_written(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = small_disk / "record"
    keys = log_keys(tmp_path / "keys" / "record")
    # a bind mount of its own can be made read-only while files on it are open for writing; the writer opens a file each time
    with Record.open(folder, keys, in_background=False) as opened:
        opened.append([note("one")])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(RecordError) as caught:
        Record.open(folder, keys)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE
    assert "Read-only" in caught.value.message
    assert causes(folder) == ["one"]
    verify_with(folder, keys.listed.verifiers)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with Record.open(folder, keys) as opened:
        opened.append([note("two")])
    assert causes(folder) == ["one", "two"]


def test_a_failed_sync_ends_the_writer_and_acknowledges_nothing(folder: Path) -> None:
    broken = threading.Event()

    def sync(descriptor: int) -> None:
        if broken.is_set() and JOURNAL in str(path_of(descriptor)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_record(folder, files=Hooked(sync=sync)) as opened:
        opened.append([note("one"), launch("a" * 64)])
        broken.set()
        with pytest.raises(RecordError) as caught:
            opened.append([launch("a" * 64)])
        assert caught.value.reason is Reason.RECORD_UNAVAILABLE
        assert opened.failed
        assert opened.uses == {"a" * 64: 1}
        broken.clear()  # the kernel reports a lost write once, and then calls the pages clean
        with pytest.raises(RecordError) as caught:
            opened.append([note("three")])
        assert "restart egsd" in caught.value.next_step
    make(folder, "after")
    assert causes(folder) == ["one", "after"]
    verify(folder)


def test_a_failed_sync_of_tiles_ends_the_writer_before_the_journal_is_trimmed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1000)
    opened = open_record(folder, files=Hooked(sync_all=fail_with(errno.EIO)), in_background=False)
    for number in range(8):
        opened.append([note(str(number))] * 100)
    with pytest.raises(RecordError):
        opened.publish()
    assert opened.failed
    opened.close()
    assert segments_of(folder)[0] == 0
    make(folder, "after")
    assert verify(folder).size == 801


def test_publishing_that_fails_costs_no_entry_and_is_made_up_for(folder: Path) -> None:
    full = threading.Event()

    def write(descriptor: int) -> None:
        if full.is_set() and "/tile/" in str(path_of(descriptor)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_record(folder, files=Hooked(write=write), in_background=False) as opened:
        full.set()
        opened.append([note("one")] * 300)
        with pytest.raises(RecordError):
            opened.publish()
        assert "No space left" in str(opened.degraded)
        assert opened.append([note("two")]) == (300,)  # the journal is all that an append needs
        assert not (folder / CHECKPOINT).exists()
        full.clear()
        opened.publish()
        assert opened.degraded is None
    assert verify(folder).published == 301


def test_too_much_that_cannot_be_published_refuses_appends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BACKLOG_BYTES", 10_000)
    full = threading.Event()

    def write(descriptor: int) -> None:
        if full.is_set() and "/tile/" in str(path_of(descriptor)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_record(folder, files=Hooked(write=write), in_background=False) as opened:
        full.set()
        caught = fill(opened)
        assert caught.reason is Reason.RECORD_UNAVAILABLE
        with pytest.raises(RecordError):
            opened.append([note("x")])
        full.clear()
        opened.append([note("room")])
        assert not opened.failed
    verify(folder)


def test_what_another_program_did_to_the_journal_is_noticed(folder: Path) -> None:
    with open_record(folder) as opened:
        opened.append([note("one")])
        with journal(folder).open("ab") as file:
            file.write(b"forged\n")
        with pytest.raises(RecordError) as caught:
            opened.append([note("two")])
        assert caught.value.reason is Reason.RECORD_CORRUPT
        assert opened.failed
    assert b"forged" in journal(folder).read_bytes()
