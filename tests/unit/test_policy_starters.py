"""The sets that people copy: each passes its own tests, tests every policy, and locks nobody out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import egs_kernel.policy
from egs_kernel.policy.lockout import warnings
from egs_kernel.policy.manifest import TYPE, Manifest
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.source import Source, parse_source
from egs_kernel.policy.testing import run_tests, untested
from egs_kernel.policy.vocabulary import SCHEMA

FOLDER = Path(egs_kernel.policy.__file__).parent / "starters"
STARTERS = sorted(path.name for path in FOLDER.iterdir())


def source(name: str) -> Source:
    folder = FOLDER / name
    return parse_source(
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    )


def test_the_starters_are_those_that_are_documented() -> None:
    assert STARTERS == ["ai-agent", "break-glass", "ci-runner", "regulated-batch"]


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_passes_its_tests_and_tests_all_of_its_policies(name: str) -> None:
    found = source(name)
    policy_set = PolicySet.of(found.manifest)
    outcomes = run_tests(policy_set, found.tests)
    assert [(outcome.case.name, outcome.problems) for outcome in outcomes if outcome.problems] == []
    assert untested(policy_set, outcomes) == ()
    assert warnings(policy_set, found.tests) == ()
    assert {case.expect for case in found.tests} == {"permit", "deny"}


@pytest.mark.parametrize("name", STARTERS)
def test_a_test_of_a_starter_can_fail(name: str) -> None:
    """Without its forbids, what they deny is permitted or denied by nothing: the tests notice."""
    found = source(name)
    permits = {
        policy.id: policy.text
        for policy in PolicySet.of(found.manifest).policies.values()
        if policy.effect == "permit"
    }
    lax = msgspec.structs.replace(found.manifest, policies={"a.cedar": "\n".join(permits.values())})
    assert any(outcome.problems for outcome in run_tests(PolicySet.of(lax), found.tests))


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('@id("a") forbid(principal, action, resource);', "a forbids it"),
        ('@id("a") permit(principal, action == Action::"load", resource);', "nothing permits it"),
        (
            '@id("a") permit(principal, action, resource);\n@id("shut") forbid(principal, action in Action::"run", resource);',
            "shut forbids it",
        ),
        ('@id("a") permit(principal, action, resource) when { 1 == 2 };', "nothing permits it"),
    ],
)
def test_a_set_that_locks_everyone_out_is_told(text: str, warning: str) -> None:
    manifest = Manifest(
        type=TYPE, name="t", version=1, scopes=("*",), policies={"a.cedar": text}, schema=SCHEMA
    )
    (said,) = warnings(PolicySet.of(manifest))
    assert said == f"it locks everyone out: whatever is asked, {warning}"


def test_tests_that_permit_nothing_are_told() -> None:
    found = source("ai-agent")
    denying = [case for case in found.tests if case.expect == "deny"]
    (said,) = warnings(PolicySet.of(found.manifest), denying)
    assert said.startswith("none of its tests expects a permit")
