"""Text that is too long for one entry: it stands in entries of its own, right before the one that names its digest. Pure.

An entry has 65,535 bytes at most (tlog-tiles: its length is 16 bits). Only an artifact's envelope can be that long.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.entries import Entry, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

INLINE_BYTES: Final = 48 * 1024
"""An envelope whose JSON form has more stands in parts."""
PART_CHARACTERS: Final = 8 * 1024
"""Of each part: 48 KiB at most, whatever characters they are."""
REFERENCE: Final = "sha256:"
"""What the envelope of an entry begins with that has it in parts; its SHA-256 follows."""


def parts_of(entry: Entry) -> tuple[Entry, ...]:
    """The entries to append for an entry: parts, if there have to be any, and then the entry itself."""
    envelope = getattr(entry, "envelope", None)
    if envelope is None or len(envelope) < PART_CHARACTERS:
        return (entry,)
    if len(msgspec.json.encode(envelope)) <= INLINE_BYTES:
        return (entry,)
    digest = hashlib.sha256(envelope.encode()).hexdigest()
    texts = [envelope[start : start + PART_CHARACTERS] for start in range(0, len(envelope), PART_CHARACTERS)]
    parts = (
        Part(digest=digest, index=index, count=len(texts), text=text) for index, text in enumerate(texts)
    )
    return (*parts, msgspec.structs.replace(entry, envelope=REFERENCE + digest))


def envelope_of(envelope: str, parts: Sequence[Part]) -> str:
    """The envelope that an entry holds, or names by its digest; `parts` are those before it, and no others.

    Raises:
        RecordError: RECORD_CORRUPT: they are not its parts.
    """
    if envelope.startswith(REFERENCE):
        return joined(parts, envelope)
    if parts:
        raise corrupt("an envelope in parts", "there are parts of an envelope that has none")
    return envelope


def joined(parts: Sequence[Part], reference: str) -> str:
    """The text that an entry names by `reference`, out of the parts before it.

    Raises:
        RecordError: RECORD_CORRUPT: it is not the text that was recorded.
    """
    text = "".join(part.text for part in parts)
    if REFERENCE + hashlib.sha256(text.encode()).hexdigest() != reference:
        raise corrupt("an envelope in parts", f"the parts are not those of {reference}")
    return text
