"""`egs policy starters|check|test|sign`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import egs_kernel.policy
from egs_kernel.artifact.envelope import sign, sign_also
from egs_kernel.cli.files import replace_file
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.cli.policy.sources import Given, read_set
from egs_kernel.cli.signing import open_keys
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.model import Reason
from egs_kernel.policy.lockout import REMEDY, warnings
from egs_kernel.policy.manifest import PAYLOAD_TYPE, SET_LIMIT
from egs_kernel.policy.testing import Outcome, run_tests, untested

if TYPE_CHECKING:
    import argparse

_STARTERS: Final = Path(egs_kernel.policy.__file__).parent / "starters"


def starters(options: argparse.Namespace) -> int:
    """List them, or copy one."""
    known = {path.name: path for path in sorted(_STARTERS.iterdir()) if path.is_dir()}
    if options.name is None:
        listed = {name: read_set(path).manifest.description or "" for name, path in known.items()}
        if options.json:
            print_json([{"name": name, "description": text} for name, text in listed.items()])
        else:
            print_lines(columns(("NAME", "WHAT"), list(listed.items())))
        return ExitCode.DONE
    if options.name not in known:
        raise UsageError(
            Reason.NOT_FOUND, f"there is no starter {options.name!r}", "Run: egs policy starters"
        )
    if options.out is None:
        raise UsageError(
            Reason.USAGE, "where to is not said", f"Run: egs policy starters {options.name} --out DIR"
        )
    try:
        shutil.copytree(known[options.name], options.out, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise UsageError(
            Reason.USAGE,
            f"cannot write {options.out}: {error.strerror or error}",
            "Name a folder that does not exist yet.",
        ) from error
    if options.json:
        print_json({"name": options.name, "folder": str(options.out)})
    else:
        print_lines([f"{options.out}: change policy.toml and the tests, then: egs policy test {options.out}"])
    return ExitCode.DONE


def check(options: argparse.Namespace) -> int:
    """Whether a set is one."""
    given = read_set(options.set)
    policy_set = given.parsed
    warned = warnings(policy_set, given.tests)
    answer = {
        **described(given),
        "policies": [
            {"id": policy.id, "effect": policy.effect, "file": policy.file, "line": policy.place.line}
            for policy in policy_set.policies.values()
        ],
        "warnings": list(warned),
    }
    if options.json:
        print_json(answer)
        return ExitCode.DONE
    manifest = given.manifest
    print_lines(
        [f"{manifest.name} version {manifest.version} for {', '.join(manifest.scopes)}: {policy_set.digest}"]
    )
    rows = [
        (policy.id, policy.effect, f"{policy.file}:{policy.place.line}")
        for policy in policy_set.policies.values()
    ]
    print_lines(columns(("POLICY", "EFFECT", "WHERE"), rows))
    print_lines(f"warning: {text}" for text in warned)
    if warned:
        print_lines([REMEDY])
    return ExitCode.DONE


def test(options: argparse.Namespace) -> int:
    """Run its tests."""
    given = read_set(options.set)
    if not given.tests:
        raise UsageError(
            Reason.NOT_FOUND, f"{options.set} has no tests", "Write tests/NAME.toml: docs/policy.md"
        )
    policy_set = given.parsed
    outcomes = run_tests(policy_set, given.tests)
    rest = untested(policy_set, outcomes)
    failed = [outcome for outcome in outcomes if outcome.problems]
    if options.json:
        print_json(
            {
                "passed": len(outcomes) - len(failed),
                "failed": len(failed),
                "untested": list(rest),
                "tests": [_outcome(outcome) for outcome in outcomes],
            }
        )
    else:
        for outcome in outcomes:
            print_lines(
                [f"{'FAILED' if outcome.problems else 'passed'}  {outcome.case.file}: {outcome.case.name}"]
            )
            print_lines(f"        {problem}" for problem in outcome.problems)
        print_lines([f"{len(outcomes) - len(failed)} passed, {len(failed)} failed"])
        if rest:
            print_lines([f"no test is decided by: {', '.join(rest)}"])
    return ExitCode.REFUSED if failed else ExitCode.DONE


def sign_set(options: argparse.Namespace) -> int:
    """Sign a folder, or sign a signed file as well."""
    given = read_set(options.set)
    out: Path | None = options.out or (options.set if given.envelope is not None else None)
    if out is None:
        raise UsageError(Reason.USAGE, "where to is not said", "Add --out FILE.")
    policy_set = given.parsed
    failed = [outcome.case.name for outcome in run_tests(policy_set, given.tests or ()) if outcome.problems]
    if failed:
        raise Refused(
            Reason.POLICY_INVALID,
            f"its test fails: {failed[0]}",
            f"Correct it, then: egs policy test {options.set}",
        )
    signers = open_keys(options)
    if given.envelope is None:
        content = sign(given.manifest.payload, signers, PAYLOAD_TYPE, SET_LIMIT)
    else:
        content = sign_also(given.envelope, signers, SET_LIMIT)
    replace_file(out, content)
    answer = {
        **described(given),
        "file": str(out),
        "signed_by": [signer.public_key.keyid for signer in signers],
    }
    if options.json:
        print_json(answer)
    else:
        print_lines([f"{out}: {given.manifest.name} version {given.manifest.version}, {answer['digest']}"])
    return ExitCode.DONE


def described(given: Given) -> dict[str, Any]:
    """What names a set."""
    manifest = given.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "scopes": list(manifest.scopes),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.case.name,
        "file": outcome.case.file,
        "passed": not outcome.problems,
        "effect": outcome.evaluation.effect.value,
        "determining": list(outcome.evaluation.determining),
        "problems": list(outcome.problems),
    }
