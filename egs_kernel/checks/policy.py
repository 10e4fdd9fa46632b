"""Whether an artifact was issued under the policy set that is active here (step 11 of verify.py)."""

from __future__ import annotations

from egs_kernel.errors import Refused
from egs_kernel.model import HostFacts, Reason


def check_policy(policy_digest: str | None, host: HostFacts) -> None:
    """Whether an artifact was issued under the set that is active here.

    Args:
        policy_digest: of the set that was evaluated when it was issued; None: none was.
        host: what is known of this host.

    Raises:
        Refused: POLICY_UNAVAILABLE, or POLICY_MISMATCH.
    """
    if host.policy_problem:
        raise Refused(
            Reason.POLICY_UNAVAILABLE,
            f"the active policy set cannot be asked: {host.policy_problem}",
            "Activate it again: egs policy activate FILE",
        )
    if policy_digest == host.policy_digest or (policy_digest is None and not host.policy_required):
        return
    issued = f"under the policy set {policy_digest}" if policy_digest else "under no policy set"
    raise Refused(
        Reason.POLICY_MISMATCH,
        f"it was issued {issued}, active is {host.policy_digest}",
        "Have it issued again under the active policy set: egs policy show",
    )
