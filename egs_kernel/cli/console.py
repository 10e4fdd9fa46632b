"""`egs console serve`: show this host's metrics and log on loopback, as any user but root."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from egs_kernel.cli.output import announce
from egs_kernel.config import load_config, parse_duration
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

_SERVE = """Serve /metrics for Prometheus on loopback. Refuses to run as root: it parses what others send."""


def add_commands(commands: Commands) -> None:
    """Add `egs console`."""
    console = commands.add_parser("console", help="show this host over HTTP, on loopback")
    words = console.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = words.add_parser(
        "serve",
        help="serve /metrics on loopback; refuses to run as root",
        description=_SERVE,
        allow_abbrev=False,
    )
    serve.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="a loopback address; default: console.listen of egs.toml"
    )
    serve.add_argument(
        "--stale-after", metavar="TIME", default="30s", help="serve no metrics older than this (30s)"
    )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EgsError: it runs as root, or cannot listen there.
    """
    from egs_kernel.console.app import application  # noqa: PLC0415 - starlette is for those who serve
    from egs_kernel.web import Address, refuse_root, serve  # noqa: PLC0415 - as above

    refuse_root("egs console serve", "egs-console")
    paths = Paths.from_environment()
    listen = load_config(paths.config).console.listen if arguments.listen is None else arguments.listen
    address = Address.parse_loopback(listen, "console.listen")
    stale_after = parse_duration(arguments.stale_after, "--stale-after")
    serve(application(paths.metrics, stale_after, time.time), address, "console.listen", announce)
    return int(ExitCode.DONE)
