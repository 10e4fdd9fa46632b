"""`egs trust`: which keys may sign for which scopes, from when until when, and what takes whose place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.config import moment_after
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.trust import keys, rotation, store

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands
    from egs_kernel.sslib import Key

_SHORT = 16


def add_commands(commands: Commands) -> None:
    """Add `trust`."""
    words = commands.add_parser("trust", help="say which keys may sign for which scopes").add_subparsers(
        metavar="WORD", required=True
    )
    add = words.add_parser("add", help="trust a public key")
    add.add_argument("file", type=Path, metavar="FILE.pub")
    add.add_argument("--role", action="append", required=True, choices=[role.value for role in store.Role])
    add.add_argument(
        "--scope", action="extend", nargs="+", required=True, metavar="S", help="scope name; * is every scope"
    )
    add.add_argument("--name", help="what people call the key")
    add.add_argument("--not-before", metavar="T", help="valid from, like 2026-11-23T14:00:00Z")
    add.add_argument("--not-after", metavar="T", help="valid until before")
    add.set_defaults(run=_add)
    rotate = words.add_parser(
        "rotate",
        help="give a key a successor: for a while both verify",
        description="Trust a key for what another one may sign, from --at on. The other one verifies until the overlap ends.",
    )
    rotate.add_argument("keyid", metavar="KEYID", help="the key to replace")
    rotate.add_argument("file", type=Path, metavar="FILE.pub", help="its successor")
    rotate.add_argument("--overlap", required=True, metavar="7d", help="how long both verify")
    rotate.add_argument("--at", metavar="T", help="from when on, like 2026-11-23T14:00:00Z (default: now)")
    rotate.set_defaults(run=_rotate)
    listing = words.add_parser(
        "list", help="the trusted keys: from when until when, which signs now, and the thresholds"
    )
    listing.set_defaults(run=_list)
    remove = words.add_parser("remove", help="forget a key")
    remove.add_argument("keyid", metavar="KEYID")
    remove.set_defaults(run=_remove)
    revoke = words.add_parser("revoke", help="keep a key on file as revoked: refusals will say so")
    revoke.add_argument("keyid", metavar="KEYID")
    revoke.set_defaults(run=_revoke)
    threshold = words.add_parser("threshold", help="how many keys must sign for a scope")
    threshold.add_argument(
        "scope", metavar="SCOPE", help="scope name; * is every scope without its own number"
    )
    threshold.add_argument("count", type=int, metavar="N")
    threshold.set_defaults(run=_threshold)
    for parser in (add, rotate, listing, remove, revoke, threshold):
        parser.add_argument("--trust", type=Path, metavar="DIR", help="trust folder (default: the host's)")
        _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add(options: argparse.Namespace) -> int:
    for scope in options.scope:
        store.require_scope_name(scope)
    not_before, not_after = (_time(text) for text in (options.not_before, options.not_after))
    if not_before is not None and not_after is not None and not_before >= not_after:
        raise UsageError(Reason.USAGE, "--not-before must be earlier than --not-after", "Correct the times.")
    entry = store.TrustedKey(
        key=_public(options.file),
        roles=frozenset(store.Role(role) for role in options.role),
        scopes=frozenset(options.scope),
        name=options.name,
        not_before=not_before,
        not_after=not_after,
    )
    path = store.add(_folder(options), entry)
    if options.json:
        print_json({"keyid": entry.keyid, "file": str(path)})
    else:
        print_lines([f"trusted  {entry.keyid}", f"file     {path}"])
    return ExitCode.DONE


def _rotate(options: argparse.Namespace) -> int:
    folder = _folder(options)
    start = _time(options.at) or datetime.now(UTC).replace(microsecond=0)
    end = moment_after(start, options.overlap, "--overlap")
    trust = store.TrustStore.load(folder)
    new, old = rotation.succeed(trust, options.keyid, _public(options.file), start, end - start)
    store.put(folder, new)  # first: whatever happens in between, one of them is valid
    store.put(folder, old)
    answer = {
        "keyid": new.keyid,
        "replaces": old.keyid,
        "from": format_time(start),
        "until": format_time(end),
    }
    if options.json:
        print_json(answer)
    else:
        print_lines(
            [
                f"trusted   {new.keyid}, which signs from {answer['from']} on",
                f"replaces  {old.keyid}, which verifies until {answer['until']}",
            ]
        )
    return ExitCode.DONE


def _list(options: argparse.Namespace) -> int:
    trust = store.TrustStore.load(_folder(options))
    now = datetime.now(UTC)
    entries = [_describe(trust, keyid, now) for keyid in sorted(trust.keys)]
    if options.json:
        print_json({"keys": entries, "thresholds": dict(trust.thresholds)})
        return ExitCode.DONE
    heading = ("KEYID", "ALGORITHM", "ROLES", "SCOPES", "FROM", "UNTIL", "SIGNS", "STATE", "NAME")
    print_lines(columns(heading, [_row(entry) for entry in entries]))
    print_lines(_overlap(entry) for entry in entries if entry["overlap"] is not None)
    print_lines(_threshold_line(trust, scope, now) for scope in sorted(trust.thresholds))
    return ExitCode.DONE


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["keyid"],
        entry["algorithm"],
        ",".join(entry["roles"]),
        ",".join(entry["scopes"]),
        entry["notBefore"] or "-",
        entry["notAfter"] or "-",
        "now" if entry["signs"] else "-",
        entry["state"],
        entry["name"] or "",
    )


def _overlap(entry: dict[str, Any]) -> str:
    start, end = entry["overlap"]
    old, new = entry["keyid"][:_SHORT], entry["replacedBy"][:_SHORT]
    return f"{new} replaces {old}: both verify from {start} to {end}"


def _threshold_line(trust: store.TrustStore, scope: str, now: datetime) -> str:
    needed = trust.threshold(scope)
    line = f"scope {scope}: {needed} signatures"
    if scope == store.ANY_SCOPE:
        return line
    there = rotation.able(trust, store.Role.ISSUER, scope, now)
    return f"{line}, of {there} issuers that are valid now" + (" (too few)" if there < needed else "")


def _describe(trust: store.TrustStore, keyid: str, now: datetime) -> dict[str, Any]:
    entry, turn = trust.keys[keyid], rotation.turn_of(trust, keyid, now)
    times = {"notBefore": entry.not_before, "notAfter": entry.not_after, "revoked": entry.revoked}
    return {
        "keyid": keyid,
        "algorithm": keys.algorithm_of(entry.key).value,
        "roles": sorted(role.value for role in entry.roles),
        "scopes": sorted(entry.scopes),
        "name": entry.name,
        "state": entry.problem(now) or "valid",
        **{name: None if time is None else format_time(time) for name, time in times.items()},
        "signs": turn.signs,
        "replaces": entry.replaces,
        "replacedBy": turn.successor,
        "overlap": None if turn.overlap is None else [format_time(time) for time in turn.overlap],
    }


def _remove(options: argparse.Namespace) -> int:
    store.remove(_folder(options), options.keyid)
    _done(options, f"removed  {options.keyid}", {"removed": options.keyid})
    return ExitCode.DONE


def _revoke(options: argparse.Namespace) -> int:
    store.revoke(_folder(options), options.keyid, datetime.now(UTC))
    _done(options, f"revoked  {options.keyid}", {"revoked": options.keyid})
    return ExitCode.DONE


def _threshold(options: argparse.Namespace) -> int:
    store.set_threshold(_folder(options), options.scope, options.count)
    _done(
        options,
        f"scope {options.scope}: {options.count} signatures",
        {"scope": options.scope, "threshold": options.count},
    )
    return ExitCode.DONE


def _done(options: argparse.Namespace, line: str, answer: dict[str, Any]) -> None:
    if options.json:
        print_json(answer)
    else:
        print_lines([line])


def _folder(options: argparse.Namespace) -> Path:
    folder: Path | None = options.trust
    return Paths.from_environment().trust if folder is None else folder


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise UsageError(Reason.USAGE, str(error), "Write times in UTC, to the second.") from error


def _public(path: Path) -> Key:
    try:
        content = path.read_bytes()[: keys.KEY_LIMIT + 1]
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND, f"cannot read {path}: {error.strerror}", "Name the .pub file of the key."
        ) from error
    return keys.load_public(content, str(path))
