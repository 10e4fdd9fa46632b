"""The record's promises: durable before acknowledged, nothing lost, nothing rewritten, one writer."""

from __future__ import annotations

import errno
import hashlib
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
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.audit import anchor, record, recover
from egs_kernel.audit.chain import Position, find, walk
from egs_kernel.audit.entries import ArtifactChange, DaemonStopped, Decision, Gap
from egs_kernel.audit.lines import GENESIS, MAX_LINE
from egs_kernel.audit.reader import RECORD_FILE, read, verify
from egs_kernel.audit.record import Record
from egs_kernel.audit.tally import uses_by_artifact
from egs_kernel.errors import RecordError, UnsafePath
from egs_kernel.model import GrantKind, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_795_435_200_000_000_000  # 2026-11-23T12:00:00Z
TOMORROW = "2026-11-24T12:00:00Z"


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
    with Record.open(folder) as opened:
        for text in texts:
            opened.append([note(text)])


def drop_anchors(folder: Path) -> None:
    """What a power loss may leave: neither file was synced."""
    (folder / anchor.HEAD).unlink(missing_ok=True)
    (folder / anchor.CHECKPOINT).unlink(missing_ok=True)


def torn_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("torn-*.bin"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "record"


def test_an_append_is_in_the_file_when_it_is_synced_and_synced_when_it_returns(folder: Path) -> None:
    seen = []

    def sync(descriptor: int) -> None:
        seen.append(os.pread(descriptor, 1 << 20, 0).count(b"\n"))
        os.fdatasync(descriptor)

    with Record.open(folder, sync=sync) as opened:
        assert opened.append([note("a")]) == (0,)
        assert seen == [1]
        assert opened.append([note("b"), note("c"), note("d")]) == (1, 2, 3)
        assert seen == [1, 4]  # one sync for a batch
        assert opened.append([]) == ()
        assert seen == [1, 4]
        assert opened.size == 4
    assert causes(folder) == ["a", "b", "c", "d"]


def test_a_record_goes_on_where_it_was(folder: Path) -> None:
    make(folder, "a", "b")
    with Record.open(folder) as opened:
        assert opened.append([note("c")]) == (2,)
        assert [got.seq for got in opened.read(1)] == [1, 2]
    assert verify(folder).position.size == 3


def test_files_are_private(folder: Path) -> None:
    old = os.umask(0)
    try:
        make(folder, "a")
    finally:
        os.umask(old)
    for name in (RECORD_FILE, anchor.HEAD, anchor.CHECKPOINT):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_second_writer_is_refused_until_the_first_closes(folder: Path) -> None:
    with Record.open(folder) as opened:
        with pytest.raises(RecordError) as caught:
            Record.open(folder)
        assert caught.value.reason is Reason.DAEMON_RUNNING
        assert caught.value.next_step
        opened.append([note("still mine")])
    make(folder, "mine now")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_refused(folder: Path, mode: int) -> None:
    make(folder, "a")
    folder.chmod(mode)
    with pytest.raises(UnsafePath):
        Record.open(folder)


def test_a_new_folder_is_not_made_where_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(UnsafePath):
        Record.open(tmp_path / "state" / "record")
    assert not (tmp_path / "state" / "record").exists()


def test_symbolic_links_are_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "a")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UnsafePath):
        Record.open(tmp_path / "link")
    for name in (RECORD_FILE, anchor.HEAD):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(UnsafePath):
            Record.open(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    make(folder, "b")


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o644])
def test_a_file_that_others_can_write_or_anybody_can_read_is_refused(folder: Path, mode: int) -> None:
    make(folder, "a")
    (folder / RECORD_FILE).chmod(mode)
    with pytest.raises(UnsafePath):
        Record.open(folder)


def test_something_else_in_the_files_place_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o750)
    os.mkfifo(folder / RECORD_FILE, 0o640)
    with pytest.raises(UnsafePath):
        Record.open(folder)


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
        yield Path(shutil.copytree(folder, Path(name) / "record"))


@settings(deadline=None)
@given(data=st.data())
def test_a_cut_anywhere_loses_no_whole_line_and_is_repaired(written: Path, data: st.DataObject) -> None:
    content = (written / RECORD_FILE).read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    kept = content[:cut].rpartition(b"\n")
    with copied(written) as folder:
        drop_anchors(folder)
        os.truncate(folder / RECORD_FILE, cut)
        make(folder, "after")
        assert (folder / RECORD_FILE).read_bytes().startswith(kept[0] + kept[1])
        assert causes(folder) == [
            *("one", "two", "three", "four")[: kept[0].count(b"\n") + bool(kept[1])],
            "after",
        ]
        assert torn_files(folder) == ([kept[2]] if kept[2] else [])
        gaps = [got.entry for got in read(folder) if isinstance(got.entry, Gap)]
        assert [gap.kept for gap in gaps] == [path.name for path in folder.glob("torn-*.bin")]
        verify(folder)


@settings(deadline=None)
@given(data=st.data())
def test_a_cut_into_what_was_acknowledged_is_refused(written: Path, data: st.DataObject) -> None:
    size = (written / RECORD_FILE).stat().st_size
    with copied(written) as folder:
        lost = data.draw(st.sampled_from([None, anchor.HEAD, anchor.CHECKPOINT]))
        if lost is not None:
            (folder / lost).unlink()
        os.truncate(folder / RECORD_FILE, data.draw(st.integers(0, size - 1)))
        before = (folder / RECORD_FILE).read_bytes()
        with pytest.raises(RecordError) as caught:
            Record.open(folder)
        assert caught.value.reason is Reason.RECORD_CORRUPT
        assert (folder / RECORD_FILE).read_bytes() == before  # evidence stays as it is
        if lost != anchor.HEAD:
            with pytest.raises(RecordError):
                verify(folder)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_byte_is_found(written: Path, data: st.DataObject) -> None:
    content = bytearray((written / RECORD_FILE).read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    with copied(written) as folder:
        (folder / RECORD_FILE).write_bytes(content)
        with pytest.raises(RecordError) as caught:
            verify(folder)
        assert caught.value.reason in {Reason.RECORD_CORRUPT, Reason.RECORD_UNAVAILABLE}
        (folder / anchor.CHECKPOINT).unlink()
        with pytest.raises(RecordError):
            Record.open(folder)


@settings(deadline=None)
@given(data=st.data())
def test_zeros_that_a_power_loss_left_are_set_aside(written: Path, data: st.DataObject) -> None:
    """The size of an unacknowledged append was durable, its data not or in part."""
    with copied(written) as folder:
        drop_anchors(folder)
        whole = (folder / RECORD_FILE).read_bytes()
        lines = b"".join(whole.splitlines(keepends=True)[1:])
        holes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=2))
        torn = bytes(holes[0] + 1) + lines[holes[0] + 1 :]
        torn = torn[: -holes[1]] + bytes(holes[1]) if len(holes) > 1 and holes[1] else torn
        with (folder / RECORD_FILE).open("ab") as file:
            file.write(torn)
        make(folder, "after")
        assert causes(folder) == ["one", "two", "three", "four", "after"]
        assert torn_files(folder) == [torn]
        verify(folder)


def test_zeros_in_what_was_acknowledged_are_refused(folder: Path) -> None:
    make(folder, "one", "two", "three")
    (folder / anchor.CHECKPOINT).unlink()
    content = (folder / RECORD_FILE).read_bytes().splitlines(keepends=True)
    (folder / RECORD_FILE).write_bytes(content[0] + bytes(len(content[1])) + content[2])
    with pytest.raises(RecordError) as caught:
        Record.open(folder)
    assert caught.value.reason is Reason.RECORD_CORRUPT
    assert "entry 1" in caught.value.message


def test_a_crash_between_cutting_the_tail_and_saying_so(folder: Path) -> None:
    make(folder, "one")
    with (folder / RECORD_FILE).open("ab") as file:
        file.write(b'{"half')
    with (folder / RECORD_FILE).open("r+b") as file:
        recover.recover(file, folder)  # ... and the process dies here
    assert (folder / RECORD_FILE).read_bytes().count(b"\n") == 1
    make(folder, "two")
    assert [type(got.entry) for got in read(folder)] == [DaemonStopped, Gap, DaemonStopped]
    make(folder, "three")
    assert sum(isinstance(got.entry, Gap) for got in read(folder)) == 1
    assert torn_files(folder) == [b'{"half']


def test_a_crash_before_the_head_was_written(folder: Path) -> None:
    make(folder, "one")
    stale = (folder / anchor.HEAD).read_bytes()
    make(folder, "two")
    (folder / anchor.HEAD).write_bytes(stale)
    (folder / anchor.CHECKPOINT).unlink()
    make(folder, "three")
    assert causes(folder) == ["one", "two", "three"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"v":2}', b"\xff" * 40])
def test_unreadable_anchors_cost_time_and_nothing_else(folder: Path, content: bytes) -> None:
    make(folder, "one", "two")
    (folder / anchor.HEAD).write_bytes(content)
    (folder / anchor.CHECKPOINT).write_bytes(content)
    make(folder, "three")
    assert verify(folder).position.size == 3
    assert verify(folder).head_checked


@pytest.mark.parametrize("lost", [anchor.HEAD, anchor.CHECKPOINT])
def test_one_anchor_is_enough_to_know_the_last_line(folder: Path, lost: str) -> None:
    make(folder, "one", "two")
    (folder / lost).unlink()
    content = (folder / RECORD_FILE).read_bytes()
    (folder / RECORD_FILE).write_bytes(content.replace(b'"two"', b'"owt"'))
    with pytest.raises(RecordError) as caught:
        Record.open(folder)
    assert caught.value.reason is Reason.RECORD_CORRUPT
    assert "entry 1" in caught.value.message


@given(index=st.integers(0, 157), flip=st.integers(1, 255))
def test_a_half_written_head_is_none(index: int, flip: int) -> None:
    content = bytearray(anchor.head_line(Position(7, 100, 200, "ab" * 32)))
    assert anchor.parse_head(bytes(content)) == Position(7, 100, 200, "ab" * 32)
    content[index % len(content)] ^= flip
    assert anchor.parse_head(bytes(content)) is None
    assert anchor.parse_head(bytes(content[:index])) is None


def chained(*lines: bytes) -> bytes:
    """Lines that are right in nothing but their hashes: PREV stands for the hash before."""
    prev, whole = GENESIS, b""
    for line in lines:
        written = line.replace(b"PREV", prev.encode())
        prev = hashlib.sha256(written).hexdigest()
        whole += written + b"\n"
    return whole


GOOD = b'{"cause":"c","prev":"PREV","seq":%d,"time":"t","type":"daemon_stopped","v":1}'


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([GOOD % 0, GOOD % 1], None),
        ([GOOD % 0, GOOD % 2], 1),
        ([GOOD % 1], 0),
        ([GOOD % 0, (GOOD % 1).replace(b"PREV", b"0" * 64)], 1),
        ([GOOD % 0, (GOOD % 1).replace(b":1,", b": 1,")], 1),
        ([GOOD % 0, (GOOD % 1).replace(b"{", b'{"cause":"d",')], 1),
        ([GOOD % 0, (GOOD % 1).replace(b'"t"', b"1")], 1),
        ([GOOD % 0, b""], 1),
        ([GOOD % 0, b"x" * MAX_LINE], 1),
    ],
)
def test_a_chain_needs_more_than_hashes(tmp_path: Path, lines: list[bytes], wrong: int | None) -> None:
    path = tmp_path / "forged.jsonl"
    path.write_bytes(chained(*lines))
    if wrong is None:
        assert verify(path).position.size == len(lines)
        return
    with pytest.raises(RecordError, match=f"entry {wrong}:") as caught:
        verify(path)
    assert caught.value.reason is Reason.RECORD_CORRUPT


def test_a_reader_does_not_keep_what_a_failed_write_took_back(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    first, second = chained(GOOD % 0, GOOD % 1).splitlines(keepends=True)
    path.write_bytes(first + b'{"cause":"a write that fai')
    with path.open("rb") as file:
        (reached,) = [position for position, _header, _line in walk(file)]
        path.write_bytes(first)
        path.write_bytes(first + second)
        assert [line for _position, _header, line in walk(file, reached)] == [second[:-1]]


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from egs_kernel.audit.record import Record\nfrom egs_kernel.audit.entries import DaemonStopped\n"
        "record = Record.open(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    seqs = record.append([DaemonStopped(cause=str(number))] * 5)\n"
        "    print(seqs[-1], flush=True)\n"
    )
    for _round in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            acknowledged = [int(line) for line in itertools.islice(writer.stdout, 25)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        with Record.open(folder) as opened:
            assert opened.size > acknowledged[-1]
        assert verify(folder).position.seq >= acknowledged[-1]


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
    with Record.open(folder) as opened:
        opened.append([note("one")])
        before = (folder / RECORD_FILE).read_bytes()
        with file_size_limit(len(before) + 300), pytest.raises(RecordError) as caught:
            opened.append([note("x" * 100), note("y" * 100), note("z" * 100)])
        assert caught.value.reason is Reason.RECORD_UNAVAILABLE
        assert (folder / RECORD_FILE).read_bytes() == before
        assert not opened.failed
        assert opened.append([note("two")]) == (1,)  # there is room again
    assert causes(folder) == ["one", "two"]
    verify(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0750", "egs-test", place], check=True)
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
    raise AssertionError("the disk never got full")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    folder = small_disk / "record"
    with Record.open(folder) as opened:
        caught = fill(opened)
        acknowledged = opened.size
        assert caught.reason is Reason.RECORD_UNAVAILABLE
        assert "No space left" in caught.message
        assert "df" in caught.next_step
        assert acknowledged % 3 == 0
        assert acknowledged > 0
    assert verify(folder).position.size == acknowledged
    assert verify(folder).torn == 0
    subprocess.run(["mount", "-o", "remount,size=256k", small_disk], check=True)
    make(folder, "room again")
    assert verify(folder).position.size == acknowledged + 1


def test_a_failed_sync_ends_the_writer_and_acknowledges_nothing(folder: Path) -> None:
    broken = False

    def sync(descriptor: int) -> None:
        if broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(descriptor)

    with Record.open(folder, sync=sync) as opened:
        opened.append([note("one"), launch("a" * 64)])
        broken = True
        with pytest.raises(RecordError) as caught:
            opened.append([launch("a" * 64)])
        assert caught.value.reason is Reason.RECORD_UNAVAILABLE
        assert opened.failed
        assert opened.uses == {"a" * 64: 1}
        broken = False  # the kernel reports a lost write once, and then calls the pages clean
        with pytest.raises(RecordError) as caught:
            opened.append([note("three")])
        assert "restart egsd" in caught.value.next_step
    make(folder, "after")
    assert causes(folder) == ["one", "after"]
    verify(folder)


def test_what_another_program_did_to_the_file_is_noticed(folder: Path) -> None:
    with Record.open(folder) as opened:
        opened.append([note("one")])
        with (folder / RECORD_FILE).open("ab") as file:
            file.write(b"forged\n")
        with pytest.raises(RecordError) as caught:
            opened.append([note("two")])
        assert caught.value.reason is Reason.RECORD_CORRUPT
        assert opened.failed
    with pytest.raises(RecordError):
        Record.open(folder)
    assert b"forged" in (folder / RECORD_FILE).read_bytes()


def test_an_entry_that_is_too_large_harms_nothing(folder: Path) -> None:
    with Record.open(folder) as opened:
        with pytest.raises(RecordError):
            opened.append([note("fine"), note("x" * MAX_LINE)])
        with pytest.raises(RecordError):
            opened.append([note("x" * (MAX_LINE - 1000))] * 20)
        assert opened.append([note("one")]) == (0,)
    assert causes(folder) == ["one"]


def test_appending_after_close_is_refused(folder: Path) -> None:
    opened = Record.open(folder)
    opened.close()
    opened.close()
    with pytest.raises(RecordError):
        opened.append([note("late")])


# --- what is counted -----------------------------------------------------------------------------


def test_uses_and_revocations_survive_a_restart(folder: Path) -> None:
    with Record.open(folder) as opened:
        opened.append([launch("a"), launch("b"), launch("a"), launch("c", until=None)])
        opened.append([ArtifactChange(action="revoked", artifact_id="r")])
        opened.append([ArtifactChange(action="added", artifact_id="n")])
        assert opened.uses == {"a": 2, "b": 1}
    with Record.open(folder) as opened:  # from the checkpoint
        assert opened.uses == {"a": 2, "b": 1}
        assert opened.revoked == {"r"}
        opened.append([launch("b")])
    drop_anchors(folder)
    with Record.open(folder) as opened:  # from the record alone
        assert opened.uses == {"a": 2, "b": 2}
        assert opened.revoked == {"r"}
        assert uses_by_artifact(got.entry for got in opened.read()) == opened.uses


def test_a_failed_append_counts_nothing(folder: Path) -> None:
    with Record.open(folder) as opened:
        with file_size_limit(10), pytest.raises(RecordError):
            opened.append([launch("a")])
        assert opened.uses == {}


def test_counts_of_expired_artifacts_are_forgotten_a_day_later(folder: Path) -> None:
    with Record.open(folder, clock=lambda: NOON) as opened:
        opened.append([launch("a", until="2026-11-23T12:00:10Z"), launch("b", until="2026-12-31T00:00:00Z")])
    assert uses_when_opened_after(folder, hours=0) == {"a", "b"}
    assert uses_when_opened_after(folder, hours=23) == {"a", "b"}
    assert uses_when_opened_after(folder, hours=25) == {"b"}


def uses_when_opened_after(folder: Path, hours: int) -> set[str]:
    def clock() -> int:
        return NOON + hours * 3600 * 1_000_000_000

    Record.open(folder, clock=clock).close()
    with Record.open(folder, clock=clock) as opened:
        return set(opened.uses)


# --- opening quickly, reading --------------------------------------------------------------------


def test_a_start_reads_only_what_the_checkpoint_does_not_cover(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "CHECKPOINT_EVERY", 10)
    opened = Record.open(folder)
    for number in range(25):
        opened.append([note(str(number))])
    opened._file.close()  # a crash: no checkpoint at the end
    opened._head.close()
    crashed = shutil.copytree(folder, folder.parent / "crashed")
    flip(folder, 10)
    Record.open(folder).close()  # entry 0 lies before the checkpoint: not read here ...
    with pytest.raises(RecordError, match="entry 1:"):
        verify(folder)  # ... but here
    checkpoint = anchor.read_checkpoint(crashed)
    assert checkpoint is not None
    assert checkpoint.position.size == 20
    flip(crashed, checkpoint.position.end + 10)
    with pytest.raises(RecordError, match="entry 2"):
        Record.open(crashed)


def flip(folder: Path, index: int) -> None:
    content = bytearray((folder / RECORD_FILE).read_bytes())
    content[index] ^= 1
    (folder / RECORD_FILE).write_bytes(content)


def test_reading_and_verifying_while_the_daemon_appends(folder: Path) -> None:
    started, stop = threading.Event(), threading.Event()

    def write() -> None:
        with Record.open(folder) as opened:
            while not stop.is_set():
                opened.append([note("x" * 50)] * 7)
                started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(20)
        for _round in range(20):
            seqs = [got.seq for got in read(folder, 3)]
            assert seqs == list(range(3, 3 + len(seqs)))
            assert verify(folder).position.size >= len(seqs)
    finally:
        stop.set()
        writer.join()


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9000), min_size=1, max_size=12), seq=st.integers(0, 14))
def test_an_entry_is_found_by_number(lengths: list[int], seq: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "record"
        with Record.open(folder) as opened:
            opened.append([note("x" * length) for length in lengths])
        assert [got.seq for got in read(folder, seq)] == list(range(seq, len(lengths)))
        with (folder / RECORD_FILE).open("rb") as file:
            size = (folder / RECORD_FILE).stat().st_size
            assert find(file, len(lengths), size) == size
