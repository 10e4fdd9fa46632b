"""`egs metrics serve`: serve the daemon's metrics on loopback, as any user but root."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from egs_kernel.config import load_config, parse_duration
from egs_kernel.errors import ExitCode
from egs_kernel.metrics_server import Address, MetricsServer, refuse_root
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands


def add_commands(commands: Commands) -> None:
    """Add `egs metrics`."""
    metrics = commands.add_parser("metrics", help="serve metrics on loopback")
    words = metrics.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "serve /metrics on loopback for Prometheus; refuses to run as root"
    serve = words.add_parser("serve", help=text, description=text, allow_abbrev=False)
    serve.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="a loopback address; default: metrics.listen of egs.toml"
    )
    serve.add_argument(
        "--stale-after", metavar="TIME", default="30s", help="serve no values older than this (30s)"
    )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    refuse_root()
    paths = Paths.from_environment()
    listen = load_config(paths.config).metrics.listen if arguments.listen is None else arguments.listen
    address = Address.parse(listen)
    stale_after = parse_duration(arguments.stale_after, "--stale-after")
    with MetricsServer(address, paths.metrics, stale_after) as server:
        host, port = server.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        sys.stdout.write(f"http://{name}:{port}/metrics\n")
        sys.stdout.flush()
        server.serve_forever()
    return int(ExitCode.DONE)
