"""`egs-monitor` on the command line."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys

from egs_kernel import __version__
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.monitor.app import serve
from egs_kernel.paths import Paths

_DESCRIPTION = """Watches what governed processes become. What is not as it was authorized is a finding: it is recorded, and what
the artifact or /etc/egs/drift.toml says is done about it. docs/drift.md lists the findings. EGS_ROOT=DIR watches another instance."""


def run() -> int:
    """Watch until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="egs-monitor", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--foreground", action="store_true", help="say on standard error what happens")
    parser.add_argument("--once", action="store_true", help="look at everything once, and end")
    parser.add_argument("--version", action="version", version=f"egs-monitor {__version__}")
    parsed = parser.parse_args()
    level = logging.INFO if parsed.foreground else logging.WARNING
    logging.basicConfig(format="egs-monitor: %(message)s", level=level, stream=sys.stderr)
    try:
        _require_root()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard, hard)
        )  # a pidfd for each process of a tree that ends
        serve(Paths.from_environment(), once=parsed.once)
    except EgsError as error:
        sys.stderr.write(f"egs-monitor: {error}\n")
        if error.next_step:
            sys.stderr.write(f"{error.next_step}\n")
        return int(error.exit_code)
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise EgsError(
            Reason.NOT_PERMITTED,
            "egs-monitor must be root",
            "Run it as root, or: systemctl start egs-monitor",
        )
