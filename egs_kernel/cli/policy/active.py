"""`egs policy activate|show`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.cli.client import ask
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.policy.sources import Given, read_bytes, read_set
from egs_kernel.cli.policy.writing import described
from egs_kernel.daemon import protocol
from egs_kernel.errors import ExitCode, Refused, Unreachable
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.policy.lockout import REMEDY, warnings
from egs_kernel.policy.manifest import SET_LIMIT

if TYPE_CHECKING:
    import argparse

_NAMED: Final = 5


def activate(options: argparse.Namespace) -> int:
    """Warn, then ask the daemon."""
    paths = Paths.from_environment()
    given = read_set(options.file)
    told = [*warnings(given.parsed), *_orphans(paths, given)]
    if told and not options.anyway:
        if not options.json:
            print_lines(f"warning: {text}" for text in told)
            print_lines([REMEDY])
        raise Refused(
            Reason.POLICY_DENIED,
            f"not activated: {'; '.join(told)}",
            "If that is what you want: egs policy activate --anyway FILE",
        )
    content = read_bytes(options.file, SET_LIMIT)
    done = ask(paths, protocol.ActivatePolicyRequest(content=content), protocol.Done)
    if options.json:
        print_json({**described(given), "warnings": told})
    else:
        print_lines([f"{done.id} {done.message}"])
    return ExitCode.DONE


def show(options: argparse.Namespace) -> int:
    """The set, and, of the active one, whether it can be asked."""
    given = read_set(options.set)
    state = None if options.set is not None else _state()
    answer: dict[str, Any] = {
        **described(given),
        "description": given.manifest.description,
        "signed_by": sorted(given.envelope.signatures) if given.envelope is not None else [],
        "policies": sorted(given.parsed.policies),
        "daemon": None
        if state is None
        else {"digest": state.digest, "problem": state.problem, "evaluator": state.pid},
    }
    if options.json:
        print_json(answer)
        return ExitCode.DONE
    manifest = given.manifest
    print_lines([f"{manifest.name} version {manifest.version} for {', '.join(manifest.scopes)}"])
    if manifest.description:
        print_lines([manifest.description])
    print_lines([f"digest    {answer['digest']}"])
    print_lines(f"signed by {keyid}" for keyid in answer["signed_by"])
    if state is not None:
        agrees = "goes by it" if state.digest == answer["digest"] else f"goes by another one: {state.digest}"
        print_lines([f"egsd      {state.problem or agrees}"])
    print_lines([f"policies  {', '.join(answer['policies'])}"])
    return ExitCode.DONE


def _orphans(paths: Paths, given: Given) -> list[str]:
    """What stands now in its scopes was issued under another set, and will not stand any more."""
    state = ask(paths, protocol.PolicyRequest(), protocol.PolicyAnswer)
    if state.digest == given.manifest.digest:
        return []
    listed = ask(paths, protocol.ArtifactsRequest(), protocol.ArtifactsAnswer).artifacts
    standing = [item for item in listed if item.state == "standing" and given.manifest.governs(item.scope)]
    if not standing:
        return []
    named = ", ".join(item.file for item in standing[:_NAMED]) + (" …" if len(standing) > _NAMED else "")
    issued = f"{len(standing)} standing artifacts in its scopes were issued under another policy set"
    return [f"{issued}, and are refused until they are issued again: {named}"]


def _state() -> protocol.PolicyAnswer | None:
    """What the daemon says; None when it is not there to be asked, or not by us."""
    if os.geteuid() != 0:
        return None
    try:
        return ask(Paths.from_environment(), protocol.PolicyRequest(), protocol.PolicyAnswer)
    except Unreachable:
        return None
