"""What a policy set said. Nothing here needs Cedar: the daemon reads it, too."""

from __future__ import annotations

from enum import Enum

import msgspec

_ENCODER = msgspec.json.Encoder(order="sorted")


class Effect(Enum):
    """What policy says."""

    PERMIT = "permit"
    DENY = "deny"


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a set says, and by which policies.

    Attributes:
        effect: permit or deny.
        determining: ids of the policies that decided, sorted; none when nothing permits.
        advice: what those policies tell whoever asks (`@advice`), in the order of their ids.
        errors: what failed while it was evaluated; then it is denied.
        policy_digest: the set's.
        request_digest: the SHA-256 (hex) of the canonical request, or of those that were asked together.
    """

    effect: Effect
    determining: tuple[str, ...]
    advice: tuple[str, ...]
    errors: tuple[str, ...]
    policy_digest: str
    request_digest: str

    @property
    def permitted(self) -> bool:
        """Whether it is permitted."""
        return self.effect is Effect.PERMIT

    @property
    def canonical(self) -> bytes:
        """The same bytes for the same evaluation."""
        return _ENCODER.encode(self)
