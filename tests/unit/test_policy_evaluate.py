"""What a policy set says: by Cedar's rules, and the same every time."""

from __future__ import annotations

import msgspec
import pytest

from egs_kernel.policy.catalog import Agent, Catalog, Files
from egs_kernel.policy.evaluate import answer, approvals_needed, evaluate_all
from egs_kernel.policy.evaluation import Effect
from egs_kernel.policy.manifest import TYPE, Manifest
from egs_kernel.policy.questions import File, Host, Program, Question, Who
from egs_kernel.policy.requests import requests_for
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.vocabulary import SCHEMA

GIT = Program(path="/usr/bin/git", digest="1" * 64, package="git")
CATALOG = Catalog(
    agent=(Agent(name="research", account="egs-agent", tools=("git",)),),
    tool=(Files(name="git", paths=("/usr/bin/git",)),),
    label=(Files(name="reviewed", digests=("2" * 64,)),),
)
POLICIES = """
@id("agent-tools")
permit(principal is Agent, action == Action::"execute", resource) when { resource in principal.tools };

@id("reviewed-scripts")
permit(principal, action == Action::"load", resource in Label::"reviewed");

@id("four-eyes")
permit(principal in Group::"traders", action, resource) when { context.approvals >= 2 };

@id("no-nights") @advice("Ask between 06:00 and 22:00 UTC.")
forbid(principal, action, resource) unless {
  context.now.toTime() >= duration("6h") && context.now.toTime() < duration("22h")
};
"""


def policy_set(text: str = POLICIES, **changes: object) -> PolicySet:
    manifest = Manifest(
        type=TYPE,
        name="tests",
        version=1,
        scopes=("*",),
        policies={"a.cedar": text},
        schema=SCHEMA,
        catalog=CATALOG,
    )
    return PolicySet.of(msgspec.structs.replace(manifest, **changes))


def question(**changes: object) -> Question:
    asked = Question(
        scope="agents",
        now="2026-11-23T14:00:00Z",
        who=Who(account="egs-agent", uid=990),
        host=Host(id="host-1"),
        program=GIT,
        argv=("git", "log"),
        valid_seconds=600,
    )
    return msgspec.structs.replace(asked, **changes)


def test_what_is_permitted_says_by_what() -> None:
    said = answer(policy_set(), question())
    assert (said.effect, said.determining, said.errors) == (Effect.PERMIT, ("agent-tools",), ())
    assert said.policy_digest == policy_set().manifest.digest


def test_what_nothing_permits_is_denied() -> None:
    said = answer(policy_set(), question(who=Who(account="anna")))
    assert (said.effect, said.determining) == (Effect.DENY, ())


def test_a_forbid_wins_and_says_why() -> None:
    said = answer(policy_set(), question(now="2026-11-23T23:00:00Z"))
    assert (said.effect, said.determining) == (Effect.DENY, ("no-nights",))
    assert said.advice == ("Ask between 06:00 and 22:00 UTC.",)


@pytest.mark.parametrize(("digest", "effect"), [("2" * 64, Effect.PERMIT), ("3" * 64, Effect.DENY)])
def test_every_script_must_be_permitted(digest: str, effect: Effect) -> None:
    assert answer(policy_set(), question(scripts=(File(path="/srv/a.py", digest=digest),))).effect is effect


def test_how_many_approvals_it_takes() -> None:
    asked = question(who=Who(account="anna", groups=("traders",)))
    assert approvals_needed(policy_set(), asked) == 2
    assert approvals_needed(policy_set(), question()) == 0
    assert approvals_needed(policy_set(), question(who=Who(account="bob"))) is None


def test_a_policy_that_fails_denies() -> None:
    """Cedar would leave the forbid out, and permit."""
    text = """@id("all") permit(principal, action, resource);
    @id("sum") forbid(principal, action, resource) when { context.validSeconds * 9223372036854775807 > 1 };"""
    said = answer(policy_set(text), question())
    assert said.effect is Effect.DENY
    assert said.errors


def test_the_same_question_gets_the_same_bytes() -> None:
    many = "".join(f'@id("p{number}") permit(principal, action, resource);' for number in range(40))
    asked = question()
    answers = {answer(policy_set(many), asked).canonical for _ in range(5)}
    assert len(answers) == 1


def test_nothing_asked_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="nothing is asked"):
        evaluate_all(policy_set(), ())


def test_requests_name_each_file_once() -> None:
    asked = question(children=(GIT,), scripts=(File(path="/srv/a.py", digest="2" * 64),))
    requests = requests_for(asked, CATALOG)
    assert [request.action.id for request in requests] == ["execute", "load", "start"]
    assert all(
        len({entity.uid for entity in request.entities}) == len(request.entities) for request in requests
    )


def test_parsed_selections_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egs_kernel.policy.slices._MOST_SLICES", 3)
    many = "".join(
        f'@id("p{number}") permit(principal == User::"u{number}", action, resource);' for number in range(9)
    )
    found = policy_set(many)
    for _ in range(2):
        for number in range(9):
            said = answer(found, question(who=Who(account=f"u{number}")))
            assert said.determining == (f"p{number}",)
            assert len(found.slices._parsed) <= 3


def test_approvals_that_no_policy_reads_change_nothing() -> None:
    permitting = policy_set('@id("a") permit(principal == User::"anna", action, resource);')
    assert approvals_needed(permitting, question(who=Who(account="anna"))) == 0
    assert approvals_needed(permitting, question(who=Who(account="bob"))) is None
