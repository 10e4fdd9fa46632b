"""docs/threat-model.md and the tests say the same: what is claimed is tested, and what attacks is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
PAGE: Final = (REPOSITORY / "docs/threat-model.md").read_text()
ADVERSARIAL: Final = sorted(
    str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests/adversarial").glob("test_*.py")
)
SECTIONS: Final = dict(re.findall(r"^### ([TO]-\d+) [^\n]+\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
WITHOUT_TEST: Final = {"O-12"}
"""Open points that need no demonstration."""


def named_tests(section: str) -> list[str]:
    lines = re.findall(r"^(?:Tested|Shown) by: (.*)$", SECTIONS[section], re.MULTILINE)
    return [name for line in lines for name in re.findall(r"`(tests/[^`]+)`", line)]


def functions_of(path: str) -> set[str]:
    tree = ast.parse((REPOSITORY / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def sections_named_in(path: str) -> set[str]:
    """`T-1`, and `O-5 to O-10`, in the docstring of a test file."""
    text = ast.get_docstring(ast.parse((REPOSITORY / path).read_text())) or ""
    found = set(re.findall(r"\b[TO]-\d+\b", text))
    for kind, first, last in re.findall(r"\b([TO])-(\d+) to [TO]-(\d+)\b", text):
        found |= {f"{kind}-{number}" for number in range(int(first), int(last) + 1)}
    return found


def test_the_numbers_are_in_order() -> None:
    for kind in "TO":
        numbers = [int(section[2:]) for section in SECTIONS if section[0] == kind]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_names_tests_that_exist(section: str) -> None:
    named = named_tests(section)
    assert bool(named) is (section not in WITHOUT_TEST)
    for name in named:
        path, _, function = name.partition("::")
        assert (REPOSITORY / path).is_file(), name
        assert not function or function in functions_of(path), name


def test_every_claim_says_tested_and_every_open_point_says_shown() -> None:
    for section, text in SECTIONS.items():
        assert ("Shown by:" if section[0] == "T" else "Tested by:") not in text, section


@pytest.mark.parametrize("path", ADVERSARIAL)
def test_an_attack_belongs_to_a_section(path: str) -> None:
    """The file says to which, and those sections name the file."""
    named = sections_named_in(path)
    assert named
    assert named == {
        section for section in SECTIONS if any(name.split("::")[0] == path for name in named_tests(section))
    }


def test_open_points_that_a_test_names_are_those_of_its_name() -> None:
    for path in ADVERSARIAL:
        for function in functions_of(path):
            if match := re.match(r"test_o(\d+)_", function):
                assert any(name in (path, f"{path}::{function}") for name in named_tests(f"O-{match[1]}")), (
                    function
                )
