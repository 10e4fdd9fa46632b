"""`egs profile record`: a constraint proposed from a real run."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egs_kernel.audit.describe import printable
from egs_kernel.cli.files import replace_file
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.constraints.kernel_messages import name_call
from egs_kernel.constraints.proposal import Seen, propose, propose_exact, toml_of
from egs_kernel.constraints.seccomp import check
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.calls import SyscallConstraint
    from egs_kernel.cli.main import Commands

_WIDTH: Final = 110


def add_commands(commands: Commands) -> None:
    """Add `profile`."""
    profile = commands.add_parser("profile", help="propose what a program may do, from a run of it")
    actions = profile.add_subparsers(title="actions", metavar="ACTION", required=True)
    record = actions.add_parser(
        "record",
        help="run a command and propose a constraint that allows what it did",
        description="Run CMD as you, with its own arguments, until it and all that it started have ended; see which "
        "system calls they make; propose a constraints file for egs issue --constraints: the nearest profile, and what it "
        "lacks. A run shows what happened in it and nothing else: let it do all that the program is for, and read what is "
        "proposed before you sign it. It runs as under a constraint, so sudo and its like get no privileges, and slower. Its "
        "output goes to standard error where the proposal goes to standard output.",
    )
    record.add_argument("--out", type=Path, metavar="FILE.toml", help="write it there (default: print it)")
    record.add_argument(
        "--exact", action="store_true", help="allow the calls that were seen and no others, without a profile"
    )
    record.add_argument("--json", action="store_true", help="print one JSON object")
    record.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD [ARG ...]")
    record.set_defaults(run=_record)


def _record(options: argparse.Namespace) -> int:
    from egs_kernel.cli.recording import record  # noqa: PLC0415 - only when something is recorded

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError(Reason.USAGE, "no command was given", "Add it: egs profile record -- CMD [ARG …]")
    seen = Seen()

    def take(convention: int, number: int, arguments: tuple[int, ...]) -> None:
        seen.take(*_named(convention, number), arguments)

    code = record(command, take, quiet=options.json or options.out is None)
    constraint = propose_exact(seen) if options.exact else propose(seen)
    check(constraint)
    text = toml_of(constraint, _comments(command, seen))
    if options.out is not None:
        replace_file(options.out, text.encode())
    _report(options, seen, constraint, text, code)
    return int(ExitCode.DONE)


def _comments(command: list[str], seen: Seen) -> list[str]:
    """What the file says of where it comes from: a name or an argument may hold anything but a line's end."""
    calls = ", ".join(f"{name} {count}" for name, count in _rows(seen)) or "none but those of every launch"
    return [
        f"Proposed by a run of: {printable(shlex.join(command))}",
        *textwrap.wrap(f"It made: {calls}.", _WIDTH),
    ]


def _rows(seen: Seen) -> list[tuple[str, int]]:
    """The calls and how often, the most frequent first."""
    return [
        (f"{convention} {name}".strip(), count)
        for (convention, name), count in sorted(seen.counts.items(), key=lambda item: (-item[1], item[0]))
    ]


@lru_cache(maxsize=4096)
def _named(convention: int, number: int) -> tuple[str, str]:
    """The convention and the name, as `Seen` has them."""
    prefix, _, name = name_call(convention, number).rpartition(" ")
    if prefix.endswith("call"):
        return prefix.removesuffix("call").strip(), f"call {name}"
    return prefix, name


def _report(
    options: argparse.Namespace, seen: Seen, constraint: SyscallConstraint, text: str, code: int
) -> None:
    rows = _rows(seen)
    if options.json:
        answer: dict[str, Any] = {
            "calls": dict(rows),
            "unknown": list(seen.unknown),
            "exit_code": code,
            "file": str(options.out) if options.out else None,
            "constraints": {"syscalls": msgspec.to_builtins(constraint)},
        }
        print_json(answer)
        return
    if options.out is None:
        print_lines(text.splitlines())
        return
    print_lines(columns(("CALL", "COUNT"), [(name, str(count)) for name, count in rows]))
    print_lines(["", *_notes(seen, code), f"{options.out}: {_summary(constraint)}"])


def _notes(seen: Seen, code: int) -> list[str]:
    notes = [f"It ended with exit code {code}."] if code else []
    if seen.unknown:
        notes.append(f"Not to be allowed, they will answer ENOSYS: {', '.join(seen.unknown)}.")
    return notes


def _summary(constraint: SyscallConstraint) -> str:
    if constraint.profile is None:
        return f"{len(constraint.allow)} calls, and no others."
    more = [*constraint.allow, *(f"{rule.call} with a rule" for rule in constraint.rules)]
    return f"profile {constraint.profile}" + (f", and {', '.join(more)}." if more else ".")
