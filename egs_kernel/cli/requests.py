"""`egs request`, `egs approvals`, `egs approve`: what people and programs ask of the authority."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.describe import printable
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.cli.elsewhere import add_options, host_here, proven_by_host, remote_of, waits
from egs_kernel.cli.files import replace_file
from egs_kernel.cli.intended import intent_of, random_key
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.config import parse_duration
from egs_kernel.errors import EgsError, ExitCode, UsageError
from egs_kernel.launch import Stop, find_program, read_svid
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

_LOOK_SECONDS: Final = 1.0

_REQUEST = """Ask the authority for an artifact: for a command, as egs run would execute it from this folder; or for the successor of
one that is still valid (--renew). It is written to --out. When people have to approve it first, the request's id is printed
and the exit code is 1 [approval_required]; --wait waits for them, and --id asks again what became of it."""

_APPROVALS = """What waits for approvals at the authority: one's own requests; all of them for root and for those whom authority.toml
names in may_see. Read the intent before you sign: egs approve signs exactly that."""

_APPROVE = """Sign that exactly this request and this intent may have an artifact, or that it may not (--deny). The key must have the
role approver for its scope in the authority's trust store (egs trust add --role approver). Each key counts once; what is signed
is good for this request alone, and for --for."""


def add_commands(commands: Commands) -> None:
    """Add `request`, `approvals` and `approve`."""
    request = commands.add_parser("request", help="ask the authority for an artifact", description=_REQUEST)
    request.add_argument("--scope", metavar="S", help="the scope; default: the authority's")
    request.add_argument("--out", type=Path, metavar="FILE", help="where to write the artifact")
    request.add_argument("--valid-for", metavar="5m", help="how long it is valid; default: the authority's")
    request.add_argument("--max-uses", type=int, metavar="N", help="how many executions")
    request.add_argument("--purpose", metavar="TEXT", help="what for, in words")
    request.add_argument("--ticket", metavar="ID", help="where it was decided")
    request.add_argument("--risk", choices=("low", "medium", "high", "critical"))
    request.add_argument(
        "--host", metavar="ID", help="the host that it is to run on, when that is another one"
    )
    request.add_argument(
        "--key", metavar="K", help="idempotency key: repeating a request gets the same answer"
    )
    request.add_argument("--renew", metavar="ID", help="the artifact to follow, instead of a command")
    request.add_argument("--id", metavar="REQUEST", help="an earlier request, instead of a command")
    request.add_argument("--svid", type=Path, metavar="FILE", help="a JWT-SVID: ask as that workload, too")
    request.add_argument("--wait", metavar="10m", help="wait so long for approvals")
    request.add_argument("command", nargs="*", metavar="CMD", help="the command and its arguments, after --")
    request.set_defaults(run=run_request)
    approvals = commands.add_parser("approvals", help="what waits for approvals", description=_APPROVALS)
    approvals.set_defaults(run=run_approvals)
    approve = commands.add_parser("approve", help="approve a request, or deny it", description=_APPROVE)
    approve.add_argument("id", metavar="REQUEST", help="its id (egs approvals)")
    approve.add_argument("--key", required=True, metavar="N.key", help="sign with this key: a file, or a URI")
    approve.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the key")
    approve.add_argument("--digest", metavar="SHA256", help="the intent's digest, when it was seen elsewhere")
    approve.add_argument("--deny", action="store_true", help="say no")
    approve.add_argument(
        "--for", dest="good_for", default="10m", metavar="10m", help="how long it counts (10m)"
    )
    approve.set_defaults(run=run_approve)
    for parser in (request, approvals, approve):
        add_options(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_request(options: argparse.Namespace) -> int:
    """Ask, and write the artifact.

    Raises:
        EgsError: it was refused, waits for approvals, or the authority does not answer.
    """
    if sum((bool(options.command), options.renew is not None, options.id is not None)) != 1:
        raise UsageError(
            Reason.USAGE,
            "give one of: a command after --, --renew ID, --id REQUEST",
            "See egs request --help",
        )
    remote, paths = remote_of(options), Paths.from_environment()
    if options.id is not None:
        answer = ask(paths, "GET", f"/v1/requests/{options.id}", remote=remote)
    elif options.renew is not None:
        body = {"askedAt": format_time(datetime.now(UTC))}
        answer = ask(paths, "POST", f"/v1/artifacts/{options.renew}/renewals", body, remote=remote)
    else:
        asked: dict[str, Any] = {
            "intent": _intent(options, remote),
            "askedAt": format_time(datetime.now(UTC)),
        }
        if remote is not None and options.host is None:
            asked = proven_by_host(paths, asked)
        key, svid = options.key or random_key(), _svid(options)
        answer = ask(paths, "POST", "/v1/requests", asked, key=key, remote=remote, svid=svid)
    if answer.get("state") == "pending" and options.wait is not None:
        answer = _awaited(paths, remote, answer, parse_duration(options.wait, "--wait"))
    if answer.get("state") == "pending":
        raise waits(answer)
    return _keep(options, answer)


def _svid(options: argparse.Namespace) -> str | None:
    try:
        return None if options.svid is None else read_svid(str(options.svid))
    except Stop as stop:
        raise UsageError(Reason.SVID_INVALID, stop.message, "Name the file of a JWT-SVID.") from stop


def run_approvals(options: argparse.Namespace) -> int:
    """List what waits.

    Raises:
        EgsError: the authority refused, or does not answer.
    """
    answer = ask(Paths.from_environment(), "GET", "/v1/requests", remote=remote_of(options))
    if options.json:
        print_json(answer)
        return int(ExitCode.DONE)
    for item in answer["waiting"]:
        names = (
            ", ".join(f"{vote['name']} {vote['action']}" for vote in item.get("approvals", ()))
            or "nobody yet"
        )
        print_lines(
            printable(line)
            for line in (
                f"request   {item['request']}",
                f"asked by  {item['principal']} for scope {item['scope']}",
                f"intent    {item['intent']}",
                f"digest    {item['intentDigest']}",
                f"needs     {item['required']} approvals until {item['until']}; {names}",
            )
        )
        print_lines([""])
    if not answer["waiting"]:
        print_lines(["nothing waits for approvals"])
    return int(ExitCode.DONE)


def run_approve(options: argparse.Namespace) -> int:
    """Sign an approval or a no, and hand it in.

    Raises:
        EgsError: it does not count, or the authority does not answer.
    """
    from egs_kernel.authority.approvals import sign_approval  # noqa: PLC0415 - keys are for those who sign
    from egs_kernel.trust.passphrases import Passphrases  # noqa: PLC0415 - as above
    from egs_kernel.trust.signers import open_signer  # noqa: PLC0415 - as above

    paths, remote = Paths.from_environment(), remote_of(options)
    digest = options.digest
    if digest is None:
        shown = ask(paths, "GET", f"/v1/requests/{options.id}", remote=remote)
        digest = shown["intentDigest"]
        if not options.json:
            print_lines([printable(f"intent    {shown.get('intent', digest)}")])
    signer = open_signer(options.key, Passphrases.of_process(options.passphrase_file))
    body = sign_approval(
        signer,
        request=options.id,
        digest=digest,
        approves=not options.deny,
        now=datetime.now(UTC),
        valid_for=timedelta(seconds=parse_duration(options.good_for, "--for")),
    )
    try:
        answer = ask(paths, "POST", f"/v1/requests/{options.id}/approvals", body, remote=remote)
    except EgsError as error:
        if not options.deny or error.reason is not Reason.APPROVAL_DENIED:
            raise
        answer = {"state": "denied", "request": options.id}
    if options.json:
        print_json(answer)
    else:
        print_lines([_came_to(answer)])
    return int(ExitCode.DONE)


def _intent(options: argparse.Namespace, remote: Remote | None) -> dict[str, Any]:
    command = options.command
    try:
        program = find_program(command[0], os.environ.get("PATH", os.defpath))
    except Stop as stop:
        raise UsageError(Reason.NOT_FOUND, stop.message, "Check the command.") from stop
    intent = intent_of(program, command)
    seconds = None if options.valid_for is None else parse_duration(options.valid_for, "--valid-for")
    here = options.host is None and remote is not None  # an authority elsewhere is told where that is
    asked = {
        "scope": options.scope,
        "validFor": seconds,
        "uses": options.max_uses,
        "purpose": options.purpose,
        "ticket": options.ticket,
        "risk": options.risk,
        "host": host_here() if here else options.host,
        "uid": os.geteuid() if here else None,
    }
    return intent | {name: value for name, value in asked.items() if value is not None}


def _awaited(paths: Paths, remote: Remote | None, answer: dict[str, Any], seconds: int) -> dict[str, Any]:
    sys.stderr.write(f"{waits(answer).message}\n")
    deadline = time.monotonic() + seconds
    while answer.get("state") == "pending" and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        answer = ask(paths, "GET", f"/v1/requests/{answer['request']}", remote=remote)
    return answer


def _keep(options: argparse.Namespace, answer: dict[str, Any]) -> int:
    if options.out is not None:
        replace_file(options.out, str(answer["artifact"]).encode())
    if options.json:
        print_json(answer)
        return int(ExitCode.DONE)
    lines = [
        f"artifact  {answer['artifactId']}",
        f"request   {answer['request']}",
        f"valid     until {answer['notAfter']}",
    ]
    if options.out is not None:
        lines.append(f"file      {options.out}")
    print_lines(lines)
    return int(ExitCode.DONE)


def _came_to(answer: dict[str, Any]) -> str:
    match answer.get("state"):
        case "issued":
            return f"approved: the artifact {answer['artifactId']} is issued"
        case "denied":
            return "denied"
        case _:
            there = sum(vote["action"] == "approved" for vote in answer.get("approvals", ()))
            return f"counted: {there} of {answer['required']} approvals"
