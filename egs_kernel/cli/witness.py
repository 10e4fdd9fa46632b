"""`egs witness serve | key`: cosign the checkpoints of other hosts' logs; `submit`: have this host's cosigned."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.output import announce, print_json, print_lines
from egs_kernel.config import load_config, parse_duration
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from egs_kernel.cli.main import Commands

_SERVE = """Cosign checkpoints over HTTP (C2SP tlog-witness), as any user but root. A checkpoint is cosigned only if one of its
log's keys signed it and it continues the last one of that log that was cosigned here; that one is on the disk before the
cosignature is given away. Who asks is not asked for a password: what counts is the log's signature."""

_SUBMIT = """Send the published checkpoint of this host's record to the witnesses of egs.toml, every record.witness_interval, and hand
what they answer to the daemon, which has no network of its own. It keeps the cosignatures, and raises an alarm when a
witness shows that it has seen another record. Takes membership in the record's group, and refuses to run as root: it parses
what others send."""


def add_commands(commands: Commands) -> None:
    """Add `egs witness`."""
    witness = commands.add_parser(
        "witness", help="cosign other hosts' logs, and have this host's log cosigned"
    )
    words = witness.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_word(words, "serve", run_serve, "cosign checkpoints over HTTP; refuses to run as root", _SERVE)
    key = _add_word(
        words,
        "key",
        run_key,
        "print the witness's verifier key, for the egs.toml of the hosts that it cosigns",
        "Print the witness's verifier key; the first time, make the key. Run it as the user that the witness runs as.",
    )
    key.add_argument("--json", action="store_true", help="print one JSON object")
    submit = words.add_parser(
        "submit",
        help="have the witnesses cosign this host's log; refuses to run as root",
        description=_SUBMIT,
    )
    submit.add_argument(
        "--once",
        action="store_true",
        help="submit once and say what came back; exit code 1 if not all cosigned",
    )
    submit.set_defaults(run=run_submit)


def _add_word(
    words: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, description: str
) -> argparse.ArgumentParser:
    paths = Paths.from_environment()
    parser = words.add_parser(name, help=text, description=description)
    parser.add_argument(
        "--config",
        type=Path,
        default=paths.witness_config,
        metavar="FILE",
        help=f"its name, where it listens, which logs it knows ({paths.witness_config})",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=paths.witness_state,
        metavar="DIR",
        help=f"its key and what it cosigned last; must never be set back ({paths.witness_state})",
    )
    parser.set_defaults(run=run)
    return parser


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EgsError: it runs as root, is configured wrongly, or its state cannot be trusted.
    """
    from egs_kernel.web import refuse_root, serve  # noqa: PLC0415 - starlette is for those who serve
    from egs_kernel.witness.app import application  # noqa: PLC0415 - as above
    from egs_kernel.witness.settings import load_settings  # noqa: PLC0415 - as above
    from egs_kernel.witness.state import opened  # noqa: PLC0415 - as above

    refuse_root("egs witness serve", "egs-witness")
    settings = load_settings(arguments.config)
    with opened(arguments.state, settings.name, settings.logs, time.time) as state:
        serve(application(state), settings.listen, f"{arguments.config}: listen", announce)
    return int(ExitCode.DONE)


def run_key(arguments: argparse.Namespace) -> int:
    """Print the verifier key.

    Raises:
        EgsError: it is configured wrongly, or the key cannot be read or made.
    """
    from egs_kernel.witness.settings import load_settings  # noqa: PLC0415 - as above
    from egs_kernel.witness.state import open_key  # noqa: PLC0415 - as above

    key = open_key(arguments.state, load_settings(arguments.config).name).key
    if arguments.json:
        print_json({"name": key.name, "verifier_key": str(key)})
    else:
        print_lines([str(key)])
    return int(ExitCode.DONE)


def run_submit(arguments: argparse.Namespace) -> int:
    """Submit until interrupted, or once.

    Raises:
        EgsError: it runs as root, or egs.toml is wrong or names no witness.
    """
    from egs_kernel.audit.witnesses import witnesses_of  # noqa: PLC0415 - what a witness needs is not this
    from egs_kernel.cli.submit import Round, submit_often  # noqa: PLC0415 - as above
    from egs_kernel.web import refuse_root  # noqa: PLC0415 - as above

    refuse_root("egs witness submit", "egs-submit")
    paths = Paths.from_environment()
    config = load_config(paths.config)
    submissions = Round(paths, witnesses_of(config.witnesses))
    if not arguments.once:
        submit_often(submissions, parse_duration(config.record.witness_interval, "record.witness_interval"))
    said = submissions.submit()
    print_lines(line for line, _ in said)
    return int(ExitCode.DONE if all(good for _, good in said) else ExitCode.REFUSED)
