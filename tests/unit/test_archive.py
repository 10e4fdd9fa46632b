"""`egs audit archive`: what was moved to cold storage is verified, found and proven as before, and nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.audit import archive
from egs_kernel.audit.archive import move_bundles
from egs_kernel.audit.tiles import Tile
from egs_kernel.cli.main import run
from egs_kernel.errors import RecordError
from tests.unit import proving
from tests.unit.trees import Tree, publish

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 700
"""Two full bundles, and a part of a third."""


def lines() -> list[bytes]:
    """The story, and after it the same entry again and again, with times that go on."""
    found = proving.lines()
    last = json.loads(found[-1])
    for seq in range(len(found), COUNT):
        entry = last | {"seq": seq, "time": f"2026-12-01T{seq // 60:02}:{seq % 60:02}:00.000000Z"}
        found.append(json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    return found


TREE = Tree(entries=lines())
KEY = str(TREE.key.key)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    folder = tmp_path / "var/lib/egs/record"
    folder.mkdir(parents=True)
    publish(folder, TREE)
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = run([*arguments, "--json"])
    text = capsys.readouterr().out
    return code, json.loads(text.splitlines()[0]) if arguments[1] in {"verify", "query"} and text else text


def test_what_was_moved_is_verified_and_found(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = str(tmp_path / "cold")
    assert run(["audit", "archive", "--before", "2026-12-01T09:59:00Z", "--to", cold]) == 0
    assert "0 entries" in capsys.readouterr().out  # the newest stay
    monkeypatch.setattr(archive, "KEPT", 0)
    _, before = said(capsys, "audit", "verify", "--key", KEY)
    assert run(["audit", "archive", "--before", "2026-12-01T09:59:00Z", "--to", cold]) == 0
    assert "512 entries" in capsys.readouterr().out
    assert not (folder / Tile(None, 1).path).exists()
    assert (tmp_path / "cold" / Tile(None, 1).path).exists()
    assert (
        run(["audit", "archive", "--before", "2026-12-01T09:59:00Z", "--to", cold]) == 0
    )  # again: nothing to do
    assert "0 entries" in capsys.readouterr().out

    code, after = said(capsys, "audit", "verify", "--key", KEY, "--cold", cold)
    assert (code, after["root_hash"], after["size"]) == (0, before["root_hash"], COUNT)
    code, refused = said(capsys, "audit", "verify", "--key", KEY)
    assert code == 1
    assert Tile(None, 0).path in refused["error"]["message"]
    assert "--cold" in refused["error"]["next_step"]
    assert said(capsys, "audit", "query", "--type", "refusal", "--cold", cold)[1]["seq"] == 12
    assert (
        run(["audit", "query", "--type", "refusal"]) == 1
    )  # the index knows of it, the record has it no more
    assert run(["audit", "show", "600"]) == 0
    assert run(["lineage", "5000000001", "--cold", cold]) == 0


def test_a_changed_bundle_is_noticed_here_and_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cold = tmp_path / "cold"
    first = folder / Tile(None, 0).path
    content = first.read_bytes()
    first.write_bytes(content.replace(b"no_grant", b"no_grunt"))
    with pytest.raises(RecordError, match="tile/entries/000"):
        move_bundles(folder, cold, COUNT)
    assert first.exists()
    first.write_bytes(content)
    assert move_bundles(folder, cold, COUNT) == 512
    moved = cold / Tile(None, 0).path
    moved.write_bytes(content.replace(b"no_grant", b"no_grunt"))
    code, answer = said(capsys, "audit", "verify", "--key", KEY, "--cold", str(cold))
    assert code == 1
    assert "entry 13" in answer["error"]["message"]


def test_a_move_that_was_interrupted_goes_on(folder: Path, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    shutil.copytree(folder, cold)  # written there, and not deleted here yet
    (cold / Tile(None, 0).path).write_bytes(b"half")
    assert move_bundles(folder, cold, 600) == 512
    assert (cold / Tile(None, 0).path).stat().st_size > 4
    assert not (folder / Tile(None, 0).path).exists()
