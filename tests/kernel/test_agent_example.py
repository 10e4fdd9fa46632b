"""The example that people can run: an agent whose tools work, and who is refused the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

import pytest

from egs_kernel.model import Tier
from tests.harness import PATIENCE, REPOSITORY
from tests.refusals import TIER

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

EXAMPLE: Final = REPOSITORY / "docs/examples/agent"


def test_the_agent_does_its_job_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/agent_example.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    for line in (
        "rm draft.txt: works",
        "rm -rf: refused",
        "curl: refused",
        "python3 -c: refused",
        "fetch: refused",
    ):
        assert line in done.stdout
    tree = [line for line in done.stdout.splitlines() if "──" in line]
    refused = [line for line in tree if "refused: " in line]
    # An exec that fails (tier lsm) is tried again in the next folder of PATH.
    assert len(refused) == 3 if TIER is Tier.TRACEPOINT else len(refused) >= 3
    assert len(tree) - len(refused) == 5


def test_the_page_tells_of_what_the_agent_tries() -> None:
    page, agent = (EXAMPLE / "README.md").read_text(), (EXAMPLE / "agent.py").read_text()
    plan = re.findall(
        r'^    ["\'](.*?)["\'],$', agent.partition("PLAN = (")[2].partition("\n)")[0], re.MULTILINE
    )
    assert len(plan) == 9
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (EXAMPLE / target).exists(), target
    for line in plan:
        tool = line.split()[0]
        assert f"`{tool}" in page or tool == "fetch", tool
