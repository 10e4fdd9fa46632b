"""What was revoked (step 13 of verify.py), and who may sign a list of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.revocations import LIST_LIMIT, PAYLOAD_TYPE, parse_revocation_list
from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.checks.signers import check_signatures, check_signers
from egs_kernel.errors import Refused
from egs_kernel.model import Reason, Revoked
from egs_kernel.trust.store import ANY_SCOPE, Role, TrustStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from egs_kernel.artifact.revocations import RevocationList

SKEW: Final = timedelta(minutes=5)
"""How far two hosts' clocks may be apart: a list that was issued later than that from now is refused."""
KINDS: Final = Revoked.__struct_fields__


class Ties(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact can be revoked by. `threshold`: how many of the keys must remain."""

    artifact: str
    scope: str
    keys: tuple[str, ...] = ()
    threshold: int = 1
    subjects: tuple[str, ...] = ()
    policy: str | None = None


class Taken(NamedTuple):
    """What of an artifact was taken back: one of `KINDS`, and in words."""

    kind: str
    words: str


@dataclass(frozen=True)
class SignedList:
    """A revocation list that authenticated. `digest`: SHA-256 (hex) of its payload; `signers` are key ids."""

    digest: str
    content: RevocationList
    signers: tuple[str, ...]


def check_revoked(ties: Ties, revoked: Revoked, host_id: str) -> None:
    """Whether anything that an artifact hangs on was taken back.

    Raises:
        Refused: REVOKED; with what, and since when.
    """
    found = revocation_of(ties, revoked, host_id)
    if found is not None:
        raise Refused(Reason.REVOKED, found.words, "Have a new artifact issued, of what is not revoked.")


def revocation_of(ties: Ties, revoked: Revoked, host_id: str) -> Taken | None:
    """The first thing of it that was revoked; None when nothing was."""
    return next(revocations_of(ties, revoked, host_id), None)


def revocations_of(ties: Ties, revoked: Revoked, host_id: str) -> Iterator[Taken]:
    """Everything of it that was revoked."""
    if since := revoked.artifact.get(ties.artifact):
        yield Taken("artifact", f"it was revoked at {since}")
    if since := revoked.host.get(host_id):
        yield Taken("host", f"this host ({host_id}) was revoked at {since}")
    gone = [keyid for keyid in ties.keys if keyid in revoked.key]
    if gone and len(ties.keys) - len(gone) < ties.threshold:
        words = ", ".join(f"{keyid[:16]} at {revoked.key[keyid]}" for keyid in gone)
        yield Taken("key", f"the key that signed it was revoked: {words}")
    for digest in ties.subjects:
        if since := revoked.subject.get(digest):
            yield Taken("subject", f"the file with the SHA-256 {digest} was revoked at {since}")
    if ties.policy is not None and (since := revoked.policy.get(ties.policy)):
        yield Taken("policy", f"the policy set {ties.policy} was revoked at {since}")


def authenticate_list(content: bytes, trust: TrustStore, now: datetime) -> SignedList:
    """The revocation list in the bytes of a file.

    Args:
        content: one DSSE envelope.
        trust: who may sign it: as many keys of the role `revoker` as the threshold of its scope asks for.
        now: an aware time.

    Raises:
        Refused: with the reason; nothing of the list may then be used.
    """
    envelope = parse_envelope(content, PAYLOAD_TYPE, LIST_LIMIT)
    signers = check_signatures(envelope, trust)
    found = parse_revocation_list(envelope.payload)
    accepted = check_signers(signers, trust, found.scope, now, role=Role.REVOKER)
    if parse_time(found.issued_at) > now + SKEW:
        raise Refused(
            Reason.REVOCATION_LIST_EARLY,
            f"it was issued at {found.issued_at}, and here it is {format_time(now)}",
            "Compare this host's clock with the issuer's: timedatectl",
        )
    return SignedList(
        digest=hashlib.sha256(envelope.payload).hexdigest(),
        content=found,
        signers=tuple(sorted(signer.keyid for signer in accepted)),
    )


def check_number(found: SignedList, known: tuple[int, str] | None) -> bool:
    """Whether a list is newer than the one that was in force last, by its number and digest; False: it is that one.

    Raises:
        Refused: REVOCATION_LIST_ROLLED_BACK.
    """
    if known is None:
        return True
    number, digest = known
    if (found.content.number, found.digest) == (number, digest):
        return False
    if found.content.number <= number:
        raise Refused(
            Reason.REVOCATION_LIST_ROLLED_BACK,
            f"its number is {found.content.number}, and this host has had number {number} for the scope {found.content.scope}",
            "Add the newest list; the revoker issues one with: egs revocations issue --number",
        )
    return True


def good_until(found: RevocationList, max_age: timedelta) -> datetime:
    """Until when a list is new enough where one is demanded: its own nextUpdate, and the age limit of this host."""
    return min(parse_time(found.next_update), parse_time(found.issued_at) + max_age)


def merged(several: Iterable[Revoked]) -> Revoked:
    """All that they say; of two times the earlier."""
    tables: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for one in several:
        for kind, table in tables.items():
            for name, since in getattr(one, kind).items():
                table[name] = min(since, table.get(name, since))
    return Revoked(**tables)


def without(trust: TrustStore, revoked: Mapping[str, str]) -> TrustStore:
    """A trust store in which these keys (key id → since when) are revoked."""
    keys = {
        keyid: replace(key, revoked=parse_time(revoked[keyid])) if keyid in revoked else key
        for keyid, key in trust.keys.items()
    }
    return TrustStore(keys, trust.thresholds)


def applies(found: RevocationList, scope: str) -> bool:
    """Whether a list is for artifacts of this scope."""
    return found.scope in (ANY_SCOPE, scope)
