"""`egs seal`, `egs unseal`, and `egs maintenance issue`: the artifact that lifts a seal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.client import ask
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.signing import add_keys_option, open_keys
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands
    from egs_kernel.daemon.protocol import Request

_DEFAULT_VALIDITY = "1h"


def add_commands(commands: Commands) -> None:
    """Add `seal`, `unseal` and `maintenance`."""
    seal = commands.add_parser(
        "seal",
        help="let nobody but the daemon change the gate or stop the daemon, root included",
        description="Seal the gate (tier lsm). Only a maintenance artifact lifts that, or a reboot without sealed = true.",
    )
    seal.set_defaults(run=_seal)
    unseal = commands.add_parser(
        "unseal",
        help="lift the seal, as a maintenance artifact says",
        description="Lift the seal until the artifact's notAfter. It is used up by that; egs seal ends it earlier.",
    )
    unseal.add_argument("file", type=Path, metavar="FILE", help="the maintenance artifact")
    unseal.set_defaults(run=_unseal)
    words = commands.add_parser("maintenance", help="issue what lifts a seal").add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    issue = words.add_parser(
        "issue",
        help="write a signed maintenance artifact",
        description="Let hosts be changed for a while. egs sign adds the signatures of others.",
    )
    add_keys_option(issue)
    issue.add_argument(
        "--host",
        action="append",
        required=True,
        metavar="ID",
        help="a host's id (egs status); repeat for several",
    )
    issue.add_argument("--purpose", required=True, metavar="TEXT", help="what for, in words")
    issue.add_argument("--operator", required=True, metavar="NAME", help="who does it")
    issue.add_argument("--ticket", metavar="ID", help="where it was decided")
    issue.add_argument("--valid-for", metavar="1h", help=f"from now on (default: {_DEFAULT_VALIDITY})")
    issue.add_argument("--not-before", metavar="T", help="like 2026-11-23T14:00:00Z")
    issue.add_argument("--not-after", metavar="T")
    issue.add_argument("--out", required=True, type=Path, metavar="FILE", help="the artifact to write")
    issue.set_defaults(run=_issue)
    for parser in (seal, unseal, issue):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def _seal(options: argparse.Namespace) -> int:
    from egs_kernel.daemon import protocol  # noqa: PLC0415 - not for those who issue

    return _ask(protocol.SealRequest(), options)


def _unseal(options: argparse.Namespace) -> int:
    from egs_kernel.cli.files import read_artifact  # noqa: PLC0415 - as above
    from egs_kernel.daemon import protocol  # noqa: PLC0415 - as above

    return _ask(protocol.UnsealRequest(artifact=read_artifact(options.file)), options)


def _ask(request: Request, options: argparse.Namespace) -> int:
    from egs_kernel.daemon import protocol  # noqa: PLC0415 - as above

    answer = ask(Paths.from_environment(), request, protocol.Done)
    if options.json:
        print_json({"id": answer.id, "message": answer.message})
    else:
        print_lines([f"{answer.id} {answer.message}" if answer.id else answer.message])
    return ExitCode.DONE


def _issue(options: argparse.Namespace) -> int:
    from egs_kernel.artifact import maintenance as mt  # noqa: PLC0415 - cryptography, only for those who issue
    from egs_kernel.artifact.envelope import sign  # noqa: PLC0415 - as above
    from egs_kernel.artifact.statement import encode_statement, format_time  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above
    from egs_kernel.cli.issue import report_artifact  # noqa: PLC0415 - as above
    from egs_kernel.errors import Refused  # noqa: PLC0415 - as above

    signers = open_keys(options)
    moment = datetime.now(UTC)
    try:
        start, end = _window(options, moment)
        predicate = mt.MaintenancePredicate(
            issued_at=format_time(moment),
            not_before=format_time(start),
            not_after=format_time(end),
            purpose=options.purpose,
            operator=options.operator,
            ticket=options.ticket,
        )
        payload = encode_statement(mt.maintenance_statement(tuple(options.host), predicate))
        mt.parse_maintenance(payload)
    except (ValueError, Refused) as error:
        message = error.message if isinstance(error, Refused) else str(error)
        raise UsageError(Reason.USAGE, f"this cannot be issued: {message}", "Correct the options.") from error
    content = sign(payload, signers)
    replace_file(options.out, content)
    report_artifact(options, content)
    return ExitCode.DONE


def _window(options: argparse.Namespace, moment: datetime) -> tuple[datetime, datetime]:
    from egs_kernel.artifact.statement import parse_time  # noqa: PLC0415 - as above
    from egs_kernel.config import moment_after  # noqa: PLC0415 - as above

    if options.not_after is not None and options.valid_for is not None:
        raise UsageError(Reason.USAGE, "--valid-for and --not-after exclude each other", "Give one of them.")
    start = moment if options.not_before is None else parse_time(options.not_before)
    if options.not_after is not None:
        return start, parse_time(options.not_after)
    return start, moment_after(start, options.valid_for or _DEFAULT_VALIDITY, "--valid-for")
