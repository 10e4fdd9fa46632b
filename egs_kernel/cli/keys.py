"""`egs keys generate`, and `egs trust add | list | remove | revoke | threshold`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.trust import keys, store

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

_KEY_NAME_FORBIDDEN = frozenset("/\0")


def add_commands(commands: Commands) -> None:
    """Add `keys` and `trust`."""
    _add_keys(commands)
    _add_trust(commands)


def _add_keys(commands: Commands) -> None:
    words = commands.add_parser("keys", help="make key pairs").add_subparsers(metavar="WORD", required=True)
    generate = words.add_parser("generate", help="write N.key (mode 0600) and N.pub; never overwrites")
    generate.add_argument("--name", required=True, metavar="N", help="name of the files, without suffix")
    generate.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder; made when missing")
    generate.add_argument(
        "--algorithm", choices=[kind.value for kind in keys.Algorithm], default=keys.Algorithm.ED25519.value
    )
    _json(generate)
    generate.set_defaults(run=_generate)


def _add_trust(commands: Commands) -> None:
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
    add.set_defaults(run=_trust_add)
    listing = words.add_parser("list", help="the trusted keys, and the thresholds")
    listing.set_defaults(run=_trust_list)
    remove = words.add_parser("remove", help="forget a key")
    remove.add_argument("keyid", metavar="KEYID")
    remove.set_defaults(run=_trust_remove)
    revoke = words.add_parser("revoke", help="keep a key on file as revoked: refusals will say so")
    revoke.add_argument("keyid", metavar="KEYID")
    revoke.set_defaults(run=_trust_revoke)
    threshold = words.add_parser("threshold", help="how many keys must sign for a scope")
    threshold.add_argument(
        "scope", metavar="SCOPE", help="scope name; * is every scope without its own number"
    )
    threshold.add_argument("count", type=int, metavar="N")
    threshold.set_defaults(run=_trust_threshold)
    for parser in (add, listing, remove, revoke, threshold):
        parser.add_argument("--trust", type=Path, metavar="DIR", help="trust folder (default: the host's)")
        _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _generate(options: argparse.Namespace) -> int:
    name: str = options.name
    if not name or name.startswith(".") or _KEY_NAME_FORBIDDEN & set(name) or not name.isprintable():
        raise UsageError(
            Reason.USAGE, f"{name!r} is no file name", "Name the key with letters, digits, - and _."
        )
    signer = keys.generate(keys.Algorithm(options.algorithm))
    try:
        options.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        private, public = keys.write_pair(signer, options.out, name)
    except OSError as error:
        raise UsageError(
            Reason.USAGE,
            f"cannot write into {options.out}: {error.strerror}",
            "Name a folder that you can write.",
        ) from error
    keyid = signer.public_key.keyid
    if options.json:
        print_json(
            {"keyid": keyid, "algorithm": options.algorithm, "private": str(private), "public": str(public)}
        )
    else:
        print_lines([f"key      {keyid}", f"private  {private}  (keep it secret)", f"public   {public}"])
    return ExitCode.DONE


def _trust_add(options: argparse.Namespace) -> int:
    try:
        content = options.file.read_bytes()[: keys.KEY_LIMIT + 1]
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND,
            f"cannot read {options.file}: {error.strerror}",
            "Name the .pub file of the key.",
        ) from error
    for scope in options.scope:
        store.require_scope_name(scope)
    not_before, not_after = (_time(text) for text in (options.not_before, options.not_after))
    if not_before is not None and not_after is not None and not_before >= not_after:
        raise UsageError(Reason.USAGE, "--not-before must be earlier than --not-after", "Correct the times.")
    entry = store.TrustedKey(
        key=keys.load_public(content, str(options.file)),
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


def _trust_list(options: argparse.Namespace) -> int:
    trust = store.TrustStore.load(_folder(options))
    now = datetime.now(UTC)
    entries = [_describe(entry, now) for _keyid, entry in sorted(trust.keys.items())]
    if options.json:
        print_json({"keys": entries, "thresholds": dict(trust.thresholds)})
        return ExitCode.DONE
    rows = [
        (
            entry["keyid"],
            entry["algorithm"],
            ",".join(entry["roles"]),
            ",".join(entry["scopes"]),
            entry["state"],
            entry["name"] or "",
        )
        for entry in entries
    ]
    print_lines(columns(("KEYID", "ALGORITHM", "ROLES", "SCOPES", "STATE", "NAME"), rows))
    print_lines(f"scope {scope}: {count} signatures" for scope, count in sorted(trust.thresholds.items()))
    return ExitCode.DONE


def _describe(entry: store.TrustedKey, now: datetime) -> dict[str, Any]:
    times = {"notBefore": entry.not_before, "notAfter": entry.not_after, "revoked": entry.revoked}
    return {
        "keyid": entry.keyid,
        "algorithm": keys.algorithm_of(entry.key).value,
        "roles": sorted(role.value for role in entry.roles),
        "scopes": sorted(entry.scopes),
        "name": entry.name,
        "state": entry.problem(now) or "valid",
        **{name: None if time is None else format_time(time) for name, time in times.items()},
    }


def _trust_remove(options: argparse.Namespace) -> int:
    store.remove(_folder(options), options.keyid)
    _done(options, f"removed  {options.keyid}", {"removed": options.keyid})
    return ExitCode.DONE


def _trust_revoke(options: argparse.Namespace) -> int:
    store.revoke(_folder(options), options.keyid, datetime.now(UTC))
    _done(options, f"revoked  {options.keyid}", {"revoked": options.keyid})
    return ExitCode.DONE


def _trust_threshold(options: argparse.Namespace) -> int:
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
