"""What changes from one policy set to another: in its texts, and in what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from egs_kernel.policy.evaluate import answer
from egs_kernel.policy.evaluation import Effect
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.source import Case


class Change(msgspec.Struct, frozen=True):
    """A policy, or something in the catalog, that is in one set only, or differs."""

    what: Literal["policy", "agent", "workload", "user", "tool", "label", "scope"]
    name: str
    change: Literal["added", "removed", "changed"]


class Turn(msgspec.Struct, frozen=True):
    """A question that gets another answer."""

    test: str
    before: Effect
    after: Effect
    by: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True):
    """`turns`: of the questions of both sets' tests, those that get another answer; `asked`: how many they were."""

    changes: tuple[Change, ...]
    turns: tuple[Turn, ...]
    asked: int


def difference(before: PolicySet, after: PolicySet, cases: Iterable[Case]) -> Difference:
    """What changes.

    Args:
        before: the one set.
        after: the other.
        cases: tests whose questions both are asked.
    """
    changes = [
        *_changes("policy", _texts(before), _texts(after)),
        *_changes(
            "scope", dict.fromkeys(before.manifest.scopes, ""), dict.fromkeys(after.manifest.scopes, "")
        ),
    ]
    for kind in before.catalog.__struct_fields__:
        entries = (
            {entry.name: msgspec.json.encode(entry).decode() for entry in getattr(each.catalog, kind)}
            for each in (before, after)
        )
        changes += _changes(kind, *entries)
    asked = list(cases)
    turns = [turn for case in asked if (turn := _turn(before, after, case)) is not None]
    return Difference(tuple(changes), tuple(turns), len(asked))


def _texts(policy_set: PolicySet) -> dict[str, str]:
    return {name: msgspec.json.encode(policy.json).decode() for name, policy in policy_set.policies.items()}


def _changes(kind: str, before: dict[str, str], after: dict[str, str]) -> list[Change]:
    found: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            found.append(Change(kind, name, "added"))  # type: ignore[arg-type] # the catalog's tables are these words
        elif name not in after:
            found.append(Change(kind, name, "removed"))  # type: ignore[arg-type] # as above
        elif before[name] != after[name]:
            found.append(Change(kind, name, "changed"))  # type: ignore[arg-type] # as above
    return found


def _turn(before: PolicySet, after: PolicySet, case: Case) -> Turn | None:
    one, other = answer(before, case.question), answer(after, case.question)
    return (
        None if one.effect is other.effect else Turn(case.name, one.effect, other.effect, other.determining)
    )
