"""`egs audit export`: entries as they are, and receipts that a foreign verifier accepts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.cli.main import run
from tests import chains
from tests.recording import open_record

FOREIGN = Path(__file__).parents[1] / "foreign/eg_verify.mjs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    with open_record(tmp_path / "var/lib/egs/record") as record:
        record.append(chains.story())
    assert run(["keys", "generate", "--name", "receipts", "--out", str(tmp_path)]) == 0
    return tmp_path


def export(folder: Path, name: str, *more: str) -> list[dict[str, Any]]:
    out = folder / name
    assert run(["audit", "export", "--out", str(out), *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def receipts(folder: Path, name: str = "r.jsonl") -> list[dict[str, Any]]:
    return export(folder, name, "--format", "eg-receipts", "--key", str(folder / "receipts.key"), "--json")


def test_entries_as_they_stand_in_the_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = export(folder, "e.jsonl")
    assert [entry["seq"] for entry in entries] == list(range(len(chains.story())))
    assert export(folder, "later.jsonl", "--since", "2099-01-01") == []
    capsys.readouterr()
    assert run(["audit", "export"]) == 0


def test_one_receipt_for_each_execution(folder: Path) -> None:
    found = receipts(folder)
    assert [item["decision"] for item in found] == [
        "allow",
        "allow",
        "deny",
        "deny",
        "allow",
        "allow",
        "allow",
    ]
    assert [item["reason"] for item in found][2:4] == ["no_grant", "expired"]
    assert found[1]["parentReceiptId"] == found[0]["receiptId"]
    assert "parentReceiptId" not in found[0]
    assert "parentReceiptId" not in found[-1]  # the same number, of another boot
    assert {item["sessionId"] for item in found} == {"boot-one", "boot-two"}
    assert all(item["receiptId"][14] == "7" and item["receiptId"][19] in "89ab" for item in found)
    assert len({item["receiptId"] for item in found}) == len(found)
    assert receipts(folder, "again.jsonl") == found


def verify(path: Path, key: str) -> subprocess.CompletedProcess[str]:
    """With the project's own verifier where EG_VERIFY names its eg-verify.js, else with what its document says."""
    theirs = os.environ.get("EG_VERIFY")
    command = [theirs, "--receipts", str(path), "--pubkey", key] if theirs else [str(FOREIGN), str(path), key]
    return subprocess.run(["node", *command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("node") is None, reason="the foreign verifier runs under node")
def test_a_foreign_verifier_accepts_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    found = receipts(folder)
    key, path = json.loads(capsys.readouterr().out)["public_key"], folder / "r.jsonl"
    done = verify(path, key)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (0, 3, len(found) - 1):
        lines = path.read_text().splitlines()
        lines[number] = lines[number].replace('"decision":"', '"decision":"x')
        changed = folder / f"changed-{number}.jsonl"
        changed.write_text("\n".join(lines))
        assert verify(changed, key).returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "eg-receipts"],
        ["--key", "x.key"],
        ["--json"],
        ["--format", "eg-receipts", "--key", "/nonexistent"],
        ["--out", "/nonexistent/x"],
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_makes_no_sense(arguments: list[str]) -> None:
    assert run(["audit", "export", *arguments]) == 2
