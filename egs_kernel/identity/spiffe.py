"""SPIFFE ids, and what is refused about them (SPIFFE-ID.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from egs_kernel.errors import Refused
from egs_kernel.model import Reason

SCHEME: Final = "spiffe://"
MAX_ID: Final = 2048
MAX_TRUST_DOMAIN: Final = 255
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class SpiffeId:
    """`spiffe://TRUST_DOMAIN/PATH`. `path` is empty, or begins with a slash."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """The id in a text.

        Raises:
            Refused: SVID_INVALID.
        """
        if len(text) > MAX_ID or not text.startswith(SCHEME):
            raise svid_invalid(f"{text[:80]!r} is no SPIFFE id")
        domain, slash, path = text.removeprefix(SCHEME).partition("/")
        if not is_trust_domain(domain):
            raise svid_invalid(f"{domain[:80]!r} is no trust domain")
        for segment in path.split("/") if slash else ():
            if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
                raise svid_invalid(f"{text[:80]!r} has a path with the segment {segment[:80]!r}")
        return cls(domain, slash + path)

    @classmethod
    def of_workload(cls, text: str) -> SpiffeId:
        """The id of a workload: it has a path, which that of a trust domain has not.

        Raises:
            Refused: SVID_INVALID.
        """
        found = cls.parse(text)
        if not found.path:
            raise svid_invalid(f"{text} is a trust domain, and no workload of it")
        return found


def is_trust_domain(name: str) -> bool:
    """Whether it is the name of a trust domain."""
    return _TRUST_DOMAIN.fullmatch(name) is not None


def svid_invalid(message: str) -> Refused:
    """The refusal of an SVID, or of an id, that is not what it must be."""
    return Refused(
        Reason.SVID_INVALID, message, "Have the workload fetch a new SVID, and check its registration."
    )


def svid_expired(message: str) -> Refused:
    """The refusal of an SVID that is not valid now."""
    return Refused(
        Reason.SVID_EXPIRED, message, "Have the workload fetch a new SVID, or check this host's clock."
    )
