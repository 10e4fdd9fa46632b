"""`egs policy explain|diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.cli.policy.sources import read_bytes, read_set
from egs_kernel.errors import ExitCode
from egs_kernel.policy.difference import difference
from egs_kernel.policy.evaluate import answer, approvals_needed, evaluate
from egs_kernel.policy.requests import requests_for
from egs_kernel.policy.source import parse_question

if TYPE_CHECKING:
    import argparse

    from egs_kernel.policy.questions import Question
    from egs_kernel.policy.sets import PolicySet

_LARGEST_INTENT = 256 * 1024


def explain(options: argparse.Namespace) -> int:
    """What a set says to an intent, or to a command."""
    policy_set = read_set(options.set).parsed
    question = _question(options, policy_set)
    whole = answer(policy_set, question)
    needed = approvals_needed(policy_set, question)
    asked = [
        (request, evaluate(policy_set, request), policy_set.slices.names(request))
        for request in requests_for(question, policy_set.catalog)
    ]
    if options.json:
        print_json(
            {
                **msgspec.to_builtins(whole),
                "approvals_needed": needed,
                "requests": [
                    {
                        "principal": str(request.principal),
                        "action": str(request.action),
                        "resource": str(request.resource),
                        "considered": list(considered),
                        **msgspec.to_builtins(said),
                    }
                    for request, said, considered in asked
                ],
            }
        )
        return ExitCode.DONE if whole.permitted else ExitCode.REFUSED
    print_lines(
        [
            f"{whole.effect.value}, by {policy_set.name} version {policy_set.version} ({policy_set.digest[:12]})"
        ]
    )
    for request, said, considered in asked:
        print_lines(["", f"{request.principal} {request.action.id} {request.resource}: {said.effect.value}"])
        print_lines(f"  {line}" for line in _policies(policy_set, said.determining, considered))
        print_lines(f"  {text}" for text in said.advice)
        print_lines(f"  failed: {text}" for text in said.errors)
    if not whole.permitted:
        print_lines(["", _remedy(needed)])
    return ExitCode.DONE if whole.permitted else ExitCode.REFUSED


def _question(options: argparse.Namespace, policy_set: PolicySet) -> Question:
    if len(options.what) == 1 and options.what[0].endswith(".toml"):
        path = Path(options.what[0])
        return parse_question(str(path), read_bytes(path, _LARGEST_INTENT))
    from egs_kernel.cli.policy.here import question_here  # noqa: PLC0415 - what commands take, files do not

    return question_here(options, options.what, policy_set)


def diff(options: argparse.Namespace) -> int:
    """What changes."""
    before = read_set(options.before if options.after is not None else None)
    after = read_set(options.after if options.after is not None else options.before)
    found = difference(before.parsed, after.parsed, [*(before.tests or ()), *(after.tests or ())])
    if options.json:
        print_json(
            {
                "before": before.manifest.digest,
                "after": after.manifest.digest,
                **msgspec.to_builtins(found),
            }
        )
        return ExitCode.DONE
    one, other = before.manifest, after.manifest
    print_lines([f"{one.name} version {one.version} → {other.name} version {other.version}"])
    if found.changes:
        print_lines(
            columns(
                ("WHAT", "NAME", "CHANGE"), [(item.what, item.name, item.change) for item in found.changes]
            )
        )
    else:
        print_lines(["no policy, no scope and nothing in the catalog differs"])
    print_lines(
        f"{turn.test}: {turn.before.value} → {turn.after.value} ({', '.join(turn.by) or 'nothing permits it'})"
        for turn in found.turns
    )
    print_lines([f"{len(found.turns)} of {found.asked} questions get another answer"])
    return ExitCode.DONE


def _policies(policy_set: PolicySet, determining: tuple[str, ...], considered: tuple[str, ...]) -> list[str]:
    lines = []
    for name in considered:
        policy = policy_set.policies[name]
        mark = "decides" if name in determining else "does not"
        lines.append(f"{mark}  {policy.effect:6}  {name}  ({policy.file}:{policy.place.line})")
    return lines or ["no policy is about this"]


def _remedy(needed: int | None) -> str:
    if needed is None:
        return "No approval would change that."
    return f"With {needed} approval{'s' if needed > 1 else ''} it would be permitted."
