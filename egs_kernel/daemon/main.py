"""`egsd` on the command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from egs_kernel import __version__
from egs_kernel.daemon.app import serve
from egs_kernel.daemon.memory import keep_small
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths


def run(arguments: Sequence[str]) -> int:
    """Run the daemon until it is told to stop; its exit code."""
    parser = argparse.ArgumentParser(
        prog="egsd",
        description="The daemon of egs-kernel: verifies artifacts, arms the gate, records. "
        "EGS_ROOT=DIR runs another instance.",
        allow_abbrev=False,
    )
    parser.add_argument("--foreground", action="store_true", help="say on standard error what happens")
    parser.add_argument("--version", action="version", version=f"egsd {__version__}")
    parsed = parser.parse_args(arguments)
    level = logging.INFO if parsed.foreground else logging.WARNING
    logging.basicConfig(format="egsd: %(message)s", level=level, stream=sys.stderr)
    try:
        _require_root()
        keep_small()
        asyncio.run(serve(Paths.from_environment()))
    except EgsError as error:
        sys.stderr.write(f"egsd: {error}\n")
        if error.next_step:
            sys.stderr.write(f"{error.next_step}\n")
        return int(error.exit_code)
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise EgsError(Reason.NOT_PERMITTED, "egsd must be root", "Run it as root, or: systemctl start egsd")
