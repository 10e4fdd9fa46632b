"""What only a launch can satisfy."""

from __future__ import annotations

from egs_kernel.errors import Refused
from egs_kernel.model import Reason


def launch_required(message: str) -> Refused:
    """The refusal of a standing permission for an artifact that needs `egs run`."""
    return Refused(Reason.LAUNCH_REQUIRED, message, "Use the artifact with egs run --artifact FILE.")
