"""docs/record.md: its example is entries, and its page of Python verifies a record and finds what was changed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from egs_kernel.audit import entries
from egs_kernel.audit.check import verify
from egs_kernel.audit.layout import JOURNAL, STATE
from egs_kernel.audit.lines import checked_header, decode, posture_digest
from egs_kernel.audit.shapes import WIDE
from egs_kernel.audit.tiles import Tile
from tests.recording import log_keys, open_record

PAGE = (Path(__file__).parents[2] / "docs/record.md").read_text()
COPIES = 120
"""Of the five entries: more than two bundles."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def by_hand(folder: Path) -> subprocess.CompletedProcess[str]:
    (script,) = blocks("python")
    return subprocess.run(
        [sys.executable, "-I", "-c", script, str(folder)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record of the entries of the page's example."""
    (example,) = blocks("jsonl")
    folder = tmp_path / "record"
    with open_record(folder) as opened:
        opened.append([decode(line.encode()).entry for line in example.splitlines()] * COPIES)
    return folder


def test_the_example_is_entries() -> None:
    (example,) = blocks("jsonl")
    assert len(example.splitlines()) == 5
    for seq, line in enumerate(example.splitlines()):
        checked_header(line.encode(), seq)
    first = decode(example.splitlines()[0].encode()).entry
    assert isinstance(first, entries.PostureEntry)
    assert first.digest == posture_digest(first.posture)


def test_python_alone_verifies_a_record(folder: Path) -> None:
    done = by_hand(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{5 * COPIES} entries of {log_keys(folder).listed.origin}, root ")
    assert verify(folder, log_keys(folder).listed.verifiers).size == 5 * COPIES


@pytest.mark.parametrize(("old", "new"), [(b'"kill"', b'"deny"'), (b'"SIGTERM"', b'"SIGKILL"')])
def test_python_alone_finds_a_change(folder: Path, old: bytes, new: bytes) -> None:
    bundle = folder / Tile(None, 1).path
    content = bundle.read_bytes()
    assert old in content
    bundle.write_bytes(content.replace(old, new, 1))
    assert by_hand(folder).returncode == 1


def test_the_page_names_every_type_field_and_file() -> None:
    for kind in entries.ENTRY_CLASSES:
        tag = kind.__struct_config__.tag
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{tag}`"))
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == set(kind.__struct_fields__)
    for name in (*WIDE, STATE, f"{JOURNAL}/SEQ", "checkpoint"):
        assert f"`{name}`" in PAGE
