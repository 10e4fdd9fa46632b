"""`egs drift`: what was found of running programs and of the host, what was done, and what other rules would have done."""

from __future__ import annotations

import argparse
import select
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egs_kernel.audit.describe import describe
from egs_kernel.audit.entries import FindingEntry, ResponseEntry, WatchChange
from egs_kernel.audit.lines import decode
from egs_kernel.cli.audit.common import add_folder, add_path, print_entry, print_text
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.cli.audit.query import since_of
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.errors import EgsError, ExitCode
from egs_kernel.findings import Finding
from egs_kernel.model import Mode, Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.audit.index import Index
    from egs_kernel.audit.log import OpenLog
    from egs_kernel.cli.main import Commands

_TYPES: Final = ("finding", "response", "watch")
_DAY: Final = "1d"
_WEEK: Final = "7d"


def add_commands(commands: Commands) -> None:
    """Add `drift`."""
    drift = commands.add_parser(
        "drift",
        help="what governed programs and the host have become, and what was done about it",
        description="Show the findings of the monitor and its responses, out of the record. Without an action: those of the last day.",
    )
    drift.add_argument("--json", action="store_true", help="print one JSON object")
    drift.set_defaults(run=run_history, since=_DAY, finding=None, execution=None, path=None, cold=None)
    actions = drift.add_subparsers(title="actions", metavar="ACTION")
    history = _action(actions, "history", run_history, "findings and responses, the oldest first")
    history.add_argument(
        "--since", default=_WEEK, metavar="T", help=f"a date, or a time ago (default {_WEEK})"
    )
    history.add_argument(
        "--finding",
        choices=[each.value for each in Finding],
        metavar="F",
        help="only these, and what was done about them",
    )
    history.add_argument("--execution", type=int, metavar="N", help="only those about this execution")
    add_path(history, "--path")
    live = _action(
        actions, "live", run_live, "findings and responses as they come", "print one JSON object a line"
    )
    add_folder(live, "--path")
    explain = _action(
        actions, "explain", run_explain, "what a finding means, what it was compared with, and what was done"
    )
    explain.add_argument("wanted", metavar="NUMBER|FINDING", help="a finding's number, or the name of one")
    add_path(explain, "--path")
    dry_run = _action(
        actions,
        "dry-run",
        run_dry_run,
        "what other rules would have done about the findings of the last week",
    )
    dry_run.add_argument("--rules", type=Path, metavar="FILE", help="another drift.toml than the active one")
    dry_run.add_argument(
        "--since", default=_WEEK, metavar="T", help=f"a date, or a time ago (default {_WEEK})"
    )
    add_path(dry_run, "--path")
    resume = _action(actions, "resume", run_resume, "let what was suspended go on; root, where the gate is")
    resume.add_argument("execution", type=int, metavar="EXECUTION", help="as the finding names it")


def _action(
    actions: Commands,
    word: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    json: str = "print one JSON object",
) -> argparse.ArgumentParser:
    parser = actions.add_parser(word, help=text)
    parser.add_argument("--json", action="store_true", help=json)
    parser.set_defaults(run=run)
    return parser


def run_history(options: argparse.Namespace) -> int:
    """`egs drift history`.

    Raises:
        EgsError: there is no record, or it cannot be read.
    """
    path = options.path or Paths.from_environment().record
    with open_index(path, index_place(path), options.cold) as (index, log):
        found = list(_wanted(_recorded(index, log, options.since), options))
    if options.json:
        print_json({"entries": [_object(each) for each in found]})
    else:
        print_lines([describe(each) for each in found] or ["Nothing was found."])
    return int(ExitCode.DONE)


def _recorded(index: Index, log: OpenLog, since: str) -> Iterable[Recorded]:
    from egs_kernel.audit.lines import microseconds  # noqa: PLC0415 - of this function alone

    moment = since_of(since)
    after = None if moment is None else microseconds(moment)
    numbers = sorted(number for kind in _TYPES for number in index.numbers(type=kind, since=after))
    return [decode(log.line(number)) for number in numbers]


def _wanted(entries: Iterable[Recorded], options: argparse.Namespace) -> Iterator[Recorded]:
    """Those of the finding and of the execution that were asked for; a response is of its finding."""
    of_finding = set()
    for recorded in entries:
        entry = recorded.entry
        if isinstance(entry, FindingEntry) and options.finding in (None, entry.finding.value):
            of_finding.add(entry.number)
        if options.finding is not None and getattr(entry, "number", None) not in of_finding:
            continue
        if options.execution in (None, getattr(entry, "execution", None)):
            yield recorded


def _object(recorded: Recorded) -> dict[str, Any]:
    entry: dict[str, Any] = msgspec.to_builtins(recorded.entry)
    for wide in ("execution", "start_ticks"):  # JSON numbers end at 2^53
        if wide in entry:
            entry[wide] = str(entry[wide])
    return {"seq": recorded.seq, "time": recorded.time, **entry}


def run_live(options: argparse.Namespace) -> int:
    """`egs drift live`.

    Raises:
        EgsError: there is no record, or it cannot be read.
    """
    from egs_kernel.audit.lines import encode  # noqa: PLC0415 - the others need no such thing
    from egs_kernel.audit.reader import open_record  # noqa: PLC0415 - as above
    from egs_kernel.monitor.tail import Tail  # noqa: PLC0415 - as above

    open_record(options.path)
    tail = Tail(options.path)
    try:
        tail.skip()
        while True:
            for recorded in tail.read():
                if isinstance(recorded.entry, FindingEntry | ResponseEntry | WatchChange):
                    print_entry(
                        encode(recorded.entry, seq=recorded.seq, time=recorded.time), as_json=options.json
                    )
            sys.stdout.flush()
            select.select([tail], [], [])
    finally:
        tail.close()


def run_explain(options: argparse.Namespace) -> int:
    """`egs drift explain`.

    Raises:
        EgsError: there is no such finding.
    """
    from egs_kernel.drift.words import MEANINGS  # noqa: PLC0415 - of this command alone

    named = next((finding for finding in Finding if finding.value == options.wanted), None)
    if named is not None and options.json:
        print_json({"finding": named.value, "meaning": MEANINGS[named]})
        return int(ExitCode.DONE)
    if named is not None:
        print_text(f"{named.value}: {MEANINGS[named]}.")
        return int(ExitCode.DONE)
    with open_index(options.path, index_place(options.path), options.cold) as (index, log):
        related = [decode(log.line(number)) for kind in _TYPES for number in index.numbers(type=kind)]
        related = [each for each in related if str(getattr(each.entry, "number", "")) == options.wanted]
        entry = next((each.entry for each in related if isinstance(each.entry, FindingEntry)), None)
        if entry is None:
            raise EgsError(
                Reason.NOT_FOUND, f"the record has no finding {options.wanted}", "Run: egs drift history"
            )
        numbers = index.numbers(execution=str(entry.execution)) if entry.execution else iter(())
        compared = [decode(log.line(number)) for number in numbers]
    compared = [each for each in compared if each.entry.__struct_config__.tag in {"exec", "baseline"}]
    if options.json:
        print_json(
            {
                "meaning": MEANINGS[entry.finding],
                "entries": [_object(each) for each in related],
                "baseline": [_object(each) for each in compared],
            }
        )
        return int(ExitCode.DONE)
    print_lines(
        [
            f"{entry.finding.value}: {MEANINGS[entry.finding]}.",
            *(describe(each) for each in related),
            f"What says what is done: {entry.rule}.",
            *(f"It was compared with: {describe(each)}" for each in compared),
            *([f"Where it comes from: egs lineage {entry.execution}"] if entry.execution else []),
        ]
    )
    return int(ExitCode.DONE)


def run_dry_run(options: argparse.Namespace) -> int:
    """`egs drift dry-run`.

    Raises:
        EgsError: the rules are wrong, or the record cannot be read.
    """
    from egs_kernel.drift.history import replay  # noqa: PLC0415 - of this command alone
    from egs_kernel.monitor.setting import load_rules, read_rules  # noqa: PLC0415 - as above

    paths = Paths.from_environment()
    rules = load_rules(paths) if options.rules is None else read_rules(options.rules)
    with open_index(options.path, index_place(options.path), options.cold) as (index, log):
        findings = [
            each.entry
            for each in _recorded(index, log, options.since)
            if isinstance(each.entry, FindingEntry)
        ]
        said = {
            artifact_id: [
                decode(log.line(number)) for number in index.numbers(type="artifact", artifact=artifact_id)
            ]
            for artifact_id in {entry.artifact_id for entry in findings if entry.artifact_id}
        }
    outcomes = replay(findings, rules, said, Mode.ENFORCE)
    if options.json:
        print_json(
            {
                "rules": str(options.rules or paths.drift_rules),
                "findings": [
                    {
                        "number": entry.number,
                        "finding": entry.finding.value,
                        "execution": str(entry.execution),
                        "was": entry.response,
                        "would_be": decided.response.word,
                        "rule": decided.rule,
                    }
                    for entry, decided in outcomes
                ],
            }
        )
        return int(ExitCode.DONE)
    counts = Counter(
        (entry.finding.value, entry.response, decided.response.word, decided.rule)
        for entry, decided in outcomes
    )
    rows = [
        (finding, was, would, rule, str(count))
        for (finding, was, would, rule), count in sorted(counts.items())
    ]
    print_lines(
        columns(("FINDING", "WAS", "WOULD BE", "RULE", "TIMES"), rows) if rows else ["Nothing was found."]
    )
    return int(ExitCode.DONE)


def run_resume(options: argparse.Namespace) -> int:
    """`egs drift resume`.

    Raises:
        EgsError: the gate cannot be opened, nobody of that execution is suspended, or egsd cannot record it.
    """
    from egs_kernel.monitor.resume import resume  # noqa: PLC0415 - it opens the gate

    outcome = resume(Paths.from_environment(), options.execution)
    if options.json:
        print_json(
            {
                "execution": str(options.execution),
                "processes": outcome.processes,
                "verified": outcome.verified,
            }
        )
    else:
        print_text(f"{outcome.processes} processes go on")
    return int(ExitCode.DONE if outcome.verified else ExitCode.REFUSED)
