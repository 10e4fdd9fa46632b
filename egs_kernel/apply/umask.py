"""The umask."""

import posix


def apply(step: dict[str, int]) -> None:
    """Set it."""
    posix.umask(step["mask"])
