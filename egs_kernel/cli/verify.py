"""`egs verify` and `egs show`: artifacts read offline, by anyone, with public keys alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.revocations import LIST_LIMIT
from egs_kernel.artifact.statement import format_time, parse_statement, parse_time
from egs_kernel.checks.revocation import applies, authenticate_list, check_revoked, merged
from egs_kernel.checks.subjects import check_bound, check_digest, check_script
from egs_kernel.cli.files import inspect_program, read_artifact, read_file
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.paths import Paths
from egs_kernel.trust.store import TrustStore
from egs_kernel.verify import STEPS, Artifact, Step, artifact_id, authenticate, check_window

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.files import Program
    from egs_kernel.cli.main import Commands

_MARKS = {
    "passed": "\N{CHECK MARK}",
    "failed": "\N{BALLOT X}",
    "host": "\N{EN DASH}",
    "skipped": "\N{EN DASH}",
}
_NOTES = {"host": "  (only the host can tell)", "skipped": "  (not checked)"}
_OFFLINE_PART = {
    Step.DIGEST: "  (the file that was named; the host measures the others)",
    Step.INTENT: "  (bound where they must be; the host compares them)",
    Step.REVOCATION: "  (by the lists that were named)",
}


def add_commands(commands: Commands) -> None:
    """Add `verify` and `show`."""
    verify = commands.add_parser(
        "verify",
        help="verify an artifact offline",
        description="Verify an artifact with public keys alone. It names what only the host can tell.",
    )
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument("--trust", type=Path, metavar="DIR", help="trust folder (default: the host's)")
    verify.add_argument(
        "--program",
        type=Path,
        metavar="PATH",
        help="compare this file with the authorized program, or this script with the authorized script",
    )
    verify.add_argument(
        "--revocations",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a signed revocation list that the artifact must not be in; repeat for several",
    )
    verify.add_argument(
        "--at", metavar="T", help="verify as of this time, like 2026-11-23T14:00:00Z (default: now)"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)
    show = commands.add_parser("show", help="print an artifact, unverified")
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_show)


def _verify(options: argparse.Namespace) -> int:
    content = read_artifact(options.file)
    trust = TrustStore.load(Paths.from_environment().trust if options.trust is None else options.trust)
    program = None if options.program is None else inspect_program(options.program)
    lists = [read_file(path, LIST_LIMIT) for path in options.revocations]
    progress = _Progress()
    try:
        artifact = _run_steps(content, trust, program, _moment(options.at), progress)
        if lists:
            progress.reached(Step.REVOCATION)
            _check_revocations(artifact, lists, trust, _moment(options.at))
    except Refused as refusal:
        progress.fail()
        if not options.json:
            print_lines(progress.lines())
            raise
        print_json({"verified": False, "steps": progress.steps(), "error": _error(refusal)})
        return refusal.exit_code
    answer = {
        "verified": True,
        "id": artifact.id,
        "signers": list(artifact.signers),
        "steps": progress.steps(),
    }
    if options.json:
        print_json(answer)
    else:
        signers = [f"signed by {keyid}{_key_name(trust, keyid)}" for keyid in artifact.signers]
        print_lines([*progress.lines(), f"verified  {artifact.id}", *signers])
    return ExitCode.DONE


class _Progress:
    """How far verification came. A step that begins has passed unless it is the last one of a refusal."""

    def __init__(self) -> None:
        self._states: dict[Step, str] = {}
        self._current: Step | None = None

    def reached(self, step: Step) -> None:
        self._current = step
        self._states[step] = "passed"

    def fail(self) -> None:
        if self._current is not None:
            self._states[self._current] = "failed"

    def steps(self) -> list[dict[str, Any]]:
        return [
            {"number": int(step), "step": text, "state": state, "note": _note(step, state).strip(" ()")}
            for step, text, state in ((step, text, self._state(step)) for step, text in STEPS.items())
        ]

    def lines(self) -> list[str]:
        states = {step: self._state(step) for step in STEPS}
        return [
            f" {_MARKS[state]} {int(step):2} {STEPS[step]}{_note(step, state)}"
            for step, state in states.items()
        ]

    def _state(self, step: Step) -> str:
        offline = step <= Step.DIGEST or step is Step.INTENT
        return self._states.get(step, "skipped" if offline else "host")


def _note(step: Step, state: str) -> str:
    return _OFFLINE_PART.get(step, "") if state == "passed" else _NOTES.get(state, "")


def _run_steps(
    content: bytes, trust: TrustStore, program: Program | None, now: datetime, progress: _Progress
) -> Artifact:
    artifact = authenticate(content, trust, now, reached=progress.reached)
    progress.reached(Step.WINDOW)
    check_window(artifact, now)
    if program is not None:
        progress.reached(Step.DIGEST)
        if program.kind is ProgramKind.SCRIPT:
            check_script(artifact.statement, str(program.path), program.digest)
        else:
            check_digest(artifact.statement, program.digest)
        progress.reached(Step.INTENT)
        # What the kernel executes for a script takes code from its arguments, whatever its name.
        executed = ProgramKind.INTERPRETER if program.kind is ProgramKind.SCRIPT else program.kind
        check_bound(artifact.statement, executed)
    return artifact


def _check_revocations(artifact: Artifact, lists: list[bytes], trust: TrustStore, now: datetime) -> None:
    """Step 13, as far as signed lists tell: whether a host was revoked, that host can tell."""
    scope = artifact.ties.scope
    found = [authenticate_list(content, trust, now) for content in lists]
    fitting = [one.content for one in found if applies(one.content, scope)]
    if not fitting:
        raise UsageError(
            Reason.USAGE, f"none of the lists is for the scope {scope!r}", "Name a list for it, or one for *."
        )
    check_revoked(artifact.ties, merged(content.things for content in fitting), "")
    newest = max(content.next_update for content in fitting)
    if parse_time(newest) <= now:
        raise Refused(
            Reason.REVOCATION_LIST_STALE, f"the newest list was good until {newest}", "Get a newer one."
        )


def _show(options: argparse.Namespace) -> int:
    envelope = parse_envelope(read_artifact(options.file))
    parsed = parse_statement(envelope.payload)
    statement = msgspec.to_builtins(parsed)
    answer = {
        "id": artifact_id(envelope),
        "verified": False,
        "keyids": list(envelope.signatures),
        "statement": statement,
    }
    if options.json:
        print_json(answer)
        return ExitCode.DONE
    print_lines([f"id        {answer['id']}", *(f"signature {keyid}" for keyid in envelope.signatures)])
    print_lines(_outline(statement, 0))
    constraints = parsed.predicate.constraints
    print_lines(f"Note: {note}." for note in (constraints.notes if constraints else ()))
    print_lines(["", "Not verified. To verify: egs verify FILE"])
    return ExitCode.DONE


def _outline(value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    items = value.items() if isinstance(value, dict) else enumerate(value)
    lines: list[str] = []
    for name, item in items:
        if isinstance(item, dict | list | tuple) and item:
            lines += [f"{indent}{name}:", *_outline(item, depth + 1)]
        else:
            lines.append(f"{indent}{name}: {item}")
    return lines


def _error(refusal: Refused) -> dict[str, str]:
    return {"reason": refusal.reason.code, "message": refusal.message, "next_step": refusal.next_step}


def _key_name(trust: TrustStore, keyid: str) -> str:
    name = trust.keys[keyid].name
    return f" ({name})" if name else ""


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        return parse_time(text)
    except ValueError as error:
        raise UsageError(
            Reason.USAGE, str(error), f"Write it like {format_time(datetime.now(UTC))}."
        ) from error
