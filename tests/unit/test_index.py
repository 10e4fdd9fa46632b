"""The index: it finds what a walk over the record finds, it follows the record, and nothing depends on it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.audit.index import Index
from egs_kernel.audit.lines import decode, microseconds
from egs_kernel.audit.query import Query
from egs_kernel.cli.audit.indexes import index_place
from egs_kernel.cli.main import run
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason, Verdict
from egs_kernel.paths import Paths
from tests import chains
from tests.recording import open_record
from tests.unit import proving

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = proving.lines()
RECORDED = [decode(line) for line in LINES]


class Lines:
    """A log of these entries."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines

    @property
    def size(self) -> int:
        return len(self._lines)

    def lines(self, since: int) -> Iterator[bytes]:
        return iter(self._lines[since:])

    def line(self, seq: int) -> bytes:
        return self._lines[seq]


def seqs(place: Path | None, lines: list[bytes], **wanted: Any) -> list[int]:
    with Index.open(place, Lines(lines)) as index:
        return list(index.numbers(**wanted))


def optional(*choices: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from((None, *choices))


QUERIES = st.builds(
    Query,
    reason=optional(Reason.AUTHORIZED, Reason.EXPIRED, Reason.NO_GRANT, Reason.CODE_UNTRUSTED),
    verdict=optional(*Verdict),
    pid=optional(5, 100, 101, 103, 104, 999),
    artifact=optional(proving.ARTIFACTS[chains.LAUNCHED][0][:7], proving.ARTIFACTS[chains.STANDING][0], "ff"),
    type=optional("exec", "decision", "refusal", "code", "gap"),
    scope=optional("agents", "x"),
    since=optional("2026-11-23T14:30:00.000000Z", "2026-11-23T14:30:00.000001Z"),
)


@settings(max_examples=300)
@given(QUERIES)
def test_it_finds_what_a_walk_over_the_record_finds(query: Query) -> None:
    walked = [recorded.seq for recorded in RECORDED if query.matches(recorded)]
    needles = query.needles()
    assert walked == [
        recorded.seq
        for line, recorded in zip(LINES, RECORDED, strict=True)
        if all(needle in line for needle in needles) and query.matches(recorded)
    ]
    assert seqs(None, LINES, **query.columns()) == walked


def test_it_follows_the_record(tmp_path: Path) -> None:
    place = tmp_path / "i.sqlite"
    for size in (0, 1, 7, 7, len(LINES)):
        assert seqs(place, LINES[:size]) == list(range(size))
    with Index.open(place, Lines(LINES)) as index:
        assert (index.size, index.last_boot, index.boot_id(1), index.boot_id(2)) == (
            len(LINES),
            2,
            "boot-one",
            "boot-two",
        )
        assert [index.boot_of(seq) for seq in (0, 14, 25, 27)] == [1, 1, 2, 2]


def test_of_another_record_it_is_built_anew(tmp_path: Path) -> None:
    place = tmp_path / "i.sqlite"
    seqs(place, LINES)
    other = [line.replace(b"2026-11-23T14:30", b"2026-11-23T15:30") for line in LINES]
    assert seqs(place, other, since=microseconds("2026-11-23T15:00:00.000000Z")) == list(range(len(LINES)))
    assert seqs(place, other[:5]) == list(range(5))  # a record that was rolled back


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_what_is_no_index_makes_way(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "i.sqlite"
    place.write_bytes(content)
    assert seqs(place, LINES) == list(range(len(LINES)))


def test_another_programs_database_makes_way(tmp_path: Path) -> None:
    place = tmp_path / "i.sqlite"
    with sqlite3.connect(place) as database:
        database.execute("CREATE TABLE entries (seq INTEGER)")
    database.close()
    assert seqs(place, LINES) == list(range(len(LINES)))


def changed(place: Path, statement: str) -> None:
    with sqlite3.connect(place) as database:
        database.execute(statement)
    database.close()


def test_a_damaged_index_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    place = tmp_path / "i.sqlite"
    seqs(place, LINES)
    changed(place, "DROP TABLE boots")
    with pytest.raises(EgsError) as caught, Index.open(place, Lines(LINES)) as index:
        index.boot_id(1)
    assert "Delete it" in caught.value.next_step
    place.unlink()
    seqs(place, LINES)
    content = bytearray(place.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    place.write_bytes(content)
    with pytest.raises(EgsError) as damaged:
        seqs(place, LINES)
    assert "Delete it" in damaged.value.next_step


def test_what_it_says_is_compared_with_the_entry(tmp_path: Path) -> None:
    place = tmp_path / "i.sqlite"
    seqs(place, LINES)
    changed(place, "UPDATE entries SET execution = '77' WHERE seq = 6")
    with Index.open(place, Lines(LINES)) as index:
        assert list(index.numbers(execution="77")) == [6]
        with pytest.raises(EgsError, match="does not say"):
            list(index.find(execution="77"))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM entries WHERE seq = 6", "at entry 6"),
        ("DELETE FROM entries WHERE seq = 0", "at entry 0"),
        ("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)", f"at entry {len(LINES) - 1}"),
        ("UPDATE entries SET verdict = 'allow' WHERE seq = 13", "at entry 13"),
        ("UPDATE entries SET time = time + 1 WHERE seq = 3", "at entry 3"),
        ("UPDATE entries SET parent = NULL WHERE seq = 10", "at entry 10"),
        ("UPDATE entries SET boot = 2 WHERE seq = 5", "at entry 5"),
        ("UPDATE entries SET seq = 999 WHERE seq = 8", "at entry 8"),
        ("INSERT INTO entries (seq, time, boot, type) VALUES (999, 0, 1, 'exec')", "after the last one"),
        ("UPDATE boots SET boot_id = 'another' WHERE number = 1", "its boots"),
        ("DELETE FROM boots", "its boots"),
    ],
)
def test_whatever_it_says_otherwise_is_found(tmp_path: Path, statement: str, named: str) -> None:
    """An entry that is missing there would be missing in every answer."""
    place = tmp_path / "i.sqlite"
    with Index.open(place, Lines(LINES)) as index:
        index.compare()
    changed(place, statement)
    with Index.open(place, Lines(LINES)) as index, pytest.raises(RecordError, match=named) as caught:
        index.compare()
    assert "egs audit reindex" in caught.value.next_step


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET size = NULL",
        "UPDATE state SET size = -1",
        "UPDATE state SET size = 10000",
        "UPDATE state SET boot = NULL",
        "UPDATE state SET last = NULL",
        "DELETE FROM state",
        "INSERT INTO state SELECT * FROM state",
    ],
)
def test_an_index_that_does_not_say_how_far_it_is_is_built_anew(tmp_path: Path, statement: str) -> None:
    place = tmp_path / "i.sqlite"
    expected = seqs(place, LINES, type="exec")
    changed(place, "DELETE FROM entries")
    changed(place, statement)
    assert seqs(place, LINES, type="exec") == expected


def test_damage_that_cannot_even_be_named_is_damage(tmp_path: Path) -> None:
    """SQLite's message has a name from the file, which is no UTF-8: built anew, like every other damaged file."""
    place = tmp_path / "i.sqlite"
    expected = seqs(place, LINES, type="exec")
    content = place.read_bytes()
    damaged = content.replace(b"CREATE TABLE entries", b"CREATE TABXE entries").replace(
        b"entries", b"entr\xa0es"
    )
    assert damaged != content
    place.write_bytes(damaged)
    with sqlite3.connect(place) as database, pytest.raises(UnicodeDecodeError):
        database.execute("PRAGMA journal_mode = WAL")
    database.close()
    assert seqs(place, LINES, type="exec") == expected


@settings(max_examples=40)
@given(at=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_a_bit_that_flips_anywhere_changes_no_answer_that_was_compared(at: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "i.sqlite"
        seqs(place, LINES)
        content = bytearray(place.read_bytes())
        content[at % len(content)] ^= 1 << bit
        place.write_bytes(content)
        with suppress(EgsError), Index.open(place, Lines(LINES)) as index:
            index.compare()
            for wanted in ({"type": "exec"}, {"pid": 101}):
                assert list(index.numbers(**wanted)) == seqs(None, LINES, **wanted)


@pytest.mark.usefixtures("folder")
def test_verify_compares_it_when_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    place = index_place(Paths.from_environment().record)
    assert place is not None
    arguments = ["audit", "verify", "--unsigned", "--json"]
    assert run([*arguments, "--index"]) == 0
    assert json.loads(capsys.readouterr().out)["index"] is True
    changed(place, "DELETE FROM entries WHERE seq = 2")
    assert run(arguments) == 0  # nothing is proven by it
    assert json.loads(capsys.readouterr().out)["index"] is False
    assert run([*arguments, "--index"]) == 1
    assert "at entry 2" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"{}", b"x", b"\xff", LINES[3]])
def test_a_damaged_entry_is_named(line: bytes) -> None:
    with pytest.raises(RecordError, match="entry 2"):
        seqs(None, [*LINES[:2], line])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "var/lib/egs/record"
    with open_record(folder) as record:
        record.append(chains.story())
    return folder


def test_it_stands_beside_the_record_or_in_a_cache(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "query", "--type", "refusal"]) == 0
    place = tmp_path / "var/cache/egs/record.sqlite"
    assert place.exists()
    shutil.rmtree(place.parent)
    place.parent.write_text("in the way")
    assert index_place(folder) == tmp_path / "cache/egs/record.sqlite"
    (tmp_path / "cache/egs").chmod(0o777)  # anybody's
    assert index_place(folder) is None
    assert run(["audit", "query", "--type", "refusal"]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


def test_the_caller_that_may_not_write_uses_a_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    os.seteuid(65534)
    try:
        place = index_place(folder)
    finally:
        os.seteuid(0)
    assert place in {home / "egs/record.sqlite", None}  # None: the folders above are not for this user


def test_reindex(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "reindex"]) == 0
    place = tmp_path / "var/cache/egs/record.sqlite"
    assert f"{len(chains.story())} entries in {place}" in capsys.readouterr().out
    changed(place, "DELETE FROM entries WHERE type = 'refusal'")
    run(["audit", "query", "--type", "refusal"])
    assert capsys.readouterr().out == ""
    run(["audit", "query", "--type", "refusal", "--no-index"])
    assert "socket" in capsys.readouterr().out
    assert run(["audit", "reindex", "--json"]) == 0
    capsys.readouterr()
    run(["audit", "query", "--type", "refusal"])
    assert "socket" in capsys.readouterr().out
    del folder
