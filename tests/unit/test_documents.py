"""The documents say what the code does: tables, commands, examples, links and tests that they name."""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.cli.main import _MODULES, INTERRUPTED, UNHEARD, _parser
from egs_kernel.config import (
    AuthorityConfig,
    Config,
    ConsoleConfig,
    DriftConfig,
    MetricsConfig,
    RecordConfig,
    RevocationConfig,
    ScopeConfig,
    WitnessConfig,
    parse_config,
)
from egs_kernel.errors import ExitCode
from egs_kernel.filesystems import KNOWN, TRUSTED
from egs_kernel.gate.parts import CALLED, GUARDS, HOOKS, LSM_MAPS, MAPS, SKIP_GUARDS, TRACEPOINTS
from egs_kernel.model import LAST_GATE_REASON, Reason
from tests.unit.test_imports import LAYERS

REPOSITORY: Final = Path(__file__).parents[2]
DOCS: Final = REPOSITORY / "docs"
PAGES: Final = sorted([*DOCS.glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"])


def page(name: str) -> str:
    return (DOCS / name).read_text()


# -- architecture.md ---------------------------------------------------------------------------------


def test_the_table_of_reasons_is_the_enum() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([^|]*) \| [^|]+ \|$", page("architecture.md"), re.MULTILINE)
    assert [(int(number), code) for number, code, _ in rows] == [
        (reason.value, reason.code) for reason in Reason
    ]
    by_gate = {code for _, code, who in rows if "gate" in who.split(", ")}
    assert {reason.code for reason in Reason if 0 < reason <= LAST_GATE_REASON} <= by_gate


def test_the_order_of_the_decision_names_every_reason_of_the_gate_once() -> None:
    section = page("architecture.md").split("## The decision")[1].split("Of several standing grants")[0]
    steps = re.findall(r"^(\d+)\. [^\n]*?((?:`\w+`(?:, )?)+)(?:\.[^\n`]*)?$", section, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    named = [code for _, codes in steps for code in re.findall(r"`(\w+)`", codes)]
    assert sorted(named) == sorted(reason.code for reason in Reason if 0 < reason <= LAST_GATE_REASON)


def test_the_order_of_the_decision_is_that_of_the_c() -> None:
    """Inside of one grant; what comes before is one expression each."""
    source = (REPOSITORY / "bpf/decide.bpf.c").read_text()
    body = source.split("static __always_inline u32 conditions_hold")[1].split("\n}\n")[0]
    asked = [Reason[name].code for name in re.findall(r"return EGS_(\w+);", body) if name != "AUTHORIZED"]
    section = page("architecture.md").split("## The decision")[1]
    places = [section.index(f"`{code}`") for code in asked]
    assert places == sorted(places)
    assert len(places) > 10


def test_every_hook_and_map_is_described() -> None:
    section = page("architecture.md").split("## Hooks and maps")[1].split("## How a scope")[0]
    assert set(re.findall(r"`(\w+)`", section)) >= {
        *TRACEPOINTS,
        *SKIP_GUARDS,
        *GUARDS,
        *HOOKS,
        *CALLED,
        *MAPS,
        *LSM_MAPS,
    }
    for program, tracepoint in {**TRACEPOINTS, **SKIP_GUARDS, **GUARDS, **HOOKS}.items():
        assert any(program in line and tracepoint in line for line in section.splitlines()), program


def test_the_import_direction() -> None:
    said = page("architecture.md").split("and never up: ")[1].split(", where each")[0].replace("\n", " ")
    layers = [{name.strip() for name in layer.split(",")} for layer in said.split("→")]
    assert layers == list(LAYERS)


# -- commands.md -------------------------------------------------------------------------------------


def commands(
    parser: argparse.ArgumentParser, words: str = "egs"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with its whole name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for word, inner in group.choices.items():
            yield from commands(inner, f"{words} {word}")


ALL: Final = {
    name: parser
    for words in _MODULES.values()
    for word in words
    for name, parser in commands(_parser([word]))
    if name.split()[1] == word
}


@pytest.mark.parametrize("name", ALL)
def test_a_command_is_described_with_its_options(name: str) -> None:
    text = page("commands.md")
    assert f"`{name}" in text, name
    options = {
        option for action in ALL[name]._actions for option in action.option_strings if option[:2] == "--"
    }
    missing = {
        option
        for option in options - {"--help", "--json"}
        if f"{option}`" not in text and f"{option} " not in text and f"{option}]" not in text
    }
    assert not missing


def test_no_command_is_described_that_is_not_there() -> None:
    described = re.findall(r"^\| `(egs [a-z ]+[a-z](?:-[a-z]+)?)", page("commands.md"), re.MULTILINE)
    known = {*ALL, "egs run"}
    for words in described:
        assert any(f"{words} ".startswith(f"{name} ") for name in known), words


def test_every_exit_code() -> None:
    codes = re.findall(r"^\| (\d+) \| ", page("commands.md"), re.MULTILINE)
    assert {int(code) for code in codes} == {*ExitCode, INTERRUPTED, UNHEARD}


# -- configuration.md --------------------------------------------------------------------------------


PLURALS: Final = {"scopes": "scope", "witnesses": "witness"}


def example() -> str:
    found = re.search(r"```toml\n(.*?)```", page("configuration.md"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_a_configuration_and_uses_every_setting() -> None:
    config = parse_config(example().encode())
    assert [scope.name for scope in config.scopes] == ["agents", "compilers", "contractors"]
    table = tomllib.loads(example())
    assert table.keys() == {PLURALS.get(name, name) for name in Config.__struct_fields__}
    assert table["metrics"].keys() == set(MetricsConfig.__struct_fields__)
    assert table["console"].keys() == set(ConsoleConfig.__struct_fields__)
    assert table["record"].keys() == set(RecordConfig.__struct_fields__)
    assert table["revocation"].keys() == set(RevocationConfig.__struct_fields__)
    assert table["authority"].keys() == set(AuthorityConfig.__struct_fields__)
    assert table["witness"][0].keys() == set(WitnessConfig.__struct_fields__)


def test_every_setting_is_described() -> None:
    text = page("configuration.md")
    for name in {
        *Config.__struct_fields__,
        *ScopeConfig.__struct_fields__,
        *MetricsConfig.__struct_fields__,
        *ConsoleConfig.__struct_fields__,
        *RecordConfig.__struct_fields__,
        *RevocationConfig.__struct_fields__,
        *WitnessConfig.__struct_fields__,
        *DriftConfig.__struct_fields__,
        *AuthorityConfig.__struct_fields__,
    } - {"scopes", "metrics", "console", "record", "revocation", "witnesses", "drift", "authority"}:
        assert f"`{name}`" in text, name
    for name in TRUSTED | KNOWN:
        assert name in text, name


# -- all of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    for name, function in re.findall(
        r"`((?:tests|egs_kernel|bpf|scripts|systemd)/[\w./-]+?)(?:::(\w+))?`", path.read_text()
    ):
        assert (REPOSITORY / name).exists(), name
        if function:
            tree = ast.parse((REPOSITORY / name).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
                function
            )


def test_the_licences_are_where_pyproject_says() -> None:
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (REPOSITORY / "LICENSES/GPL-2.0-only.txt").read_text()
    for source in (REPOSITORY / "bpf").iterdir():
        assert "SPDX-License-Identifier: GPL-2.0-only" in source.read_text(), source
