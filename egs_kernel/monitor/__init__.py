"""The monitor, `egs-monitor`: sees what governed processes become, and does what is to be done about it. `app.py` wires it."""

from __future__ import annotations


def main() -> int:
    """Run `egs-monitor`."""
    from egs_kernel.monitor.main import run  # noqa: PLC0415 - so that importing a part of it costs no more than the part

    return run()
