"""The example that people can run: five commands from nothing to an agent under a starter policy; docs/authority.md shows them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.harness import PATIENCE, REPOSITORY

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

PAGE = (REPOSITORY / "docs/authority.md").read_text()


def commands(text: str) -> list[str]:
    """The first five command lines of a transcript, without what differs from run to run."""
    return [re.sub(r" --cgroup \S+", "", line) for line in re.findall(r"(?m)^\$ (.*)$", text)[:5]]


def test_five_commands() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/authority_example.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=180 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert "the agent runs as user 0" in done.stdout
    assert re.search(r"\n([78]) of \1 checks passed", done.stdout), done.stdout  # 8 where git is a package
    assert commands(PAGE) == commands(done.stdout)
