"""docs/record.md: its example is a record, and its page of shell verifies one and finds what was changed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from egs_kernel.audit import anchor, entries
from egs_kernel.audit.lines import WIDE, decode, posture_digest
from egs_kernel.audit.reader import RECORD_FILE, read, verify
from egs_kernel.audit.record import Record

PAGE = (Path(__file__).parents[2] / "docs/record.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        env={"RECORD": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record that goes on from the entries of the page's example."""
    (example,) = blocks("jsonl")
    folder = tmp_path / "record"
    with Record.open(folder) as opened:
        for line in example.splitlines():
            opened.append([decode(line.encode()).entry])
    return folder


def test_the_example_verifies(tmp_path: Path) -> None:
    (example,) = blocks("jsonl")
    path = tmp_path / "example.jsonl"
    path.write_text(example)
    assert verify(path).position.size == len(example.splitlines()) == 5
    first = next(iter(read(path))).entry
    assert isinstance(first, entries.PostureEntry)
    assert first.digest == posture_digest(first.posture)


def test_the_shell_verifies_a_record(folder: Path) -> None:
    check, refusals = blocks("sh")
    done = run(check, folder)
    assert done.returncode == 0, done.stderr
    assert f"5 entries, head {verify(folder).position.hash}" in done.stdout
    assert "the one that was acknowledged" in done.stdout
    assert run(refusals, folder).stdout.split() == ["1", "no_grant", "/usr/bin/cat"]


@pytest.mark.parametrize(("old", "new"), [(b'"kill"', b'"deny"'), (b'"SIGTERM"', b'"SIGKILL"')])
def test_the_shell_finds_a_change(folder: Path, old: bytes, new: bytes) -> None:
    content = (folder / RECORD_FILE).read_bytes()
    assert old in content
    (folder / RECORD_FILE).write_bytes(content.replace(old, new))
    done = run(blocks("sh")[0], folder)
    assert done.returncode == 1
    assert "does not follow" in done.stdout or "acknowledged" in done.stdout


def test_the_shell_finds_a_missing_end(folder: Path) -> None:
    content = (folder / RECORD_FILE).read_bytes().splitlines(keepends=True)
    (folder / RECORD_FILE).write_bytes(b"".join(content[:-1]))
    assert run(blocks("sh")[0], folder).returncode == 1


def test_the_page_names_every_type_field_and_file() -> None:
    for kind in entries.ENTRY_CLASSES:
        tag = kind.__struct_config__.tag
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{tag}`"))
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == set(kind.__struct_fields__)
    for name in (*WIDE, RECORD_FILE, anchor.HEAD, anchor.CHECKPOINT):
        assert f"`{name}`" in PAGE or f"/{name}`" in PAGE
