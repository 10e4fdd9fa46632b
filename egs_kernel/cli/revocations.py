"""`egs revoke`, and `egs revocations issue|sign|add|show`: what is taken back, at once and by signed lists."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from egs_kernel.cli.client import ask
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.cli.signing import add_keys_option, add_passphrase_option, open_key, open_keys
from egs_kernel.config import parse_duration
from egs_kernel.daemon import protocol
from egs_kernel.errors import ExitCode, Refused, UsageError
from egs_kernel.model import Reason, Revoked
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.artifact.revocations import RevocationList
    from egs_kernel.cli.main import Commands

_DIGEST: Final = re.compile("[0-9a-f]{64}")
_VALIDITY: Final = "24h"
_THING: Final = "[KIND:]THING"
_THINGS: Final = "an artifact's id or file; or key:ID or key:FILE.pub, subject:SHA256 or subject:/PATH, policy:SHA256, host:ID"


def add_commands(commands: Commands) -> None:
    """Add `revoke` and `revocations`."""
    revoke = commands.add_parser(
        "revoke",
        help="never again authorize anything by this artifact, key, file, policy set or host",
        description="Take something back on this host, for ever. When the command returns, no grant of it is in the gate, "
        "and what ran by it was responded to as its artifact says (constraints.drift; without a word: it has ended).",
    )
    revoke.add_argument("thing", metavar=_THING, help=_THINGS)
    revoke.add_argument("--why", default="", metavar="TEXT", help="recorded with it")
    revoke.set_defaults(run=_revoke)
    words = commands.add_parser(
        "revocations", help="signed revocation lists, for hosts that were offline"
    ).add_subparsers(title="actions", metavar="ACTION", required=True)
    issue = words.add_parser(
        "issue",
        help="write a signed list",
        description="Write a list of everything that is revoked for a scope. It takes the place of the one before.",
    )
    add_keys_option(issue)
    issue.add_argument("--scope", metavar="S", help="the scope it is for; * is every scope")
    issue.add_argument(
        "--after",
        type=Path,
        metavar="FILE",
        help="the list before: its scope, its things, and the next number",
    )
    issue.add_argument(
        "--number", type=int, metavar="N", help="the list's number (default: the next one, or 1)"
    )
    issue.add_argument("--revoke", action="append", default=[], metavar=_THING, help=_THINGS)
    issue.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar=_THING,
        help="what the list before had, and this one has not",
    )
    issue.add_argument(
        "--valid-for",
        default=_VALIDITY,
        metavar="24h",
        help=f"by when there is the next one (default: {_VALIDITY})",
    )
    issue.add_argument("--out", required=True, type=Path, metavar="FILE", help="the list to write")
    issue.set_defaults(run=_issue)
    sign = words.add_parser("sign", help="add a signature to a list (for scopes with a threshold)")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument("--key", required=True, metavar="KEY", help="a file or a URI")
    add_passphrase_option(sign)
    sign.set_defaults(run=_sign)
    add = words.add_parser(
        "add",
        help="bring a list into force on this host",
        description="Verify a list and bring it into force, as one push. An older one is refused.",
    )
    add.add_argument("file", type=Path, metavar="FILE")
    add.set_defaults(run=_add)
    show = words.add_parser(
        "show", help="what is revoked on this host, and by which lists; or what a list says"
    )
    show.add_argument("file", type=Path, metavar="FILE", nargs="?")
    show.set_defaults(run=_show)
    for parser in (revoke, issue, sign, add, show):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


# -- the running daemon ------------------------------------------------------------------------------


def _revoke(options: argparse.Namespace) -> int:
    kind, thing = _thing(options.thing)
    request = protocol.RevokeRequest(id=thing, kind=cast("protocol.RevokedKind", kind), why=options.why)
    return _do(request, options, "" if kind == "artifact" else f"{kind} ")


def _add(options: argparse.Namespace) -> int:
    return _do(protocol.AddRevocationsRequest(content=_read(options.file)), options, "list ")


def _do(request: protocol.Request, options: argparse.Namespace, what: str) -> int:
    answer = ask(Paths.from_environment(), request, protocol.Done)
    if options.json:
        print_json({"id": answer.id, "message": answer.message})
    else:
        print_lines([f"{what}{answer.id} {answer.message}"])
    return int(ExitCode.DONE)


def _show(options: argparse.Namespace) -> int:
    if options.file is not None:
        return _show_list(options)
    import msgspec  # noqa: PLC0415 - this command alone

    answer = ask(Paths.from_environment(), protocol.RevocationsRequest(), protocol.RevocationsAnswer)
    if options.json:
        content: dict[str, Any] = msgspec.to_builtins(answer)
        content.pop("type")
        print_json(content)
        return int(ExitCode.DONE)
    lists = [
        (one.scope, str(one.number), one.issued_at, one.next_update, str(one.count), one.digest[:16])
        for one in answer.lists
    ]
    print_lines(columns(("SCOPE", "NUMBER", "ISSUED", "NEXT", "REVOKES", "LIST"), lists))
    for demand in answer.demands:
        said = f"good until {demand.until}" if demand.until else "good"
        print_lines([f"scope {demand.scope}: {demand.problem or said}"])
    rows = [(one.kind, one.thing, one.since) for one in answer.said]
    print_lines(columns(("KIND", "REVOKED HERE", "SINCE"), rows))
    if answer.count > len(rows):
        print_lines([f"… and {answer.count - len(rows)} older ones: egs audit query --type revocation"])
    return int(ExitCode.DONE)


def stale_scopes(paths: Paths) -> dict[str, str]:
    """The scopes of which revocations are not known well enough, and why: by configuration and files, without the daemon."""
    from egs_kernel.config import load_config  # noqa: PLC0415 - for egs doctor alone
    from egs_kernel.daemon.revocations import known_of  # noqa: PLC0415 - as above
    from egs_kernel.errors import EgsError  # noqa: PLC0415 - as above

    try:
        config = load_config(paths.config)
        known = known_of(paths.revocations, Revoked(), {})
    except (EgsError, OSError):  # not configured yet, or not ours to read: status tells what the daemon finds
        return {}
    found = {
        scope.name: known.knowledge(scope.name, config.revocation, datetime.now(UTC))
        for scope in config.scopes
    }
    return {scope: knowledge.problem for scope, knowledge in found.items() if knowledge.problem}


# -- lists -------------------------------------------------------------------------------------------


def _issue(options: argparse.Namespace) -> int:
    from egs_kernel.artifact import revocations as rl  # noqa: PLC0415 - cryptography, only for those who issue
    from egs_kernel.artifact.envelope import sign  # noqa: PLC0415 - as above
    from egs_kernel.artifact.statement import format_time  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above

    before = None if options.after is None else _parse(options.after)
    scope = options.scope or (None if before is None else before.scope)
    if scope is None:
        raise UsageError(
            Reason.USAGE, "the list is for no scope", "Give --scope, or the list before with --after."
        )
    if before is not None and scope != before.scope:
        raise UsageError(
            Reason.USAGE,
            f"the list before is for the scope {before.scope!r}",
            "Leave out --scope, or --after.",
        )
    number = options.number or (1 if before is None else before.number + 1)
    if before is not None and number <= before.number:
        raise UsageError(
            Reason.USAGE, f"the list before has number {before.number}", "Give a higher --number, or none."
        )
    moment = datetime.now(UTC)
    end = moment + timedelta(seconds=parse_duration(options.valid_for, "--valid-for"))
    tables = _tables(options, before, format_time(moment))
    try:
        content = rl.RevocationList(
            type=rl.LIST_TYPE,
            scope=scope,
            number=number,
            issued_at=format_time(moment),
            next_update=format_time(end),
            revoked=rl.RevokedThings(**tables),
        )
        payload = rl.encode_revocation_list(content)
        rl.parse_revocation_list(payload)
    except (ValueError, Refused) as error:
        message = error.message if isinstance(error, Refused) else str(error)
        raise UsageError(Reason.USAGE, f"this cannot be issued: {message}", "Correct the options.") from error
    replace_file(options.out, sign(payload, open_keys(options), rl.PAYLOAD_TYPE, rl.LIST_LIMIT))
    return _report(options, options.out)


def _tables(
    options: argparse.Namespace, before: RevocationList | None, since: str
) -> dict[str, dict[str, str]]:
    """By kind: what the list before has, less what is dropped, and what is new."""
    things = Revoked() if before is None else before.things
    tables = {kind: dict(getattr(things, kind)) for kind in Revoked.__struct_fields__}
    for kind, thing in map(_thing, options.drop):
        if tables[kind].pop(thing, None) is None:
            raise UsageError(
                Reason.NOT_FOUND, f"the list before does not revoke {kind} {thing}", "Leave out --drop."
            )
    for kind, thing in map(_thing, options.revoke):
        tables[kind].setdefault(thing, since)
    return tables


def _sign(options: argparse.Namespace) -> int:
    from egs_kernel.artifact import revocations as rl  # noqa: PLC0415 - cryptography, only for those who sign
    from egs_kernel.artifact.envelope import parse_envelope, sign_also  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import replace_file  # noqa: PLC0415 - as above

    signer = open_key(options.key, options.passphrase_file)
    envelope = parse_envelope(_read(options.file), rl.PAYLOAD_TYPE, rl.LIST_LIMIT)
    rl.parse_revocation_list(envelope.payload)
    if signer.public_key.keyid in envelope.signatures:
        raise UsageError(
            Reason.USAGE, f"{options.file} already has a signature of this key", "Use another key."
        )
    replace_file(options.file, sign_also(envelope, [signer], rl.LIST_LIMIT))
    return _report(options, options.file)


def _show_list(options: argparse.Namespace) -> int:
    content = _parse(options.file)
    rows = [
        (kind, thing, since)
        for kind in Revoked.__struct_fields__
        for thing, since in sorted(getattr(content.things, kind).items())
    ]
    if options.json:
        return _report(options, options.file)
    _report(options, options.file)
    print_lines(columns(("KIND", "REVOKED", "SINCE"), rows))
    return int(ExitCode.DONE)


def _report(options: argparse.Namespace, path: Path) -> int:
    """Say what a list is. Whether its signatures count is for the host that it is added on."""
    import hashlib  # noqa: PLC0415 - these commands alone

    import msgspec  # noqa: PLC0415 - as above

    from egs_kernel.artifact import revocations as rl  # noqa: PLC0415 - as above
    from egs_kernel.artifact.envelope import parse_envelope  # noqa: PLC0415 - as above

    envelope = parse_envelope(_read(path), rl.PAYLOAD_TYPE, rl.LIST_LIMIT)
    content = rl.parse_revocation_list(envelope.payload)
    answer = {
        "file": str(path),
        "digest": hashlib.sha256(envelope.payload).hexdigest(),
        "keyids": list(envelope.signatures),
        **msgspec.to_builtins(content),
    }
    if options.json:
        print_json(answer)
    else:
        print_lines(
            [
                f"list    {answer['digest']}",
                f"file    {path}",
                f"number  {content.number} of scope {content.scope}, {content.count} things",
                f"valid   {content.issued_at} to {content.next_update}",
                f"keys    {', '.join(keyid[:16] for keyid in envelope.signatures)}",
            ]
        )
    return int(ExitCode.DONE)


def _parse(path: Path) -> RevocationList:
    from egs_kernel.artifact import revocations as rl  # noqa: PLC0415 - as above
    from egs_kernel.artifact.envelope import parse_envelope  # noqa: PLC0415 - as above

    return rl.parse_revocation_list(parse_envelope(_read(path), rl.PAYLOAD_TYPE, rl.LIST_LIMIT).payload)


def _read(path: Path) -> bytes:
    from egs_kernel.artifact.revocations import LIST_LIMIT  # noqa: PLC0415 - as above
    from egs_kernel.cli.files import read_file  # noqa: PLC0415 - as above

    return read_file(path, LIST_LIMIT)


# -- things ------------------------------------------------------------------------------------------


def _thing(given: str) -> tuple[str, str]:
    """The kind and the id of what somebody named."""
    kind, colon, thing = given.partition(":")
    if not colon or kind not in Revoked.__struct_fields__:
        kind, thing = "artifact", given
    if kind == "host" or _DIGEST.fullmatch(thing):
        return kind, thing
    if kind == "artifact":
        return kind, _artifact_id(Path(thing))
    if kind == "key":
        return kind, _key_id(Path(thing))
    if kind == "subject":
        from egs_kernel.cli.files import inspect_program  # noqa: PLC0415 - only for a file

        return kind, inspect_program(Path(thing)).digest
    raise UsageError(
        Reason.USAGE, f"{thing!r} is no digest of a policy set", "Give its SHA-256: egs policy list"
    )


def _artifact_id(path: Path) -> str:
    from egs_kernel.artifact.envelope import parse_envelope  # noqa: PLC0415 - securesystemslib, only for a file
    from egs_kernel.cli.files import read_artifact  # noqa: PLC0415 - as above
    from egs_kernel.verify import artifact_id  # noqa: PLC0415 - as above

    return artifact_id(parse_envelope(read_artifact(path)))


def _key_id(path: Path) -> str:
    from egs_kernel.cli.files import read_file  # noqa: PLC0415 - cryptography, only for a file
    from egs_kernel.trust.keys import KEY_LIMIT, load_public  # noqa: PLC0415 - as above

    return str(load_public(read_file(path, KEY_LIMIT), str(path)).keyid)
