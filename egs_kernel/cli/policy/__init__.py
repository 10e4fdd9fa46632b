"""`egs policy`: write, check, test, sign and activate policy sets, and ask them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

SET = "SET"
"""What the help calls a set: its folder, or its signed file."""


def add_commands(commands: Commands) -> None:
    """Add `policy`."""
    policy = commands.add_parser("policy", help="write, check, test, sign and activate policy sets")
    words = policy.add_subparsers(metavar="WORD", required=True)

    starters = words.add_parser(
        "starters",
        help="list sets to begin with, or copy one",
        description="List the sets that come with egs-kernel; with NAME and --out, copy one, with its tests.",
    )
    starters.add_argument("name", nargs="?", metavar="NAME")
    starters.add_argument("--out", type=Path, metavar="DIR", help="a folder that does not exist yet")
    starters.set_defaults(run=_starters)

    check = words.add_parser(
        "check",
        help="whether a set is one: Cedar, catalog, schema; whether it locks everyone out",
        description="Check a set. What is wrong is told with file, line and column. A set that leaves nobody who may "
        "execute anything is warned about.",
    )
    check.add_argument("set", type=Path, metavar=SET, help="its folder, or its signed file")
    check.set_defaults(run=_check)

    test = words.add_parser("test", help="run the tests of a set", description="Run the tests of a folder.")
    test.add_argument("set", type=Path, metavar="DIR", nargs="?", default=Path(), help="its folder (here)")
    test.set_defaults(run=_test)

    explain = words.add_parser(
        "explain",
        help="what a set says to an intent, or to a command, and why",
        description="Ask a set about an intent (TOML, docs/policy.md), or about a command as you would have it requested here and now. Tell "
        "which policies decide, what they advise, and how many approvals it would take. Exits 1 when it is denied.",
    )
    explain.add_argument(
        "what", nargs="+", metavar="INTENT.toml | CMD", help="one file NAME.toml; or a command, after --"
    )
    asked = explain.add_argument_group("what is said of a command")
    asked.add_argument("--scope", metavar="S", help="default: the authority's, or that of the set")
    asked.add_argument("--purpose", metavar="TEXT")
    asked.add_argument("--ticket", metavar="ID")
    asked.add_argument("--risk", choices=("low", "medium", "high", "critical"))
    _add_set(explain)
    explain.set_defaults(run=_explain)

    diff = words.add_parser(
        "diff",
        help="what changes from one set to another: policies, catalog, and answers",
        description="Compare two sets. The questions of the tests of both are asked of both: those that get another answer "
        "are told.",
    )
    diff.add_argument("before", type=Path, metavar="BEFORE", help="a folder or a signed file")
    diff.add_argument(
        "after", type=Path, metavar="AFTER", nargs="?", help="(the active set comes first then)"
    )
    diff.set_defaults(run=_diff)

    sign = words.add_parser(
        "sign",
        help="sign a set; its tests must pass",
        description="Make a folder a signed set, or add a signature to a signed one. Keys need the role policy for each of "
        "its scopes.",
    )
    sign.add_argument("set", type=Path, metavar=SET, help="a folder, or a signed file to sign as well")
    sign.add_argument("--out", type=Path, metavar="FILE", help="default for a signed file: itself")
    _add_keys(sign)
    sign.set_defaults(run=_sign)

    activate = words.add_parser(
        "activate",
        help="have a signed set be the active one",
        description="Ask the daemon to verify a signed set, record it, and go by it. A version older than one that was "
        "active is refused. What it may break is told first; then it takes --anyway.",
    )
    activate.add_argument("file", type=Path, metavar="FILE")
    activate.add_argument("--anyway", action="store_true", help="whatever is warned about")
    activate.set_defaults(run=_activate)

    show = words.add_parser("show", help="the active set, or the one in a file")
    show.add_argument("set", type=Path, metavar=SET, nargs="?", help="(the active set)")
    show.set_defaults(run=_show)

    for parser in (starters, check, test, explain, diff, sign, activate, show):
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", type=Path, metavar=SET, help="a folder or a signed file (default: the active set)"
    )


def _add_keys(parser: argparse.ArgumentParser) -> None:
    from egs_kernel.cli.signing import add_keys_option  # noqa: PLC0415 - beside its only use

    add_keys_option(parser)


# Cedar is imported by the word that needs it, not to print a help page.


def _starters(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import writing  # noqa: PLC0415 - see above

    return writing.starters(options)


def _check(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import writing  # noqa: PLC0415 - see above

    return writing.check(options)


def _test(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import writing  # noqa: PLC0415 - see above

    return writing.test(options)


def _sign(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import writing  # noqa: PLC0415 - see above

    return writing.sign_set(options)


def _explain(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import asking  # noqa: PLC0415 - see above

    return asking.explain(options)


def _diff(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import asking  # noqa: PLC0415 - see above

    return asking.diff(options)


def _activate(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import active  # noqa: PLC0415 - see above

    return active.activate(options)


def _show(options: argparse.Namespace) -> int:
    from egs_kernel.cli.policy import active  # noqa: PLC0415 - see above

    return active.show(options)
