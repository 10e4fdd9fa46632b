"""`egs audit query`."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.entries import ENTRY_TYPES
from egs_kernel.audit.lines import decode, timestamp
from egs_kernel.audit.log import open_log
from egs_kernel.audit.query import Query
from egs_kernel.cli.audit.common import add_path, add_word, natural, print_entry
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.config import parse_duration
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason, Verdict

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `query`."""
    parser = add_word(words, "query", run_query, "entries that match all of the conditions")
    parser.add_argument("--reason", metavar="R", help="a reason code, such as no_grant")
    parser.add_argument("--verdict", metavar="V", help="allow, deny, kill or hold")
    parser.add_argument("--pid", type=natural, metavar="N", help="the process that asked, executed or ended")
    parser.add_argument("--artifact", metavar="ID", help="an artifact id, or how it begins")
    parser.add_argument("--type", metavar="T", help=", ".join(ENTRY_TYPES))
    parser.add_argument("--scope", metavar="S", help="a scope's name")
    parser.add_argument(
        "--since", metavar="T", help="2026-11-23, 2026-11-23T14:00:00Z, or a time ago: 90s, 15m, 1h, 30d"
    )
    add_path(parser, "--path")
    parser.add_argument(
        "--no-index", action="store_true", help="read the whole record, not what the index says is worth it"
    )


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
        since=since_of(arguments.since),
    )
    with _candidates(arguments, query) as lines:
        for line in lines:
            if query.matches(decode(line)):
                print_entry(line, as_json=arguments.json)
    return int(ExitCode.DONE)


@contextmanager
def _candidates(arguments: argparse.Namespace, query: Query) -> Iterator[Iterator[bytes]]:
    """The entries that may match: those that the index names, or all."""
    if arguments.no_index:
        with open_log(arguments.path, arguments.cold) as log:
            needles = query.needles()
            yield (line for line in log.lines(0) if all(needle in line for needle in needles))
        return
    with open_index(arguments.path, index_place(arguments.path), arguments.cold) as (index, log):
        yield (log.line(seq) for seq in index.numbers(**query.columns()))


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


_LAST_MOMENT: Final = 253402300799_999999
"""9999-12-31T23:59:59.999999Z, in microseconds since 1970."""


def _type(text: str | None) -> str | None:
    if text is not None and text not in ENTRY_TYPES:
        raise UsageError(Reason.USAGE, f"{text!r} is no entry type", f"Use one of: {', '.join(ENTRY_TYPES)}.")
    return text


def since_of(text: str | None) -> str | None:
    """A date or a time ago, as the record writes times, so that text compares as time does.

    Raises:
        UsageError: it is neither, or a date before 1970.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.now(UTC) - timedelta(seconds=parse_duration(text, "--since"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    if not 0 <= whole <= _LAST_MOMENT:
        raise UsageError(Reason.USAGE, f"{text!r} is no time of a record", "Write a date, or a time ago: 1h.")
    return timestamp(whole * 1000)
