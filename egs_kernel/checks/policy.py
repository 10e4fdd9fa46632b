"""Whether an artifact was issued under the policy set that is active here, and nobody took that back (step 11 of verify.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.errors import Refused
from egs_kernel.model import HostFacts, Reason, Revoked
from egs_kernel.trust.store import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egs_kernel.trust.store import TrustStore


def check_policy(policy_digest: str | None, host: HostFacts) -> None:
    """Whether an artifact was issued under the set that is active here.

    Args:
        policy_digest: of the set that was evaluated when it was issued; None: none was.
        host: what is known of this host.

    Raises:
        Refused: REVOKED, POLICY_UNAVAILABLE, or POLICY_MISMATCH.
    """
    if host.policy_revoked:
        raise Refused(
            Reason.REVOKED, host.policy_revoked, "Activate another policy set: egs policy activate FILE"
        )
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


def policy_revocation(
    digest: str, signers: Mapping[str, bool], trust: TrustStore, revoked: Revoked, scope: str
) -> str:
    """Why the active policy set authorizes nothing in a scope any more; "": nobody took it back.

    A key that expired, or that was removed from the trust store, takes back nothing: what it signed was verified when it was
    activated.

    Args:
        digest: the set's.
        signers: the ids of the keys that signed it, and whether each signature was verified here.
        trust: who is trusted now.
        revoked: what was revoked for the scope.
        scope: one that is under the set.
    """
    if since := revoked.policy.get(digest):
        return f"the active policy set was revoked at {since}"
    gone = [keyid for keyid in signers if keyid in revoked.key or _is_revoked(trust, keyid)]
    left = [
        trust.keys[keyid]
        for keyid, verified in signers.items()
        if verified and keyid not in gone and keyid in trust.keys
    ]
    if not gone or trust.holders(key for key in left if key.covers(Role.POLICY, scope)) >= trust.threshold(
        scope
    ):
        return ""
    return f"the key that signed the active policy set was revoked: {', '.join(keyid[:16] for keyid in gone)}"


def _is_revoked(trust: TrustStore, keyid: str) -> bool:
    key = trust.keys.get(keyid)
    return key is not None and key.revoked is not None
