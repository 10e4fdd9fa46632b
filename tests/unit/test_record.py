"""The record's promises: durable before acknowledged, nothing rewritten, one writer."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.check import unsigned
from egs_kernel.audit.check import verify as verify_with
from egs_kernel.audit.checkpoint import CHECKPOINT, open_checkpoint
from egs_kernel.audit.entries import (
    ArtifactChange,
    Part,
)
from egs_kernel.audit.files import Files
from egs_kernel.audit.frames import frames_in
from egs_kernel.audit.layout import JOURNAL, OLD_RECORD
from egs_kernel.audit.parts import joined
from egs_kernel.audit.reader import read
from egs_kernel.audit.record import Record
from egs_kernel.audit.tiles import MAX_ENTRY
from egs_kernel.errors import EgsError, RecordError, UnsafePath
from egs_kernel.model import Reason
from tests.recording import abandon, log_keys, open_record, path_of
from tests.unit.recorded import (
    NOON,
    Hooked,
    causes,
    fail_with,
    journal,
    make,
    note,
    verify,
)

if TYPE_CHECKING:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "record"


def test_an_append_is_in_the_journal_when_it_is_synced_and_synced_when_it_returns(folder: Path) -> None:
    seen = []

    def sync(descriptor: int) -> None:
        if JOURNAL in str(path_of(descriptor)):
            seen.append(sum(frame.count for frame in frames_in(journal(folder).read_bytes())))

    with open_record(folder, files=Hooked(sync=sync), in_background=False) as opened:
        assert opened.append([note("a")]) == (0,)
        assert seen == [1]
        assert opened.append([note("b"), note("c"), note("d")]) == (1, 2, 3)
        assert seen == [1, 4]  # one sync for a batch
        assert opened.append([]) == ()
        assert seen == [1, 4]
        assert opened.size == 4
    assert causes(folder) == ["a", "b", "c", "d"]


def test_a_checkpoint_is_published_after_what_it_is_over_is_durable(folder: Path) -> None:
    with open_record(folder, in_background=False) as opened:
        opened.append([note("a")])
        assert not (folder / CHECKPOINT).exists()
        opened.publish()
        opened.append([note("b")])
        assert unsigned((folder / CHECKPOINT).read_bytes()).size == 1


def test_what_nobody_has_signed_yet_is_told_from_what_is_verified(folder: Path) -> None:
    with open_record(folder, in_background=False) as opened:
        opened.append([note("a")])
        with pytest.raises(RecordError, match=f"at {CHECKPOINT}: it is missing: nobody has signed any of 1"):
            verify(folder)
        opened.publish()
        opened.append([note("b")])
        assert (verify(folder).size, verify(folder).published) == (2, 1)
    assert (verify(folder).size, verify(folder).published) == (2, 2)


def test_what_a_new_record_begins_with_is_signed_when_the_append_returns(folder: Path) -> None:
    with open_record(folder) as opened:
        opened.append([note("a")])
        assert verify(folder).published == 1


def test_a_start_signs_what_was_durable_and_not_signed_yet(folder: Path) -> None:
    crashed = open_record(folder, in_background=False)
    crashed.append([note("a")])
    crashed.publish()
    crashed.append([note("b")])
    abandon(crashed)
    with open_record(folder, in_background=False) as opened:
        opened.publish()
        keys = log_keys(folder).listed
        signed = open_checkpoint((folder / CHECKPOINT).read_bytes(), keys.origin, keys.verifiers)
        assert signed.checkpoint.size == 2


def test_nothing_is_signed_that_is_not_durable(folder: Path) -> None:
    """Whatever was not durable is in no checkpoint, so the log's key never signs two trees of one size."""
    failing = Hooked(sync=fail_with(errno.EIO))
    opened = open_record(folder, in_background=False, files=failing)
    with pytest.raises(RecordError):
        opened.append([note("a")])
    opened.close()
    assert not (folder / CHECKPOINT).exists()
    assert b"\xe2\x80\x94" not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_is_appended_is_published_by_itself(folder: Path) -> None:
    published = threading.Event()

    class Watched(Files):
        def rename(self, path: Path, target: Path) -> None:
            super().rename(path, target)
            if target.name == CHECKPOINT:
                published.set()

    with open_record(folder, files=Watched()) as opened:
        opened.append([note("a")])
        assert published.wait(20)
        assert unsigned((folder / CHECKPOINT).read_bytes()).size == 1


def test_a_record_goes_on_where_it_was(folder: Path) -> None:
    make(folder, "a", "b")
    with open_record(folder) as opened:
        assert opened.append([note("c")]) == (2,)
        assert [got.seq for got in opened.read(1)] == [1, 2]
    assert verify(folder).size == 3


def test_files_are_private(folder: Path) -> None:
    log_keys(folder)
    old = os.umask(0)
    try:
        make(folder, "a")
    finally:
        os.umask(old)
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_files_can_be_read_by_the_group_whatever_the_umask_is(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        make(folder, "a")
    finally:
        os.umask(old)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_a_second_writer_is_refused_until_the_first_closes(folder: Path) -> None:
    with open_record(folder) as opened:
        with pytest.raises(RecordError) as caught:
            open_record(folder)
        assert caught.value.reason is Reason.DAEMON_RUNNING
        assert caught.value.next_step
        opened.append([note("still mine")])
    make(folder, "mine now")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
@pytest.mark.parametrize("name", ["", JOURNAL])
def test_a_folder_that_others_can_write_is_refused(folder: Path, mode: int, name: str) -> None:
    make(folder, "a")
    (folder / name).chmod(mode)
    with pytest.raises(UnsafePath):
        open_record(folder)


def test_a_new_folder_is_not_made_where_others_can_write(tmp_path: Path) -> None:
    keys = log_keys(tmp_path / "elsewhere" / "record")
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(UnsafePath):
        Record.open(tmp_path / "state" / "record", keys)
    assert not (tmp_path / "state" / "record").exists()


def test_symbolic_links_are_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "a")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UnsafePath):
        Record.open(tmp_path / "link", log_keys(folder))
    for path in (journal(folder), folder / CHECKPOINT):
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
        with pytest.raises(UnsafePath):
            open_record(folder)
        path.unlink()
        (tmp_path / "moved").rename(path)
    make(folder, "b")


@pytest.mark.parametrize("mode", [0o666, 0o660])
@pytest.mark.parametrize("name", [CHECKPOINT, f"{JOURNAL}/{0:020}"])
def test_a_file_that_others_can_write_is_refused(folder: Path, mode: int, name: str) -> None:
    make(folder, "a")
    (folder / name).chmod(mode)
    with pytest.raises(UnsafePath):
        open_record(folder)


@pytest.mark.parametrize(
    "name", ["notes.txt", f"{JOURNAL}/1", f"{JOURNAL}/{'0' * 21}", "tile/0/0000", "tile/readme"]
)
def test_a_file_that_does_not_belong_there_is_named(folder: Path, name: str) -> None:
    make(folder, "a")
    (folder / name).write_text("")
    with pytest.raises(RecordError) as caught:
        verify(folder)
    assert caught.value.reason is Reason.RECORD_UNAVAILABLE
    assert str(folder / name) in caught.value.message
    assert "mv" in caught.value.next_step
    if not name.startswith("tile"):
        with pytest.raises(RecordError, match=Path(name).name):
            open_record(folder)


def test_a_record_of_an_earlier_version_is_refused_with_a_remedy(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o750)
    (folder / OLD_RECORD).write_text("")
    for action in (open_record, verify, causes):
        with pytest.raises(EgsError) as caught:
            action(folder)
        assert "earlier version" in caught.value.message
        assert f"Move {folder} away" in caught.value.next_step


def test_another_logs_keys_are_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "a")
    other = log_keys(tmp_path / "other" / "record")
    with pytest.raises(EgsError) as caught:
        Record.open(folder, other)
    assert caught.value.reason is Reason.KEY_UNTRUSTED
    with pytest.raises(RecordError, match="checkpoint"):
        verify_with(folder, other.listed.verifiers)
    make(folder, "b")


def test_a_new_key_takes_over(folder: Path) -> None:
    keys = log_keys(folder)
    with open_record(folder) as opened:
        opened.append([note("a")])
        keys.rotate(opened.size, overlap=0)
        opened.append([note("b")])
    assert verify(folder).size == 2
    assert verify_with(folder, keys.listed.verifiers[1:]).size == 2
    with pytest.raises(RecordError, match="checkpoint"):
        verify_with(folder, keys.listed.verifiers[:1])
    make(folder, "c")


def test_a_clock_that_is_set_back_changes_nothing_but_the_times(folder: Path) -> None:
    for hours in (2, 0, 1):
        with open_record(folder, clock=lambda hours=hours: NOON + hours * 3600 * 10**9) as opened:
            opened.append([note(str(hours))])
    assert causes(folder) == ["2", "0", "1"]
    assert [got.seq for got in read(folder)] == [0, 1, 2]
    verify(folder)


def test_an_envelope_that_is_too_long_for_an_entry_stands_in_parts(folder: Path) -> None:
    short, long = '{"a":"' + "x" * 40_000 + '"}', '{"b":"' + '"é\n' * 16_000 + '"}'
    with open_record(folder) as opened:
        assert opened.append([ArtifactChange(action="added", artifact_id="s", envelope=short)]) == (0,)
        (seq,) = opened.append([ArtifactChange(action="added", artifact_id="l", envelope=long)])
    entries = [got.entry for got in read(folder)]
    assert isinstance(entries[0], ArtifactChange)
    assert entries[0].envelope == short
    parts = [entry for entry in entries if isinstance(entry, Part)]
    assert seq == len(entries) - 1 == len(parts) + 1
    change = entries[-1]
    assert isinstance(change, ArtifactChange)
    assert change.envelope is not None
    assert joined(parts, change.envelope) == long
    assert [(part.index, part.count) for part in parts] == [
        (index, len(parts)) for index in range(len(parts))
    ]
    with pytest.raises(RecordError):
        joined(parts[1:], change.envelope)


@pytest.mark.parametrize("fails", [False, True])
def test_an_append_is_made_while_the_one_before_it_is_written(folder: Path, *, fails: bool) -> None:
    """It follows what is expected to be durable then; when that is not, it is made anew."""
    making = threading.Event()
    calls = itertools.count()

    def clock() -> int:
        if next(calls) == 1:  # the second append is being made
            making.set()
        return NOON

    def write(descriptor: int) -> None:
        if JOURNAL in str(path_of(descriptor)) and not segments_written:
            segments_written.append(descriptor)
            second.start()
            assert making.wait(20)
            if fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    segments_written: list[int] = []
    with open_record(folder, clock=clock, files=Hooked(write=write), in_background=False) as opened:
        found: list[tuple[int, ...]] = []
        second = threading.Thread(target=lambda: found.append(opened.append([note("c"), note("d")])))
        if fails:
            with pytest.raises(RecordError):
                opened.append([note("a"), note("b")])
        else:
            assert opened.append([note("a"), note("b")]) == (0, 1)
        second.join()
        assert found == [(0, 1)] if fails else [(2, 3)]
        assert opened.append([note("e")]) == (found[0][-1] + 1,)
    assert causes(folder) == (["c", "d", "e"] if fails else ["a", "b", "c", "d", "e"])
    verify(folder)


def test_many_threads_append(folder: Path) -> None:
    with open_record(folder, files=Hooked(sync=lambda _: None)) as opened:

        def run(name: int) -> list[int]:
            return [opened.append([note(f"{name} {each}")])[0] for each in range(50)]

        with ThreadPoolExecutor(4) as pool:
            seqs = list(pool.map(run, range(4)))
    assert sorted(itertools.chain(*seqs)) == list(range(200))
    texts = causes(folder)
    for name, own in enumerate(seqs):
        assert [texts[seq] for seq in own] == [f"{name} {each}" for each in range(50)]
    verify(folder)


def test_an_entry_that_is_too_large_harms_nothing(folder: Path) -> None:
    with open_record(folder) as opened:
        with pytest.raises(RecordError):
            opened.append([note("fine"), note("x" * MAX_ENTRY)])
        with pytest.raises(RecordError):
            opened.append([note("x" * (MAX_ENTRY - 1000))] * 300)
        assert opened.append([note("one")]) == (0,)
    assert causes(folder) == ["one"]


def test_appending_after_close_is_refused(folder: Path) -> None:
    opened = open_record(folder)
    opened.close()
    opened.close()
    with pytest.raises(RecordError):
        opened.append([note("late")])
