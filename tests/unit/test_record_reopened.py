"""What the record counts, what it refuses to go on from, and reading it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.audit import record, segments
from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.entries import (
    ArtifactChange,
    Revocation,
    RevocationListChange,
)
from egs_kernel.audit.frames import encode_frame, frames_in
from egs_kernel.audit.layout import JOURNAL, STATE
from egs_kernel.audit.reader import Reader, read
from egs_kernel.audit.state import read_state
from egs_kernel.audit.tally import uses_by_artifact
from egs_kernel.audit.tiles import Tile, pack_entry
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason, Revoked
from tests.recording import abandon, log_keys, open_record
from tests.unit.recorded import (
    NOON,
    SINCE,
    Hooked,
    causes,
    file_size_limit,
    journal,
    launch,
    make,
    note,
    trimmed,
    verify,
)

if TYPE_CHECKING:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "record"


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
                if (folder / CHECKPOINT).exists():
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


def test_a_journal_whose_checkpoints_an_earlier_version_signed_goes_on(folder: Path) -> None:
    make(folder, "one", "two", "three")
    signers = log_keys(folder).signers()
    frames = [
        encode_frame(
            frame.first,
            [pack_entry(entry) for entry in frame.entries],
            SimpleNamespace(text=frame.checkpoint.sign(*signers).decode()),  # type: ignore[arg-type]  # as it was
        )
        for frame in frames_in(journal(folder).read_bytes())
    ]
    journal(folder).write_bytes(b"".join(frames))
    assert verify(folder).size == 3
    make(folder, "four")
    assert causes(folder) == ["one", "two", "three", "four"]
    assert verify(folder).size == 4


@settings(max_examples=40)
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
