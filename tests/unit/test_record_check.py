"""Whatever is changed, wherever: `verify` finds it, and names the first place that is wrong."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from egs_kernel.audit import record, segments
from egs_kernel.audit.check import verify
from egs_kernel.audit.checkpoint import CHECKPOINT, Checkpoint
from egs_kernel.audit.entries import ArtifactChange, DaemonStopped
from egs_kernel.audit.frames import encode_frame
from egs_kernel.audit.layout import JOURNAL, STATE, segment_path, segments_of
from egs_kernel.audit.lines import decode, encode
from egs_kernel.audit.merkle import Frontier, leaf_hash
from egs_kernel.audit.reader import Reader
from egs_kernel.audit.state import State, read_state
from egs_kernel.audit.tiles import Tile, pack_entry, unpack
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason
from tests.recording import log_keys, open_record

SIZE = 900
"""Three full bundles, and one that is partial; the journal has the last entries only."""


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_BYTES", 1000)
        patch.setattr(record, "TRIM_FILES", 1)
        folder = Path(name) / "record"
        with open_record(folder, in_background=False) as opened:
            opened.append([ArtifactChange(action="revoked", artifact_id="ab" * 32)])
            for start in range(1, SIZE, 100):
                opened.append(
                    [DaemonStopped(cause=f"{number}") for number in range(start, min(start + 100, SIZE))]
                )
                opened.publish()
        assert 256 < segments_of(folder)[0] < SIZE
        yield folder


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(shutil.copytree(folder, Path(name) / "record"))


def problem(folder: Path, original: Path) -> str:
    """Where a record does not verify."""
    with pytest.raises(RecordError) as caught:
        verify(folder, log_keys(original).listed.verifiers)
    assert caught.value.reason in {Reason.RECORD_CORRUPT, Reason.RECORD_UNAVAILABLE}
    assert caught.value.next_step
    return caught.value.message


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@st.composite
def edits(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with one edit."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["flip", "drop", "insert", "swap", "truncate"]))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "drop":
        return content[:at] + content[at + draw(st.integers(1, 40)) :]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=40)) + content[at:]
    if kind == "truncate":
        return content[:at]
    other = draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at], changed[other] = changed[other], changed[at]
    return bytes(changed)


def expected(name: str, folder: Path) -> str:
    """What may be named when the file `name` was edited: it, or an entry that is in it."""
    firsts = [*segments_of(folder), SIZE + 1]
    if name == STATE:
        entries = range(SIZE, SIZE + 1)  # where the record ends, when there should be more
    elif name.startswith(JOURNAL):
        start = int(name.rpartition("/")[2])
        end = next(first for first in firsts if first > start)
        entries = range(start, end + 1)  # one more: where it ends, when its last frame is gone
    else:
        tile = Tile.parse(name)
        entries = range(tile.first, tile.end) if tile is not None and tile.level is None else range(0)
    places = [re.escape(name), *(f"entry {number}" for number in entries)]
    either = "|".join(places)
    return (
        rf"does not verify at (the checkpoint in the journal at )?({either}):|\b{re.escape(name)}\b"
        rf"|^({either}) cannot be read by this version"  # its `v` became another number
    )


@settings(max_examples=150)
@given(data=st.data())
def test_any_edit_of_any_file_is_found_and_its_place_is_named(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(files_of(whole)))
    content = (whole / name).read_bytes()
    changed = data.draw(edits(content))
    if changed == content:
        return
    with copied(whole) as folder:
        (folder / name).write_bytes(changed)
        if name == STATE and says_the_same(read_state(folder), read_state(whole)):
            return
        found = problem(folder, whole)
        assert re.search(expected(name, whole), found), (name, found)


def test_a_file_of_the_journal_that_was_emptied_is_named_by_what_is_missing(whole: Path) -> None:
    """Nothing in it is wrong, and the next one is whole."""
    first, second = segments_of(whole)[:2]
    with copied(whole) as folder:
        (folder / f"{JOURNAL}/{first:020}").write_bytes(b"")
        found = problem(folder, whole)
    assert f"at entry {first}: it is missing" in found
    assert f"begins with entry {second}" in found


def says_the_same(state: State | None, other: State | None) -> bool:
    """Spaces and an order are nothing that is said; nor is it to be relied on how much was synced at least."""
    if state is None or other is None or state.synced > state.size:
        return False
    return replace(state, synced=0) == replace(other, synced=0)


@settings(max_examples=60)
@given(data=st.data())
def test_any_edit_of_an_entry_names_it(whole: Path, data: st.DataObject) -> None:
    """Entries that are dropped, inserted, swapped or changed, in a bundle that is otherwise well-formed."""
    begin = segments_of(whole)[0]
    index = data.draw(st.integers(0, begin // 256 - 1))
    bundle = Tile(None, index)
    entries = unpack((whole / bundle.path).read_bytes(), "", 256)
    at = data.draw(st.integers(0, 254))
    changed = list(entries)
    match data.draw(st.sampled_from(["change", "swap", "drop", "repeat"])):
        case "change":
            changed[at] = changed[at].replace(b'"time":"2', b'"time":"3')
        case "swap":
            other = data.draw(st.integers(at + 1, 255))
            changed[at], changed[other] = changed[other], changed[at]
        case "drop":
            del changed[at]
            changed.append(entries[-1].replace(b'"seq":', b'"seq":1'))
        case "repeat":
            changed[at + 1] = changed[at]
            at += 1
    with copied(whole) as folder:
        (folder / bundle.path).write_bytes(b"".join(pack_entry(entry) for entry in changed))
        assert f"at entry {bundle.first + at}:" in problem(folder, whole)


@settings(max_examples=30)
@given(data=st.data())
def test_entries_that_were_written_anew_in_the_journal_are_named(whole: Path, data: st.DataObject) -> None:
    """Numbers, sums and roots after them are right, as whoever can write the file can make them: nobody signed those."""
    firsts = segments_of(whole)
    found = [decode(line) for line in Reader(whole).lines(firsts[0])]
    at = data.draw(st.integers(0, len(found) - 2))
    entries = [(item.entry, item.time) for item in found]
    other = (DaemonStopped(cause="another"), found[at].time)
    match data.draw(st.sampled_from(["change", "swap", "drop", "insert"])):
        case "change":
            entries[at] = other
        case "swap":
            entries[at], entries[-1] = entries[-1], entries[at]
        case "drop":
            entries = [*entries[:at], *entries[at + 1 :], other]
        case "insert":
            entries = [*entries[:at], other, *entries[at:-1]]
    lines = [encode(entry, seq=seq, time=time) for seq, (entry, time) in enumerate(entries, firsts[0])]
    with copied(whole) as folder:
        shutil.copytree(whole.parent / "log-keys", folder.parent / "log-keys")
        write_journal(folder, lines)
        assert f"at entry {firsts[0] + at}: the journal has another" in problem(folder, whole)
        with pytest.raises(RecordError) as refused:  # and a daemon does not sign them
            open_record(folder, in_background=False)
        assert refused.value.reason is Reason.RECORD_CORRUPT


def write_journal(folder: Path, lines: list[bytes]) -> None:
    """Write the journal's files with other entries, and a frame for each file."""
    firsts = segments_of(folder)
    tree = Frontier()
    tree.extend(leaf_hash(line) for line in Reader(folder).lines() if line_number(line) < firsts[0])
    for first, end in pairwise([*firsts, firsts[0] + len(lines)]):
        part = lines[first - firsts[0] : end - firsts[0]]
        tree.extend(map(leaf_hash, part))
        checkpoint = Checkpoint(log_keys(folder).listed.origin, tree.size, tree.root())
        segment_path(folder, first).write_bytes(encode_frame(first, list(map(pack_entry, part)), checkpoint))


def line_number(line: bytes) -> int:
    return int(json.loads(line)["seq"])


def test_a_tile_that_was_changed_is_named_and_not_its_entry(whole: Path) -> None:
    for tile in (Tile(0, 0), Tile(0, 2), Tile(0, 3, SIZE % 256), Tile(1, 0, 3)):
        with copied(whole) as folder:
            content = bytearray((folder / tile.path).read_bytes())
            content[40] ^= 1
            (folder / tile.path).write_bytes(content)
            found = problem(folder, whole)
            assert f"at {tile.path}:" in found
            assert "hash 1" in found


def test_entries_and_tiles_that_were_changed_together_do_not_fit_the_signed_root(whole: Path) -> None:
    """Without the journal, and with every tile rebuilt: nothing is left but the signature."""
    with copied(whole) as folder:
        lines = list(Reader(folder).lines())
        lines[5] = lines[5].replace(b'"cause":"5"', b'"cause":"6"')
        forge(folder, lines)
        assert CHECKPOINT in problem(folder, whole)
        forged = Checkpoint(log_keys(whole).listed.origin, SIZE, root_of(lines))
        (folder / CHECKPOINT).write_bytes(
            forged.sign(*log_keys(folder).signers())
        )  # another key of that name
        assert CHECKPOINT in problem(folder, whole)
        assert verify(folder, log_keys(folder).listed.verifiers).size == SIZE


def forge(folder: Path, lines: list[bytes]) -> None:
    """Write the tiles and bundles of other entries."""
    shutil.rmtree(folder / JOURNAL)
    (folder / STATE).unlink()
    leaves = [leaf_hash(line) for line in lines]
    above = [node for _level, _index, node in Frontier().extend(leaves, 8)]
    rows: dict[int | None, list[bytes]] = {None: [pack_entry(line) for line in lines], 0: leaves, 1: above}
    for path in (path for path in folder.glob("tile/**/*") if path.is_file()):
        tile = Tile.parse(path.relative_to(folder).as_posix())
        assert tile is not None
        path.write_bytes(b"".join(rows[tile.level][tile.index * 256 : tile.index * 256 + tile.width]))


def root_of(lines: list[bytes]) -> bytes:
    frontier = Frontier()
    frontier.extend(leaf_hash(line) for line in lines)
    return frontier.root()


@pytest.mark.parametrize(
    "change",
    [
        {"size": SIZE - 1},
        {"size": SIZE + 1},
        {"root": "00" * 32},
        {"length": 5},
        {"synced": SIZE + 1},
        {"tally": {"uses": {}, "revoked": {}, "lists": {}}},
        {"tally": {"uses": {"ab": [1, "2027-01-01T00:00:00Z"]}, "revoked": {}, "lists": {}}},
        {"v": 1},
    ],
)
def test_a_state_that_does_not_say_what_the_entries_say_is_named(whole: Path, change: dict[str, Any]) -> None:
    with copied(whole) as folder:
        state = json.loads((folder / STATE).read_bytes())
        (folder / STATE).write_text(json.dumps(state | change))
        found = problem(folder, whole)
        assert STATE in found or f"{SIZE + 1} entries had been acknowledged" in found


@pytest.mark.parametrize(
    "name", [CHECKPOINT, "tile/0/001", "tile/entries/000", "tile/1/000.p/3", "tile/entries/003.p/132"]
)
def test_what_is_missing_is_named(whole: Path, name: str) -> None:
    with copied(whole) as folder:
        (folder / name).unlink()
        assert f"at {name}: it is missing" in problem(folder, whole)


def test_what_is_beyond_the_end_is_named(whole: Path) -> None:
    with copied(whole) as folder:
        shutil.copy(folder / "tile/0/000", folder / "tile/0/009")
        assert "at tile/0/009: it is beyond" in problem(folder, whole)
