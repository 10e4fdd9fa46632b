"""The umask."""

from __future__ import annotations

import os


def apply(step: dict[str, int]) -> None:
    """Set it."""
    os.umask(step["mask"])
