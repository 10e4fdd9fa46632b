"""docs/kernels.md and what runs the virtual machines: tables, selection, package lists. No machine is started."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import host, image, suite, table
from tests.vm.__main__ import quick_tests
from tests.vm.kernels import SUITES
from tests.vm.machine import LSM
from tests.vm.results import Outcome, Results, load

REPOSITORY = Path(__file__).parents[2]
GOALS = {"tests/kernel/test_slice.py": "Slices", "tests/adversarial/test_reload.py": "Reload"}


def ran(kernel: str = "6.1", tier: str = "lsm", case: str = "tests", *outcomes: str) -> Results:
    made = [
        Outcome(test=f"{file}::test_{number}", outcome=outcome, seconds=1.0)
        for number, outcome in enumerate(outcomes)
        for file in GOALS
    ]
    return Results(
        case=case,
        kernel=kernel,
        tier=tier,
        selection="full",
        commit="HEAD",
        date="2026-11-23",
        release=f"{kernel}.0-amd64",
        tests=len(made),
        outcomes=made,
    )


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables_count_what_ran() -> None:
    results = [
        ran("7.2", "lsm", "tests", "passed", "skipped", "failed"),
        ran("6.1", "tracepoint", "tests", "passed", "passed"),
        ran("6.1", "tracepoint", "boot", "passed"),
    ]
    found = list(rows(table.render(results, GOALS)))
    assert [row[:6] for row in found[1:4]] == [
        ["6.1.0-amd64", "`tracepoint`", "full", "2", "0", "0"],
        ["6.1.0-amd64", "`tracepoint`", "full", "4", "0", "0"],
        ["7.2.0-amd64", "`lsm`", "full", "2", "2", "2"],
    ]
    assert found[4] == ["tests", "what they show", "6.1 `tracepoint`", "7.2 `lsm`"]
    assert found[5][1:] == ["Reload", "2", "1, 1 failed, 1 skipped"]


def test_a_machine_that_broke_off_counts_as_a_failure() -> None:
    broken = ran("6.1", "lsm", "tests", "passed")
    broken.broken = "it hung"
    assert list(rows(table.render([broken], GOALS)))[1][3:6] == ["2", "1", "0"]
    assert not broken.good


@pytest.mark.parametrize(
    ("outcomes", "tests", "good"),
    [
        (("passed",), 2, True),
        (("passed", "skipped"), 4, True),
        (("passed", "failed"), 4, False),
        (("passed",), 3, False),
        ((), 0, False),
    ],
)
def test_good_is_only_what_ran_to_its_end(outcomes: tuple[str, ...], tests: int, good: bool) -> None:  # noqa: FBT001 - the expectation
    results = ran("6.1", "lsm", "tests", *outcomes)
    results.tests = tests
    assert results.good is good


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = ran("6.12", "lsm", "crash", "passed")
    assert load(results.save(tmp_path)) == results
    assert [path.name for path in tmp_path.iterdir()] == ["6.12-lsm-crash.json"]


def test_tables_are_written_between_the_marks_again_and_again() -> None:
    document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.replaced(document, "| new |")
    assert "old" not in once
    assert table.replaced(once, "| new |") == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    with pytest.raises(ValueError, match="marks"):
        table.replaced("no marks", "")


def test_the_document_s_tables_are_whole_and_name_what_is_there() -> None:
    text = table.DOCUMENT.read_text()
    assert table.BEGIN in text
    generated = text.split(table.BEGIN)[1].split(table.END)[0]
    widths = {len(row) for row in rows(generated.split("\n| tests |")[0])}
    assert widths <= {8}
    for file in re.findall(r"\]\(\.\./(tests/[^)]*)\)", generated):
        assert (REPOSITORY / file).is_file(), file
    for kernel, tier in re.findall(r"(\d\.\d+) `(\w+)`", generated):
        assert kernel in SUITES
        assert tier in LSM


def test_the_quick_selection_names_what_is_there() -> None:
    for selected in quick_tests():
        file, _, name = selected.partition("::")
        tree = ast.parse((REPOSITORY / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in functions, selected


def test_setup_installs_every_tool_that_is_asked_for() -> None:
    assert set(image.setup_list("machines")) == set(host.TOOLS.values())


def test_every_observer_is_there() -> None:
    for module in filter(None, suite.CASES.values()):
        assert (REPOSITORY / f"tests/vm/guest/{module}.py").is_file()
