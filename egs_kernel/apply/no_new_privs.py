"""No exec raises privileges any more."""

from egs_kernel.apply.libc import prctl

_PR_SET_NO_NEW_PRIVS = 38


def apply(_step: dict[str, object]) -> None:
    """Set no_new_privs."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
