"""The tests of a policy set, and what they leave untested."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from egs_kernel.policy.evaluate import answer, approvals_needed
from egs_kernel.policy.evaluation import Evaluation
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.source import Case


@dataclass(frozen=True)
class Outcome:
    """What came of a test. `problems` is empty when it passed."""

    case: Case
    evaluation: Evaluation
    problems: tuple[str, ...]


def run_tests(policy_set: PolicySet, cases: Iterable[Case]) -> list[Outcome]:
    """What the set says to every test."""
    return [_run(policy_set, case) for case in cases]


def untested(policy_set: PolicySet, outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """The policies that decided no test."""
    decided = {name for outcome in outcomes for name in outcome.evaluation.determining}
    return tuple(sorted(set(policy_set.policies) - decided))


def _run(policy_set: PolicySet, case: Case) -> Outcome:
    evaluation = answer(policy_set, case.question)
    problems: list[str] = []
    if evaluation.effect.value != case.expect:
        said = ", ".join(evaluation.determining) or "nothing permits it"
        problems.append(f"expected {case.expect}, the set says {evaluation.effect.value}: {said}")
    elif case.by is not None and case.by != evaluation.determining:
        problems.append(f"expected it of {_names(case.by)}, it was {_names(evaluation.determining)}")
    if case.approvals is not None:
        needed = approvals_needed(policy_set, case.question)
        if needed != case.approvals:
            problems.append(f"expected it to take {case.approvals} approvals, it takes {_count(needed)}")
    problems += evaluation.errors
    return Outcome(case, evaluation, tuple(problems))


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no policy"


def _count(needed: int | None) -> str:
    return "more than there can be" if needed is None else str(needed)
