"""`egs console serve`: show this host's metrics and log on loopback, as any user but root."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from egs_kernel.cli.output import announce
from egs_kernel.config import ConsoleConfig, load_config, parse_duration
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands

_SERVE = """Serve on loopback: /metrics for Prometheus, and the record as a transparency log below /log/ (C2SP tlog-tiles: checkpoint,
tiles, and entries where that is wanted). Reading the record takes membership in its group. Refuses to run as root: it
parses what others send. Whoever can connect to the address sees all that is served."""


def add_commands(commands: Commands) -> None:
    """Add `egs console`."""
    console = commands.add_parser("console", help="show this host over HTTP, on loopback")
    words = console.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = words.add_parser(
        "serve",
        help="serve /metrics and the log on loopback; refuses to run as root",
        description=_SERVE,
    )
    serve.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="a loopback address; default: console.listen of egs.toml"
    )
    serve.add_argument(
        "--stale-after", metavar="TIME", default="30s", help="serve no metrics older than this (30s)"
    )
    serve.add_argument(
        "--entries",
        action="store_true",
        help="show the record's entries, too, to every user of this host; as console.entries of egs.toml",
    )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EgsError: it runs as root, or cannot listen there.
    """
    from egs_kernel.console import metrics  # noqa: PLC0415 - starlette is for those who serve
    from egs_kernel.console.app import application  # noqa: PLC0415 - as above
    from egs_kernel.console.log import PublishedLog  # noqa: PLC0415 - as above
    from egs_kernel.web import Address, refuse_root, serve  # noqa: PLC0415 - as above

    refuse_root("egs console serve", "egs-console")
    paths = Paths.from_environment()
    config = _config(paths, arguments)
    address = Address.parse_loopback(config.listen, "console.listen")
    stale_after = parse_duration(arguments.stale_after, "--stale-after")
    app = application(
        partial(metrics.answer, paths.metrics, stale_after, time.time),
        PublishedLog(paths.record, paths.cosigned, time.time, entries=config.entries),
    )
    serve(app, address, "console.listen", announce)
    return int(ExitCode.DONE)


def _config(paths: Paths, arguments: argparse.Namespace) -> ConsoleConfig:
    """What egs.toml says, which need not be there when the address is given, and the options on top of it."""
    if arguments.listen is None:
        said = load_config(paths.config).console
    else:
        known = load_config(paths.config).console if paths.config.exists() else ConsoleConfig()
        said = ConsoleConfig(listen=arguments.listen, entries=known.entries)
    return ConsoleConfig(listen=said.listen, entries=said.entries or arguments.entries)
