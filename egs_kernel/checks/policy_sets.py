"""Who signed a policy set, and whether it may take the place of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.checks.signers import check_signatures, check_signers
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.policy.manifest import ANY_SCOPE, PAYLOAD_TYPE, SET_LIMIT, Manifest, parse_manifest
from egs_kernel.trust.store import Role

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.trust.store import TrustStore


@dataclass(frozen=True, kw_only=True)
class SignedSet:
    """A policy set that authenticated. `signers` are key ids."""

    manifest: Manifest
    digest: str
    signers: tuple[str, ...]


def authenticate_set(content: bytes, trust: TrustStore, now: datetime) -> SignedSet:
    """The policy set in the bytes of a file, if those who may sign for all of its scopes have.

    Args:
        content: one DSSE envelope.
        trust: for each scope as many keys of the role `policy` as its threshold asks for.
        now: an aware time.

    Raises:
        Refused: with the reason; nothing of the set may then be used.
    """
    envelope = parse_envelope(content, PAYLOAD_TYPE, SET_LIMIT)
    signers = check_signatures(envelope, trust)
    manifest = parse_manifest(envelope.payload)
    accepted: set[str] = set()
    for scope in sorted(_scopes(manifest, trust)):
        accepted |= {key.keyid for key in check_signers(signers, trust, scope, now, role=Role.POLICY)}
    return SignedSet(manifest=manifest, digest=manifest.digest, signers=tuple(sorted(accepted)))


def _scopes(manifest: Manifest, trust: TrustStore) -> set[str]:
    """A set for every scope needs what the most careful of them asks for."""
    return set(manifest.scopes) | (set(trust.thresholds) if ANY_SCOPE in manifest.scopes else set())


def check_newer(candidate: SignedSet, known: tuple[int, str] | None) -> None:
    """Whether a set may take the place of what was active.

    Args:
        candidate: the set.
        known: version and digest of the newest set of this name that ever was active; None: there was none.

    Raises:
        Refused: POLICY_OUTDATED.
    """
    if known is None:
        return
    version, digest = known
    name = candidate.manifest.name
    if candidate.manifest.version < version:
        raise Refused(
            Reason.POLICY_OUTDATED,
            f"it is version {candidate.manifest.version} of {name}, and version {version} was active",
            "Sign what you want back as a newer version: egs policy sign",
        )
    if candidate.manifest.version == version and candidate.digest != digest:
        raise Refused(
            Reason.POLICY_OUTDATED,
            f"another version {version} of {name} was active: {digest[:16]}, this is {candidate.digest[:16]}",
            "Give it a higher version, and sign it again.",
        )
