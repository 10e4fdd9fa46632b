"""`egs lineage`: of an execution who asked, what decided, what executed it, what it executed, and how it ended."""

from __future__ import annotations

import argparse
import json
import shlex
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text
from rich.tree import Tree

from egs_kernel.audit.entries import Decision, FindingEntry, Refusal, Request, Verification
from egs_kernel.audit.lineage import Lineage
from egs_kernel.cli.audit.common import add_path
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.cli.output import print_json, print_lines
from egs_kernel.cli.tables import printable, render
from egs_kernel.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.audit.lineage import Link
    from egs_kernel.audit.log import OpenLog
    from egs_kernel.cli.main import Commands
    from egs_kernel.model import ExecEvent

T = TypeVar("T")

LIMIT = 100
_MORE = "there are more: --limit N"
_SHORT = 16
_DEEPEST = 24
_STORIES = 3
"""More executions than these, of one artifact, are told in a line each."""


def add_commands(commands: Commands) -> None:
    """Add `lineage`."""
    parser = commands.add_parser(
        "lineage",
        help="the whole chain of an execution: request, policy, artifact, decision, parents, children, outcome",
        description="Show where an execution comes from and what came of it, out of the record: who asked, which policy and "
        "artifact decided, which execution executed it, up to the root, what it executed itself, and how it ended. "
        "What has not ended says so. It holds across restarts of egsd and of the host.",
    )
    parser.add_argument(
        "wanted",
        metavar="EXECUTION|PID|ARTIFACT",
        help="an execution's number, a process (its last execution), an artifact id or how it begins (all of its "
        "executions), or entry:SEQ, an entry of the record about an exec or a request, also one that was refused",
    )
    parser.add_argument("--tree", action="store_true", help="everything below it, as a tree from the root")
    parser.add_argument(
        "--limit",
        type=_limit,
        default=LIMIT,
        metavar="N",
        help=f"the last N executions of an artifact, and N of what each executed (default {LIMIT}; 0: all)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_path(parser, "--path")
    parser.set_defaults(run=run_lineage)


def run_lineage(options: argparse.Namespace) -> int:
    """`egs lineage`.

    Raises:
        EgsError: the record has no such execution, or cannot be read.
    """
    with open_index(options.path, index_place(options.path), options.cold) as (index, log):
        lineage = Lineage(index)
        limit = options.limit or None
        links, more = _last(lineage.of(options.wanted, limit and limit + 1), limit)
        if options.json:
            found = [_whole(lineage, log, link, limit, deep=options.tree) for link in links]
            print_json({"executions": found, "more": more})
            return ExitCode.DONE
        if more:
            print_lines([f"the last {len(links)}; there are more: --limit N"])
        if options.tree:
            print_lines(render([_tree(lineage, link, limit) for link in links]))
        elif len(links) > _STORIES:
            print_lines(printable(_line(link)) for link in links)
        else:
            for link in links:
                print_lines(_story(lineage, link, limit))
    return ExitCode.DONE


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of executions")
    return int(text)


def _last(found: Sequence[T], limit: int | None) -> tuple[Sequence[T], bool]:
    """The last of them, and whether there are more."""
    more = limit is not None and len(found) > limit
    return (found[-limit:] if more and limit else found), more


def _first(found: Iterable[T], limit: int | None) -> tuple[list[T], bool]:
    """The first of them, and whether there are more."""
    some = list(islice(found, limit and limit + 1))
    return some[:limit], limit is not None and len(some) > limit


# -- for programs --------------------------------------------------------------------------------


def _whole(lineage: Lineage, log: OpenLog, link: Link, limit: int | None, *, deep: bool) -> dict[str, Any]:
    found = lineage.descendants(link) if deep else ((link, child) for child in lineage.children(link))
    below, more = _first(found, limit)
    return _object(log, link) | {
        "ancestors": [_object(log, above) for above in lineage.ancestors(link)],
        "descendants" if deep else "children": [_object(log, child) for _, child in below],
        "more": more,
    }


def _object(log: OpenLog, link: Link) -> dict[str, Any]:
    event = link.event
    end = link.end
    return {
        "execution": str(event.execution) if event is not None and event.execution else None,
        "parent_execution": str(event.parent_execution)
        if event is not None and event.parent_execution
        else None,
        "boot_id": link.boot_id,
        "pid": None if event is None else event.pid,
        "state": end.state,
        "replaced_by": str(end.execution) if end.execution else None,
        "subject": _entry(log, link.subject),
        "request": _entry(log, link.request),
        "verification": _entry(log, link.verification),
        "decision": _entry(log, link.decision),
        "artifact": _entry(log, link.artifact),
        "refused": [_entry(log, item) for item in link.refused],
        "drift": [_entry(log, item) for item in link.drift],
        "outcome": _entry(log, link.outcome),
        "entries": [item.seq for item in link.entries],
    }


def _entry(log: OpenLog, recorded: Recorded | None) -> dict[str, Any] | None:
    """An entry as it stands in the record, without an artifact's text."""
    if recorded is None:
        return None
    entry: dict[str, Any] = json.loads(log.line(recorded.seq))
    entry.pop("envelope", None)
    return entry


# -- for people ----------------------------------------------------------------------------------


def _tree(lineage: Lineage, link: Link, limit: int | None) -> Tree:
    above = lineage.ancestors(link)
    root = Tree(_label(above[0] if above else link, bold=not above))
    branches = [root]
    for item in (*above[1:], link) if above else ():
        branches.append(_below(branches[-1], len(branches), _label(item, bold=item is link)))
    depths = {link.subject.seq: (branches[-1], len(branches))}
    below, more = _first(lineage.descendants(link), limit)
    for parent, child in below:
        branch, depth = depths[parent.subject.seq]
        depths[child.subject.seq] = _below(branch, depth, _label(child)), depth + 1
    if more:
        root.add(Text(_MORE))
    return root


def _below(branch: Tree, depth: int, label: Text) -> Tree:
    """A new branch; from some depth on in the same column, as who reads it has a screen."""
    if depth <= _DEEPEST:
        return branch.add(label)
    branch.add(Text(f"({depth} deep) ").append_text(label))
    return branch


def _label(link: Link, *, bold: bool = False) -> Text:
    style = "red" if link.end.state == "refused" else "green" if link.end.state in {"running", "held"} else ""
    return Text(printable(_line(link)), style=f"bold {style}".strip() if bold else style)


def _line(link: Link) -> str:
    event = link.event
    if event is None:
        return f"{_command(link)}  refused: {_reason(link)}  entry {link.subject.seq}"
    name = f"execution {event.execution}" if event.execution else f"entry {link.subject.seq}"
    artifact = f"  artifact {event.artifact_id[:_SHORT]}" if event.artifact_id else ""
    return f"{_command(link)}  pid {event.pid}  {_end(link)}  {name}{artifact}"


def _story(lineage: Lineage, link: Link, limit: int | None) -> list[str]:
    lines = [_line(link), *(f"  {name:9} {what}" for name, what in _facts(link))]
    above = lineage.ancestors(link)
    lines += [
        f"  {'parents' if number == 0 else '':9} {_line(item)}" for number, item in enumerate(reversed(above))
    ]
    first = (above or (link,))[0].event
    if first is not None and first.parent_execution:
        lines.append(
            f"  {'' if above else 'parents':9} execution {first.parent_execution}, of which the record has no exec"
        )
    elif not above:
        lines.append("  parents   none: it was started from outside of every scope")
    executed, more = _first(lineage.children(link), limit)
    children = [*map(_line, executed), *([_MORE] if more else [])]
    lines += [f"  {'children' if number == 0 else '':9} {line}" for number, line in enumerate(children)]
    return [printable(line) for line in lines]


def _facts(link: Link) -> list[tuple[str, str]]:
    """What is known of it, a line each, in the order in which it happened."""
    facts = []
    if link.request is not None and isinstance(link.request.entry, Request):
        asked = link.request.entry
        peer = f"process {asked.peer.pid} of user {asked.peer.uid}" if asked.peer else "the gate holds it"
        facts.append(("asked", f"{peer}{_at(link.request)}"))
    if link.artifact is not None:
        entry: Any = link.artifact.entry
        where = f" from {entry.source}" if entry.source else ""
        facts.append(("artifact", f"{entry.artifact_id}, {entry.action}{where}{_at(link.artifact)}"))
    if link.verification is not None and isinstance(link.verification.entry, Verification):
        found = link.verification.entry
        signers = ", ".join(keyid[:_SHORT] for keyid in found.signers) or "nobody who is trusted"
        failed = [step.name for step in found.steps if not step.passed]
        how = (
            "passed" if found.passed else f"failed at {', '.join(failed) or 'the start'}: {found.reason.code}"
        )
        facts.append(("verified", f"{how}, signed by {signers}{_at(link.verification)}"))
    if link.decision is not None and isinstance(link.decision.entry, Decision):
        made = link.decision.entry
        grounds = f"policy {made.policy_digest[:_SHORT]}, posture {made.posture[:_SHORT]}"
        facts.append(("decided", f"{_verdict(made)}, {grounds}{_at(link.decision)}"))
    if link.event is not None:
        event = link.event
        mode = "" if event.enforced else ", observed only: not enforced"
        facts.append(("gate", f"{_verdict(event)}, scope {event.scope}{mode}{_at(link.subject)}"))
    for item in link.refused:
        entry = item.entry
        what = f"{entry.word}: {entry.what}" if isinstance(entry, Refusal) else "code"
        facts.append(("refused", f"{what}{_at(item)}"))
    for item in link.drift:
        drift = item.entry
        if isinstance(drift, FindingEntry):
            facts.append(("drift", f"{drift.finding.value}: {drift.detail}: {drift.response}{_at(item)}"))
    if link.outcome is not None:
        used = (
            f"{link.end.cpu_nanoseconds / 1e9:.3f} s of processor time, {link.end.max_rss_bytes // 1024} KiB"
        )
        facts.append(("outcome", f"{_end(link)}, {used}{_at(link.outcome)}"))
    else:
        facts.append(("outcome", _end(link)))
    return facts


def _verdict(judged: Decision | ExecEvent) -> str:
    return f"{judged.verdict.name.lower()} {judged.reason.code}"


def _at(recorded: Recorded) -> str:
    return f"  ({recorded.time}, entry {recorded.seq})"


def _end(link: Link) -> str:
    end = link.end
    match end.state:
        case "ended":
            return f"ended by {end.signal}" if end.signal else f"ended with {end.exit_code}"
        case "replaced":
            return f"went on as execution {end.execution}"
        case "refused":
            return f"refused: {_reason(link)}"
        case "held":
            return "is held"
        case "lost":
            return "not finished: the host went down"
        case _:
            return "not finished"


def _reason(link: Link) -> str:
    event = link.event
    if event is not None:
        return event.reason.code
    return (
        link.decision.entry.reason.code
        if link.decision and isinstance(link.decision.entry, Decision)
        else "unknown"
    )


def _command(link: Link) -> str:
    event = link.event
    if event is not None:
        return f"{event.filename} [{' '.join(shlex.quote(word) for word in event.argv)}]"
    if link.request is not None and isinstance(link.request.entry, Request):
        intent = link.request.entry.intent
        return f"{intent.program} [{' '.join(shlex.quote(word) for word in intent.argv or ())}]"
    return "a launch"
