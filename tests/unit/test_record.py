"""The record's promises: durable before acknowledged, nothing lost, nothing rewritten, one writer."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.audit import record, segments
from egs_kernel.audit.check import Verified, unsigned
from egs_kernel.audit.check import verify as verify_with
from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.entries import (
    ArtifactChange,
    DaemonStopped,
    Decision,
    Gap,
    Part,
    Revocation,
    RevocationListChange,
)
from egs_kernel.audit.files import Files
from egs_kernel.audit.frames import frames_in
from egs_kernel.audit.layout import JOURNAL, OLD_RECORD, STATE, segment_path, segments_of
from egs_kernel.audit.parts import joined
from egs_kernel.audit.reader import Reader, read
from egs_kernel.audit.record import Record
from egs_kernel.audit.state import read_state
from egs_kernel.audit.tally import uses_by_artifact
from egs_kernel.audit.tiles import MAX_ENTRY, Tile
from egs_kernel.errors import EgsError, RecordError, UnsafePath
from egs_kernel.model import GrantKind, Reason, Revoked, Verdict
from tests.recording import abandon, log_keys, open_record, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOON = 1_795_435_200_000_000_000  # 2026-11-23T12:00:00Z
TOMORROW = "2026-11-24T12:00:00Z"

SINCE = "2026-11-23T12:00:00Z"


def note(text: str) -> DaemonStopped:
    return DaemonStopped(cause=text)


def launch(artifact_id: str, until: str | None = TOMORROW) -> Decision:
    return Decision(
        verdict=Verdict.ALLOW,
        reason=Reason.AUTHORIZED,
        scope="s",
        policy_digest="",
        posture="",
        artifact_id=artifact_id,
        grant_kind=GrantKind.ARMED,
        use_until=until,
    )


def causes(folder: Path) -> list[str]:
    return [got.entry.cause for got in read(folder) if isinstance(got.entry, DaemonStopped)]


def make(folder: Path, *texts: str) -> None:
    with open_record(folder) as opened:
        for text in texts:
            opened.append([note(text)])


def verify(folder: Path) -> Verified:
    return verify_with(folder, log_keys(folder).listed.verifiers)


def journal(folder: Path) -> Path:
    """The last file of the journal."""
    return segment_path(folder, segments_of(folder)[-1])


def drop_anchors(folder: Path) -> None:
    """What a power loss may leave of a new record: neither of them was there yet."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / STATE).unlink(missing_ok=True)


def torn_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("torn-*.bin"))]


class Hooked(Files):
    """The disk, with a step that a test looks at or lets fail."""

    def __init__(self, **hooks: Callable[..., None]) -> None:
        self._hooks = hooks

    def _call(self, name: str, *arguments: object) -> None:
        if name in self._hooks:
            self._hooks[name](*arguments)

    def write(self, descriptor: int, content: bytes) -> None:
        self._call("write", descriptor)
        super().write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        self._call("sync", descriptor)
        super().sync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._call("truncate", descriptor)
        super().truncate(descriptor, size)

    def sync_all(self, folder: Path) -> None:
        self._call("sync_all", folder)


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


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
        assert opened.checkpoint is not None
        opened.publish()
        assert (folder / CHECKPOINT).read_bytes() == opened.checkpoint
        opened.append([note("b")])
        assert unsigned((folder / CHECKPOINT).read_bytes()).size == 1


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


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
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


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel refuses to grow files beyond `limit`: it writes what fits and then says no."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def fill(opened: Record) -> RecordError:
    """Append until it is refused."""
    for _batch in range(1000):
        try:
            opened.append([note("x" * 1000)] * 3)
        except RecordError as error:
            return error
    raise AssertionError("it was never refused")


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


# --- what is counted -----------------------------------------------------------------------------


def test_uses_and_revocations_survive_a_restart(folder: Path) -> None:
    with open_record(folder) as opened:
        opened.append([launch("a"), launch("b"), launch("a"), launch("c", until=None)])
        opened.append([ArtifactChange(action="revoked", artifact_id="old")])
        opened.append([Revocation(kind="key", thing="k", since=SINCE)] * 2)
        opened.append([RevocationListChange(action="added", scope="*", number=2, digest="d2")])
        opened.append([RevocationListChange(action="refused", scope="*", number=1, digest="d1")])
        opened.append([ArtifactChange(action="added", artifact_id="n")])
        assert opened.uses == {"a": 2, "b": 1}
        length = opened.length
    with open_record(folder) as opened:  # from the state
        assert opened.uses == {"a": 2, "b": 1}
        assert opened.revoked == Revoked(artifact={"old": "1970-01-01T00:00:00Z"}, key={"k": SINCE})
        assert opened.lists == {"*": (2, "d2")}
        assert opened.length == length == sum(map(len, Reader(folder).lines()))
        opened.append([launch("b")])
    (folder / STATE).unlink()
    with open_record(folder) as opened:  # from the record alone
        assert opened.uses == {"a": 2, "b": 2}
        assert opened.revoked == Revoked(artifact={"old": "1970-01-01T00:00:00Z"}, key={"k": SINCE})
        assert opened.lists == {"*": (2, "d2")}
        assert uses_by_artifact(got.entry for got in opened.read()) == opened.uses


def test_a_failed_append_counts_nothing(folder: Path) -> None:
    with open_record(folder) as opened:
        with file_size_limit(10), pytest.raises(RecordError):
            opened.append([launch("a")])
        assert opened.uses == {}


def test_counts_of_expired_artifacts_are_forgotten_a_day_later(folder: Path) -> None:
    with open_record(folder, clock=lambda: NOON) as opened:
        opened.append([launch("a", until="2026-11-23T12:00:10Z"), launch("b", until="2026-12-31T00:00:00Z")])
    assert uses_when_opened_after(folder, hours=0) == {"a", "b"}
    assert uses_when_opened_after(folder, hours=23) == {"a", "b"}
    assert uses_when_opened_after(folder, hours=25) == {"b"}
    verify(folder)


def uses_when_opened_after(folder: Path, hours: int) -> set[str]:
    def clock() -> int:
        return NOON + hours * 3600 * 1_000_000_000

    with open_record(folder, clock=clock) as opened:
        opened.append([note("the state is written anew")])
    with open_record(folder, clock=clock) as opened:
        return set(opened.uses)


@pytest.mark.parametrize("content", [b"", b"{", b'{"v":1}', b"\xff" * 40])
def test_a_state_that_cannot_be_read_costs_time_and_nothing_else(folder: Path, content: bytes) -> None:
    make(folder, "one", "two")
    (folder / STATE).write_bytes(content)
    make(folder, "three")
    assert verify(folder).size == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [('"size":2', '"size":9'), ('"root":"', '"root":"00'), ('"synced":0', '"synced":512')],
)
def test_a_state_of_another_log_is_refused(folder: Path, old: str, new: str) -> None:
    make(folder, "one", "two")
    state = (folder / STATE).read_text()
    assert old in state
    (folder / STATE).write_text(state.replace(old, new))
    with pytest.raises(RecordError) as caught:
        open_record(folder)
    assert caught.value.reason is Reason.RECORD_CORRUPT


# --- rollback ------------------------------------------------------------------------------------


def test_an_earlier_journal_under_a_later_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "one")
    shutil.copytree(folder / JOURNAL, tmp_path / "earlier")
    make(folder, "two")
    shutil.rmtree(folder / JOURNAL)
    shutil.copytree(tmp_path / "earlier", folder / JOURNAL)
    for action in (open_record, verify):
        with pytest.raises(RecordError, match="entry 1") as caught:
            action(folder)
        assert "acknowledged" in caught.value.message


def test_another_history_under_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "one")
    before = shutil.copytree(folder, tmp_path / "earlier")
    make(folder, "two")
    published = (folder / CHECKPOINT).read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    (folder / STATE).unlink()
    make(folder, "another two", "three")
    (folder / CHECKPOINT).write_bytes(published)
    (folder / STATE).unlink()
    for action in (open_record, verify):
        with pytest.raises(RecordError) as caught:
            action(folder)
        assert caught.value.reason is Reason.RECORD_CORRUPT


@pytest.mark.parametrize("name", [JOURNAL, CHECKPOINT])
def test_what_is_missing_is_named(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed(folder, monkeypatch)
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(RecordError, match=name):
        open_record(folder)


def test_a_copy_without_a_journal_is_read_and_verified_as_far_as_it_was_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = trimmed(folder, monkeypatch)
    shutil.rmtree(folder / JOURNAL)
    assert verify(folder).size == size
    assert len(causes(folder)) == size


def trimmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make a record whose journal does not reach back to its beginning; its size."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(record, "TRIM_FILES", 1)
    with open_record(folder, in_background=False) as opened:
        for number in range(9):
            opened.append([note(f"{number}-{each}") for each in range(100)])
            opened.publish()
        assert segments_of(folder)[0] > 256
        return opened.size


# --- opening quickly, reading --------------------------------------------------------------------


def test_a_start_reads_only_what_is_not_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = trimmed(folder, monkeypatch)
    state = read_state(folder)
    assert state is not None
    assert 256 <= state.synced <= size
    bundle = folder / Tile(None, 0).path
    content = bytearray(bundle.read_bytes())
    content[50] ^= 1
    bundle.write_bytes(content)
    open_record(folder).close()  # entry 0 was synced long ago: not read here ...
    with pytest.raises(RecordError, match="entry 0"):
        verify(folder)  # ... but here
    shutil.copyfile(journal(folder), folder.parent / "kept")
    content = bytearray(journal(folder).read_bytes())
    content[len(content) // 2] ^= 1
    journal(folder).write_bytes(content)
    with pytest.raises(RecordError):
        open_record(folder)


def test_reading_and_verifying_while_the_daemon_appends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 20_000)
    monkeypatch.setattr(record, "TRIM_FILES", 1)
    monkeypatch.setattr(record, "PUBLISH_SECONDS", 0.001)
    started, stop = threading.Event(), threading.Event()

    def write() -> None:
        with open_record(folder, files=Hooked()) as opened:
            while not stop.is_set():
                opened.append([note("x" * 50)] * 70)
                started.set()

    log_keys(folder)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(20)
        for _round in range(15):
            seqs = [got.seq for got in read(folder, 3)]
            assert seqs == list(range(3, 3 + len(seqs)))
            assert verify(folder).size >= len(seqs)
    finally:
        stop.set()
        writer.join()


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.integers(1, 300), min_size=1, max_size=4), data=st.data())
def test_an_entry_is_found_by_number(batches: list[int], data: st.DataObject) -> None:
    total = sum(batches)
    seq = data.draw(st.integers(0, total + 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "record"
        with open_record(folder, in_background=False, files=Hooked(sync=lambda _: None)) as opened:
            for count in batches:
                opened.append([note("x")] * count)
        assert [got.seq for got in read(folder, seq)] == list(range(seq, total))
        assert Reader(folder).size == total
        if data.draw(st.booleans()):
            shutil.rmtree(folder / JOURNAL)
            assert [got.seq for got in read(folder, seq)] == list(range(seq, total))


def test_an_empty_record_is_one(folder: Path) -> None:
    open_record(folder).close()
    assert verify(folder).size == 0
    assert Reader(folder).size == 0
    assert causes(folder) == []
    with pytest.raises(EgsError, match="no entry 0"):
        Reader(folder).line(0)
    crashed = open_record(folder, in_background=False)
    abandon(crashed)
    make(folder, "one")
