"""`egs witness serve | key`: cosign the checkpoints of other hosts' logs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.cli.output import announce, print_json, print_lines
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from egs_kernel.cli.main import Commands

_SERVE = """Cosign checkpoints over HTTP (C2SP tlog-witness), as any user but root. A checkpoint is cosigned only if one of its
log's keys signed it and it continues the last one of that log that was cosigned here; that one is on the disk before the
cosignature is given away. Who asks is not asked for a password: what counts is the log's signature."""


def add_commands(commands: Commands) -> None:
    """Add `egs witness`."""
    witness = commands.add_parser("witness", help="cosign the checkpoints of other hosts' logs")
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


def _add_word(
    words: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, description: str
) -> argparse.ArgumentParser:
    paths = Paths.from_environment()
    parser = words.add_parser(name, help=text, description=description, allow_abbrev=False)
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
