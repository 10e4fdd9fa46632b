"""`egs holds`: execs that wait for an authorization; to give it, or to refuse it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.cli.client import ask
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.cli.signing import KEY, add_passphrase_option, open_key
from egs_kernel.config import parse_duration
from egs_kernel.daemon import protocol
from egs_kernel.errors import EgsError, ExitCode, Refused, UsageError
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.artifact.statement import Subject, SubjectRole
    from egs_kernel.cli.main import Commands
    from egs_kernel.sslib import Signer

_VALIDITY: Final = "5m"
_SHORT_DIGEST: Final = 16


def add_commands(commands: Commands) -> None:
    """Add `holds`."""
    holds = commands.add_parser(
        "holds",
        help="execs that wait for an authorization",
        description='List the execs that wait for an authorization (on_missing = "hold"); approve or deny one.',
    )
    holds.add_argument("--json", action="store_true", help="print one JSON object")
    holds.set_defaults(run=_list)
    actions = holds.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="what is held; so does egs holds alone")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=_list)
    approve = _action(actions, "approve", "let it run, by an artifact that authorizes exactly it")
    given = approve.add_mutually_exclusive_group(required=True)
    given.add_argument("--artifact", type=Path, metavar="FILE", help="the artifact, as `egs issue` wrote it")
    given.add_argument(
        "--key",
        metavar=KEY,
        help="issue one: for this program, arguments and user, for one use; a key file or a URI",
    )
    add_passphrase_option(approve)
    approve.add_argument(
        "--valid-for", default=_VALIDITY, metavar="5m", help=f"of what --key issues (default: {_VALIDITY})"
    )
    approve.set_defaults(run=_approve)
    deny = _action(actions, "deny", "kill it")
    deny.add_argument("--why", default="", metavar="TEXT", help="for the record")
    deny.set_defaults(run=_deny)


def _action(commands: Commands, word: str, text: str) -> argparse.ArgumentParser:
    action = commands.add_parser(word, help=text, description=f"{text[0].upper()}{text[1:]}.")
    action.add_argument("ids", nargs="+", metavar="ID", help="as `egs holds` prints it")
    action.add_argument("--json", action="store_true", help="print one JSON object")
    return action


def _list(options: argparse.Namespace) -> int:
    holds = _holds()
    if options.json:
        print_json({"holds": [msgspec.to_builtins(hold) for hold in holds]})
    else:
        print_lines(hold_lines(holds, time.time()))
    return int(ExitCode.DONE)


def hold_lines(holds: list[protocol.HoldStatus], now: float) -> list[str]:
    """The list for people. Pure; `now`: seconds since the epoch."""
    from egs_kernel.cli.tables import printable  # noqa: PLC0415 - rich is for people only

    if not holds:
        return ["Nothing is held."]
    rows = [
        (
            hold.id,
            str(hold.pid),
            hold.scope,
            f"{max(0, int(now - hold.since))} s",
            f"{max(0, int(hold.until - now))} s",
            str(hold.uid),
            printable(hold.program),
            hold.digest[:_SHORT_DIGEST] or "-",
            printable(" ".join(hold.argv)),
        )
        for hold in holds
    ]
    heading = ("HOLD", "PID", "SCOPE", "SINCE", "LEFT", "UID", "PROGRAM", "DIGEST", "ARGUMENTS")
    why = [f"{hold.id}: {printable(hold.message)}" for hold in holds if hold.message]
    return [*columns(heading, rows), *why]


def _approve(options: argparse.Namespace) -> int:
    requests = {hold_id: _artifact(options, hold_id) for hold_id in options.ids}
    return _each(
        options,
        {
            hold_id: protocol.ApproveHoldRequest(id=hold_id, artifact=artifact)
            for hold_id, artifact in requests.items()
        },
    )


def _deny(options: argparse.Namespace) -> int:
    return _each(
        options, {hold_id: protocol.DenyHoldRequest(id=hold_id, why=options.why) for hold_id in options.ids}
    )


def _each(options: argparse.Namespace, requests: dict[str, protocol.Request]) -> int:
    """Ask for each; the first that fails is raised when all were asked."""
    first: EgsError | None = None
    answers = []
    for hold_id, request in requests.items():
        try:
            answer = ask(Paths.from_environment(), request, protocol.Done)
        except EgsError as error:
            first = first or error
            continue
        answers.append({"hold": hold_id, "artifact": answer.id, "message": answer.message})
        if not options.json:
            print_lines([f"{answer.id} {answer.message}" if answer.id else answer.message])
    if first is not None:
        raise first
    if options.json:
        print_json({"holds": answers})
    return int(ExitCode.DONE)


def _holds() -> list[protocol.HoldStatus]:
    """Every one, however many answers that takes."""
    found: list[protocol.HoldStatus] = []
    more = True
    while more:
        request = protocol.HoldsRequest(after=found[-1].id if found else "")
        answer = ask(Paths.from_environment(), request, protocol.HoldsAnswer)
        found += answer.holds
        more = answer.more
    return found


def _artifact(options: argparse.Namespace, hold_id: str) -> bytes:
    if options.artifact is not None:
        from egs_kernel.cli.files import read_artifact  # noqa: PLC0415 - only for a file

        return read_artifact(options.artifact)
    hold = next((hold for hold in _holds() if hold.id == hold_id), None)
    if hold is None:
        raise UsageError(Reason.NOT_FOUND, f"nothing with the id {hold_id!r} is held", "Run: egs holds")
    seconds = parse_duration(options.valid_for, "--valid-for")
    signer = open_key(options.key, options.passphrase_file)
    return issue_for(hold, signer, datetime.now(UTC), seconds)


def issue_for(hold: protocol.HoldStatus, signer: Signer, now: datetime, seconds: int) -> bytes:
    """An artifact for exactly what is held: its digest, arguments and user, once.

    Raises:
        EgsError: the daemon has not measured it, its arguments are no text, or the signer cannot sign.
    """
    from egs_kernel.artifact import statement as st  # noqa: PLC0415 - cryptography, only to sign
    from egs_kernel.artifact.envelope import sign  # noqa: PLC0415 - as above

    if not hold.digest:
        raise Refused(
            Reason.MEASUREMENT_RACED,
            f"the daemon has not measured {hold.program}: {hold.message or 'not yet'}",
            "Try again, or deny it.",
        )
    if st.ANY in hold.argv:
        raise Refused(
            Reason.ARGV_MISMATCH,
            f"an argument of {hold.program} is {st.ANY}, which would free it in an artifact",
            "Deny it, or issue an artifact that leaves it free: egs issue",
        )
    statement = st.Statement(
        type=st.STATEMENT_TYPE,
        predicate_type=st.PREDICATE_TYPE,
        subject=(_subject(hold.program, hold.digest, st.SubjectRole.PROGRAM), *_scripts(hold)),
        predicate=st.Predicate(
            issued_at=st.format_time(now),
            not_before=st.format_time(now),
            not_after=st.format_time(now + timedelta(seconds=seconds)),
            scope=st.Scope(name=hold.scope),
            identity=st.Identity(uid=hold.uid),
            intent=st.DeclaredIntent(argv=hold.argv),
            uses=1,
            lineage=st.Lineage(request_id=hold.id),
        ),
    )
    payload = st.encode_statement(statement)
    st.parse_statement(payload)
    return sign(payload, [signer])


def _subject(name: str, digest: str, role: SubjectRole) -> Subject:
    from egs_kernel.artifact import statement as st  # noqa: PLC0415 - as above

    return st.Subject(name=name, digest=st.Digest(sha256=digest), annotations=st.Annotations(role=role))


def _scripts(hold: protocol.HoldStatus) -> tuple[Subject, ...]:
    """An interpreter's arguments that are files here are code: their digests are signed as well."""
    from egs_kernel.artifact.statement import SubjectRole  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import inspect_program  # noqa: PLC0415 - as above

    if hold.kind == ProgramKind.NATIVE.value:
        return ()
    names = dict.fromkeys(name for name in hold.argv[1:] if name.startswith("/") and Path(name).is_file())
    return tuple(
        _subject(name, inspect_program(Path(name)).digest, SubjectRole.SCRIPT)
        for name in names
        if name != hold.program
    )
