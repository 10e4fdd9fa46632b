"""`egs WORD …`: finds the module of the word, runs it, and turns errors into messages and exit codes.

A command module has `add_commands(commands)`: it adds its parsers, each with `set_defaults(run=…)`, a
function from the parsed arguments to an exit code. Only the module of the word that was typed is imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.errors import EgsError, ExitCode

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse names it nowhere else

Run = Callable[[argparse.Namespace], int]

_MODULES: Final = {
    "egs_kernel.cli.keys": ("keys",),
    "egs_kernel.cli.trust": ("trust",),
    "egs_kernel.cli.issue": ("issue", "sign"),
    "egs_kernel.cli.verify": ("verify", "show"),
    "egs_kernel.cli.profile": ("profile",),
    "egs_kernel.cli.policy": ("policy",),
    "egs_kernel.cli.gate": ("gate", "doctor"),
    "egs_kernel.cli.audit": ("audit",),
    "egs_kernel.cli.lineage": ("lineage",),
    "egs_kernel.cli.drift": ("drift",),
    "egs_kernel.cli.proof": ("proof",),
    "egs_kernel.cli.system": ("status", "ps", "artifacts", "reload", "config", "version"),
    "egs_kernel.cli.revocations": ("revoke", "revocations"),
    "egs_kernel.cli.baseline": ("baseline",),
    "egs_kernel.cli.holds": ("holds",),
    "egs_kernel.cli.seal": ("seal", "unseal", "maintenance"),
    "egs_kernel.cli.wrap": ("wrap",),
    "egs_kernel.cli.authority": ("authority",),
    "egs_kernel.cli.requests": ("request", "approvals", "approve"),
    "egs_kernel.cli.console": ("console",),
    "egs_kernel.cli.witness": ("witness",),
}
INTERRUPTED: Final = 130
UNHEARD: Final = 141
"""As a shell shows SIGPIPE."""


def run(arguments: Sequence[str]) -> int:
    """Run `egs` with these arguments and return its exit code."""
    parser = _parser(arguments)
    parsed = parser.parse_args(_attached(arguments))
    if not hasattr(parsed, "run"):
        parser.print_help(sys.stderr)
        return int(ExitCode.USAGE)
    try:
        return int(parsed.run(parsed))
    except EgsError as error:
        _report(error, as_json=getattr(parsed, "json", False))
        return int(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left, and Python would complain at the end
        return UNHEARD
    except KeyboardInterrupt:
        return INTERRUPTED


def _attached(arguments: Sequence[str]) -> list[str]:
    """`--argv -c` → `--argv=-c`, as argparse would take -c for an option of ours."""
    attached: list[str] = []
    for argument in arguments:
        if attached and attached[-1] == "--argv":
            attached[-1] = f"--argv={argument}"
        else:
            attached.append(argument)
    return attached


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only; a command without a description begins its help with its line in the list."""

    def __init__(self, **settings: Any) -> None:
        text = settings.pop("line", "")
        settings.setdefault("description", f"{text[:1].upper()}{text[1:]}.")
        super().__init__(allow_abbrev=False, **settings)
        self.register("action", "parsers", _Words)


class _Words(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001 - not generic at run time
    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().add_parser(name, line=settings["help"], **settings)
        return parser


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="egs",
        description="Execution authorization: in a governed scope nothing runs without a signed artifact.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    word = next((argument for argument in arguments if not argument.startswith("-")), None)
    names = [name for name, words in _MODULES.items() if word in words]
    for name in names or _MODULES:
        if names or importlib.util.find_spec(name) is not None:
            importlib.import_module(name).add_commands(commands)
    if not names:
        commands.add_parser(
            "run", help="ask the daemon to authorize a command, and become it", add_help=False
        )
    return parser


def _report(error: EgsError, *, as_json: bool) -> None:
    if as_json:
        answer = {
            "error": {"reason": error.reason.code, "message": error.message, "next_step": error.next_step}
        }
        sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stderr.write(f"egs: {error}\n")
    if error.next_step:
        sys.stderr.write(f"{error.next_step}\n")
