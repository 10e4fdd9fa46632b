"""`egsd`: verifies, arms, records. The gate enforces without it and refuses everything when it is gone."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The entry point of `egsd`."""
    from egs_kernel.daemon.memory import without_tls  # noqa: PLC0415 - importing a part of the daemon starts nothing

    without_tls()
    from egs_kernel.daemon.main import run  # noqa: PLC0415 - after what decides which modules it can import

    sys.exit(run(sys.argv[1:]))
