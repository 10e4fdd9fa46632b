"""What an append adds to the log: lines, their leaves, the tree that ends with them, the frame. Pure.

Nothing is signed here: a signature is worth waiting for only by those who are shown a checkpoint, and that is when all of it is
durable (record.py).
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.checkpoint import Checkpoint
from egs_kernel.audit.edge import Batch
from egs_kernel.audit.frames import MAX_APPEND, encode_frame
from egs_kernel.audit.lines import encode_all
from egs_kernel.audit.merkle import leaf_hashes
from egs_kernel.audit.parts import parts_of
from egs_kernel.audit.tiles import HEIGHT, pack_entry
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.merkle import Frontier


TOGETHER: Final = 64
"""Entries that are encoded, hashed and packed at a time: what they take stays in the processor's cache."""


class Growth(msgspec.Struct, frozen=True):
    """Entries that are to follow a tree.

    `base`, `tree`: without and with them; `seqs`: the number of each; `batch`, `frame`: as they are published, and as they
    stand in the journal; `length`: bytes of their lines.
    """

    base: Frontier
    tree: Frontier
    seqs: tuple[int, ...]
    batch: Batch
    frame: bytes
    length: int


def grow(base: Frontier, entries: Sequence[Entry], time: str, origin: str) -> Growth:
    """What `entries` add to the tree of the log `origin`. What is too long for one line has others before it.

    Raises:
        RecordError: RECORD_UNAVAILABLE: one cannot be written, or they are too much for one append.
    """
    parted = [parts_of(entry) for entry in entries]
    parts = list(chain(*parted))
    packed: list[bytes] = []
    leaves: list[bytes] = []
    length = 0
    for start in range(0, len(parts), TOGETHER):
        lines = encode_all(parts[start : start + TOGETHER], first=base.size + start, time=time)
        leaves += leaf_hashes(lines)
        packed += map(pack_entry, lines)
        length += sum(map(len, lines))
    ends = accumulate(map(len, parted), initial=base.size - 1)
    tree = base.copy()
    above = tree.extend(leaves, HEIGHT)
    frame = encode_frame(base.size, packed, Checkpoint(origin, tree.size, tree.root()))
    if len(frame) > MAX_APPEND:
        raise RecordError(
            Reason.RECORD_UNAVAILABLE,
            f"one append of {len(frame)} bytes; at most {MAX_APPEND} fit",
            "Append fewer entries at once.",
        )
    return Growth(
        base,
        tree,
        tuple(ends)[1:],
        Batch(packed, leaves, above),
        frame,
        length,
    )
