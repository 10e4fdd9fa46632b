"""`egs status` and `egs ps` for people: colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egs_kernel.daemon.protocol import ProcessStatus, StatusAnswer

_SHORT_ID: Final = 16
_PLAIN_WIDTH: Final = 200


def status_lines(status: StatusAnswer) -> list[str]:
    """The status in words."""
    parts: list[Table | Text] = []
    if status.healthy:
        parts.append(Text(f"egsd {status.version} is authorizing on tier {status.tier}.", style="green"))
    else:
        parts.append(
            Text(
                f"egsd {status.version} AUTHORIZES NOTHING: the host's integrity is not established.",
                style="bold red",
            )
        )
    parts += [
        Text(
            f"OBSERVE MODE: scope {scope.name} only records. It is not EGS-001 compliant (clause 3.1).",
            style="bold yellow",
        )
        for scope in status.scopes
        if not scope.compliant
    ]
    if status.details is not None:
        parts += [Text(f"Problem: {problem}", style="red") for problem in status.details.problems]
    parts.append(Text(_seal(status)))
    if not status.watched:
        parts.append(Text("Nobody watches for drift: egs-monitor does not run."))
    parts.append(
        Text(
            f"Up {_age(status.uptime_seconds)}, last heartbeat {status.heartbeat_age:.1f} s ago. {status.governed} governed "
            f"processes, {status.standing} standing artifacts, {status.refused_artifacts} refused."
        )
    )
    parts.append(_table(("SCOPE", "MODE", "GOVERNS"), [(s.name, s.mode, s.governs) for s in status.scopes]))
    if status.details is not None:
        parts += _details(status)
    return render(parts)


def _seal(status: StatusAnswer) -> str:
    words = {
        "sealed": "Sealed: only the daemon changes anything.",
        "lifted": f"The seal is lifted until {status.lifted_until}.",
    }
    return words.get(status.seal, "Not sealed: root can change the gate and stop the daemon.")


def process_objects(processes: Sequence[ProcessStatus]) -> list[dict[str, Any]]:
    """The processes with what psutil knows of them, for JSON."""
    return [msgspec.to_builtins(process) | {"command": _command(process.pid)} for process in processes]


def process_lines(processes: Sequence[ProcessStatus], *, why: bool = False) -> list[str]:
    """The processes as a table; `why`: and what constraints refused them."""
    now = time.time()
    rows = [
        (
            str(process.pid),
            process.scope,
            process.execution + (" (inherited)" if process.inherited else " (held)" if process.held else ""),
            process.artifact[:_SHORT_ID] or "-",
            _user(process.pid, process.uid),
            _age(now - process.started) if process.started else "-",
            process.program or "-",
            " ".join(_command(process.pid)) or "-",
        )
        for process in processes
    ]
    heading = ("PID", "SCOPE", "EXECUTION", "ARTIFACT", "USER", "AGE", "PROGRAM", "COMMAND")
    parts: list[Table | Text] = [_table(heading, rows)]
    if why:
        parts += [Text(printable(line)) for line in _refusals(processes)]
    return render(parts)


def _refusals(processes: Sequence[ProcessStatus]) -> list[str]:
    """One line for each thing that an execution was refused; processes that share one share the lines."""
    found = {
        f"{process.execution} was refused {item.word}: {item.what}, {item.count} times": None
        for process in processes
        for item in sorted(process.refused, key=lambda item: -item.count)
    }
    return ["", *found] if found else ["", "No constraint refused them anything."]


def printable(text: str) -> str:
    """`text` without what a terminal would obey: names and arguments are others' to choose. Pure."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _details(status: StatusAnswer) -> list[Table | Text]:
    details = status.details
    if details is None:
        return []
    parts: list[Table | Text] = [
        Text(
            f"Host {details.host_id}, its key {details.host_key[:_SHORT_ID]}, policy {details.policy_digest[:_SHORT_ID]}, record {details.record}: "
            f"{details.record_entries} entries. Memory {details.resident_bytes / 2**20:.1f} MB."
        )
    ]
    if details.witnesses:
        rows = [(one.name, str(one.entries), _since(one.cosigned)) for one in details.witnesses]
        parts.append(_table(("WITNESS", "COSIGNED", "AGO"), rows))
    if details.revocation_lists:
        lists = [
            (one.scope, str(one.number), str(one.count), one.next_update) for one in details.revocation_lists
        ]
        parts.append(_table(("REVOCATIONS", "LIST", "THINGS", "NEXT UPDATE"), lists))
    refused = [item for item in details.artifacts if item.state in ("refused", "revoked")]
    if refused:
        files = [(item.file, item.state, item.reason, item.message) for item in refused]
        parts.append(_table(("ARTIFACT FILE", "STATE", "REASON", "WHY"), files))
    if details.decisions:
        counts = [
            (item.verdict if item.enforced else f"{item.verdict} (observed)", item.reason, str(item.count))
            for item in details.decisions
        ]
        parts.append(_table(("VERDICT", "REASON", "COUNT"), counts))
    if details.failures:
        parts.append(
            _table(("GATE FAILURE", "COUNT"), [(name, str(n)) for name, n in details.failures.items()])
        )
    return parts


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in heading:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: markup in a name is no markup
    return table


def render(parts: Iterable[RenderableType]) -> list[str]:
    """Lines of text: coloured on a terminal, plain elsewhere."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=None if terminal else _PLAIN_WIDTH,
        highlight=False,
    )
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text | Tree))
    output = console.file
    text = output.getvalue() if isinstance(output, io.StringIO) else ""
    return [line.rstrip() for line in text.splitlines()]


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _user(pid: int, uid: int) -> str:
    try:
        return psutil.Process(pid).username()
    except (psutil.Error, KeyError):
        return str(uid)


def _since(moment: float) -> str:
    return _age(time.time() - moment) if moment else "never"


def _age(seconds: float) -> str:
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} m"
    return f"{minutes} m {rest} s" if minutes else f"{rest} s"
