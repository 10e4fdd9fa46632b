"""docs/drift.md and the tests say the same: every finding has a source, and a test that attacks for it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.findings import Finding
from egs_kernel.monitor.sources.clock import Clock
from egs_kernel.monitor.sources.drift_events import DriftEvents
from egs_kernel.monitor.sources.files import WatchedFiles
from egs_kernel.monitor.sources.integrity import GateIntegrity
from egs_kernel.monitor.sources.kernel import KernelState, Sysctls
from egs_kernel.monitor.sources.network import Network

REPOSITORY: Final = Path(__file__).parents[2]
PAGE: Final = (REPOSITORY / "docs/drift.md").read_text().partition("\n## What finds it")[2]
ROWS: Final = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
SOURCES: Final = {
    source.name for source in (Clock, DriftEvents, WatchedFiles, GateIntegrity, KernelState, Sysctls, Network)
}
MONITORS_OWN: Final = {"exec", "record", "timer", "sweep"}
WITHOUT_EVENT: Final = {
    Finding.PROGRAM_CHANGED,
    Finding.RESTRICTION_LOST,
    Finding.SOCKET_LISTENS,
    Finding.SOCKET_CONNECTED,
    Finding.CEILING_EXCEEDED,
    Finding.KERNEL_TAINTED,
}
"""What only a sweep tells; docs/drift.md says so."""


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def parts_of(path: str) -> dict[str, ast.stmt]:
    """Functions and constants of a test file, by name."""
    named: dict[str, ast.stmt] = {}
    for node in ast.parse((REPOSITORY / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            named[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return named


def findings_in(path: str, name: str) -> set[str]:
    """The findings that a test, and what it uses of its file, looks for."""
    parts, seen, left = parts_of(path), set[str](), [name]
    found = set()
    while left:
        part = left.pop()
        if part in seen or part not in parts:
            continue
        seen.add(part)
        for node in ast.walk(parts[part]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {node.attr} if node.value.id == "Finding" else set()
            elif isinstance(node, ast.Name):
                left.append(node.id)
    return found


def test_every_finding_has_its_row() -> None:
    assert [row[0] for row in ROWS] == [finding.value for finding in Finding]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_finding_has_sources_and_is_attacked(row: tuple[str, str, str, str]) -> None:
    finding = Finding(row[0])
    at_once, sweep, attacks = map(words, row[1:])
    assert set(at_once) | set(sweep) <= SOURCES | MONITORS_OWN
    assert bool(at_once) is (finding not in WITHOUT_EVENT)
    assert bool(sweep) is (finding is not Finding.UNWATCHED)
    assert attacks
    for attack in attacks:
        path, _, name = attack.partition("::")
        assert name in parts_of(path), attack
        assert finding.name in findings_in(path, name), f"{attack} looks for no {finding.value}"
