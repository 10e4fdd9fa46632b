"""`egs audit verify | show | tail | query`: reading and checking the record (docs/record.md)."""

from __future__ import annotations

import argparse
import json
import select
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.chain import START
from egs_kernel.audit.describe import describe
from egs_kernel.audit.entries import ENTRY_TYPES
from egs_kernel.audit.lines import decode, timestamp
from egs_kernel.audit.query import Query
from egs_kernel.audit.reader import last_position, last_seq, lines_from, opened, record_file, verify
from egs_kernel.config import parse_duration
from egs_kernel.daemon.watch import FILE, Watcher
from egs_kernel.errors import EgsError, ExitCode, UsageError
from egs_kernel.model import Reason, Verdict
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from egs_kernel.cli.main import Commands


def add_commands(commands: Commands) -> None:
    """Add `egs audit`."""
    audit = commands.add_parser("audit", help="read and verify the record")
    words = audit.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_verify(words)
    _add_show(words)
    _add_tail(words)
    _add_query(words)


def _add(
    words: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = words.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)
    return parser


def _add_path(parser: argparse.ArgumentParser, option: str) -> None:
    parser.add_argument(
        option,
        type=Path,
        default=Paths.from_environment().record,
        help="the record's folder, or a copy of its file",
    )


def _add_verify(words: Commands) -> None:
    parser = _add(words, "verify", run_verify, "check every entry, the chain, and the end of the record")
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=Paths.from_environment().record,
        help="the record's folder, or a copy of its file",
    )


def _add_show(words: Commands) -> None:
    parser = _add(words, "show", run_show, "the record as a whole, or one entry of it")
    parser.add_argument("seq", nargs="?", type=_natural, metavar="SEQ", help="the number of an entry")
    _add_path(parser, "--path")


def _add_tail(words: Commands) -> None:
    parser = _add(words, "tail", run_tail, "the last entries")
    parser.add_argument("-n", "--lines", type=_natural, default=10, metavar="N", help="how many (10)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with entries as they come")
    _add_path(parser, "--path")


def _add_query(words: Commands) -> None:
    parser = _add(words, "query", run_query, "entries that match all of the conditions")
    parser.add_argument("--reason", metavar="R", help="a reason code, such as no_grant")
    parser.add_argument("--verdict", metavar="V", help="allow, deny, kill or hold")
    parser.add_argument("--pid", type=_natural, metavar="N", help="the process that asked, executed or ended")
    parser.add_argument("--artifact", metavar="ID", help="an artifact id, or how it begins")
    parser.add_argument("--type", metavar="T", help=", ".join(ENTRY_TYPES))
    parser.add_argument("--scope", metavar="S", help="a scope's name")
    parser.add_argument(
        "--since", metavar="T", help="2026-11-23, 2026-11-23T14:00:00Z, or a time ago: 90s, 15m, 1h, 30d"
    )
    _add_path(parser, "--path")


def run_verify(arguments: argparse.Namespace) -> int:
    """`egs audit verify`.

    Raises:
        RecordError: the record does not verify.
    """
    with _progress(enabled=sys.stderr.isatty()) as progress:
        found = verify(arguments.path, progress)
    answer = {
        "verified": True,
        "path": str(arguments.path),
        "size": found.position.size,
        "head": found.position.hash,
        "head_checked": found.head_checked,
        "first_time": found.first_time,
        "last_time": found.last_time,
        "types": found.types,
        "unknown_types": found.unknown_types,
        "torn_bytes": found.torn,
    }
    if arguments.json:
        _print(json.dumps(answer))
        return int(ExitCode.DONE)
    _print(f"verified: {found.position.size} entries, each follows the one before it")
    _print(f"head: {found.position.hash}")
    if not found.head_checked:
        _print(
            "no `head` beside this file: compare the hash above with one that you noted to know the end is whole"
        )
    if found.unknown_types:
        _print(f"{found.unknown_types} entries are of types that this version does not know")
    if found.torn:
        _print(f"{found.torn} bytes after the last entry are being written, or were cut off by a crash")
    return int(ExitCode.DONE)


def run_show(arguments: argparse.Namespace) -> int:
    """`egs audit show [SEQ]`.

    Raises:
        EgsError: there is no such entry, or no record.
    """
    with opened(arguments.path) as file:
        if arguments.seq is not None:
            return _show_entry(file, arguments.seq, as_json=arguments.json)
        position = last_position(file)
        summary = {
            "path": str(arguments.path),
            "file": str(record_file(arguments.path)),
            "size": position.size,
            "bytes": position.end,
            "head": position.hash,
            "first_time": _time_of(file, 0) if position != START else None,
            "last_time": _time_of(file, position.seq) if position != START else None,
        }
    if arguments.json:
        _print(json.dumps(summary))
    else:
        for name, value in summary.items():
            _print(f"{name.replace('_', ' ')}: {value}")
    return int(ExitCode.DONE)


def _show_entry(file: BinaryIO, seq: int, *, as_json: bool) -> int:
    line = next(lines_from(file, seq), None)
    if line is None:
        raise EgsError(Reason.NOT_FOUND, f"there is no entry {seq}", f"The last entry is {last_seq(file)}.")
    recorded = decode(line)
    if as_json:
        _print(line.decode())
    else:
        _print(json.dumps(json.loads(line), indent=2, sort_keys=True))
        _print(f"sha256 {recorded.hash}")
    return int(ExitCode.DONE)


def _time_of(file: BinaryIO, seq: int) -> str:
    return decode(next(lines_from(file, seq))).time


def run_tail(arguments: argparse.Namespace) -> int:
    """`egs audit tail`.

    Raises:
        EgsError: there is no record, or it may not be read.
    """
    watcher = Watcher(lambda: None)
    try:
        with opened(arguments.path) as file:
            if arguments.follow:  # before the first look, so that nothing falls between
                watcher.add(record_file(arguments.path), FILE, lambda _name: None)
            seq = max(0, last_seq(file) + 1 - arguments.lines)
            while True:
                for line in lines_from(file, seq):
                    seq = _print_entry(line, as_json=arguments.json) + 1
                if not arguments.follow:
                    return int(ExitCode.DONE)
                sys.stdout.flush()
                select.select([watcher], [], [])
                watcher.dispatch()
    finally:
        watcher.close()


def run_query(arguments: argparse.Namespace) -> int:
    """`egs audit query`.

    Raises:
        UsageError: a condition makes no sense.
        EgsError: there is no record, or it may not be read.
    """
    query = Query(
        reason=_reason(arguments.reason),
        verdict=_verdict(arguments.verdict),
        pid=arguments.pid,
        artifact=arguments.artifact,
        type=_type(arguments.type),
        scope=arguments.scope,
        since=_since(arguments.since, datetime.now(UTC)),
    )
    with opened(arguments.path) as file:
        needles = query.needles()
        for line in lines_from(file, 0):
            if all(needle in line for needle in needles) and query.matches(decode(line)):
                _print_entry(line, as_json=arguments.json)
    return int(ExitCode.DONE)


def _print_entry(line: bytes, *, as_json: bool) -> int:
    recorded = decode(line)
    _print(line.decode() if as_json else describe(recorded))
    return recorded.seq


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@contextmanager
def _progress(*, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    if not enabled:
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only for a terminal
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 15:  # noqa: PLR2004 - below 2^53
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _reason(text: str | None) -> Reason | None:
    if text is None:
        return None
    if text.upper() not in Reason.__members__:
        codes = ", ".join(reason.code for reason in Reason)
        raise UsageError(Reason.USAGE, f"{text!r} is no reason code", f"Use one of: {codes}.")
    return Reason[text.upper()]


def _verdict(text: str | None) -> Verdict | None:
    if text is None:
        return None
    if text.upper() not in Verdict.__members__:
        raise UsageError(Reason.USAGE, f"{text!r} is no verdict", "Use allow, deny, kill or hold.")
    return Verdict[text.upper()]


def _type(text: str | None) -> str | None:
    if text is not None and text not in ENTRY_TYPES:
        raise UsageError(Reason.USAGE, f"{text!r} is no entry type", f"Use one of: {', '.join(ENTRY_TYPES)}.")
    return text


def _since(text: str | None, now: datetime) -> str | None:
    """A date or a time ago, as the record writes times, so that text compares as time does."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = now - timedelta(seconds=parse_duration(text, "--since"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    return timestamp(whole * 1000)
