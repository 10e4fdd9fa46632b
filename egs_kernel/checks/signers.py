"""Who signed (steps 2 and 4 of verify.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.sslib import VerificationError
from egs_kernel.trust.store import Role, TrustedKey, TrustStore

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.sslib import Envelope


def check_signatures(envelope: Envelope, trust: TrustStore) -> list[TrustedKey]:
    """The trusted keys that signed; raise when there is none, or when a signature by one is bad."""
    known = [trust.keys[keyid] for keyid in envelope.signatures if keyid in trust.keys]
    if not known:
        raise Refused(
            Reason.KEY_UNTRUSTED,
            f"none of its signers is trusted: {', '.join(keyid[:16] for keyid in envelope.signatures)}",
            "Trust the issuer's key: egs trust add FILE.pub",
        )
    try:
        envelope.verify([signer.key for signer in known], len(known))
    except VerificationError as error:
        raise Refused(
            Reason.SIGNATURE_INVALID,
            "a signature by a trusted key does not verify",
            "The file was changed after signing, or never signed: get it again from the issuer.",
        ) from error
    return known


def check_signers(
    signers: list[TrustedKey], trust: TrustStore, scope: str, now: datetime, *, role: Role = Role.ISSUER
) -> list[TrustedKey]:
    """Those of `signers` who may sign in `role` for `scope` now; raise when they are fewer than its threshold."""
    covering = [signer for signer in signers if signer.covers(role, scope)]
    if not covering:
        raise Refused(
            Reason.KEY_ROLE_MISMATCH,
            f"no signer has the role {role.value} for the scope {scope!r}",
            f"Sign with one, or trust the key for it: egs trust add FILE.pub --role {role.value} --scope {scope}",
        )
    accepted = [signer for signer in covering if signer.problem(now) is None]
    if not accepted:
        problems = "; ".join(f"{signer.keyid[:16]} {signer.problem(now)}" for signer in covering)
        raise Refused(
            Reason.KEY_NOT_VALID_NOW, f"the signing key: {problems}", "Sign with a key that is valid now."
        )
    needed = trust.threshold(scope)
    if (count := trust.holders(accepted)) < needed:
        raise Refused(
            Reason.THRESHOLD_NOT_MET,
            f"{count} of the {needed} signatures that scope {scope!r} needs"
            + (", a key and its successor counted once" if count < len(accepted) else ""),
            "Have it signed by more of those who may: egs sign FILE --key N.key",
        )
    return accepted
