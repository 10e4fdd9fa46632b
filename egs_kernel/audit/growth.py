"""What an append adds to the log: lines, their leaves, the tree that ends with them, the checkpoint over it, the frame. Pure."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.audit.checkpoint import Checkpoint
from egs_kernel.audit.edge import Batch
from egs_kernel.audit.frames import MAX_APPEND, encode_frame
from egs_kernel.audit.lines import encode
from egs_kernel.audit.merkle import Frontier, leaf_hashes
from egs_kernel.audit.parts import parts_of
from egs_kernel.audit.tiles import HEIGHT, pack_entry
from egs_kernel.errors import RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.notes import Signer


class Head(msgspec.Struct, frozen=True):
    """The log up to an entry. `note`: its signed checkpoint, None when it is empty."""

    frontier: Frontier
    note: bytes | None

    @property
    def size(self) -> int:
        """Entries."""
        return self.frontier.size


class Growth(msgspec.Struct, frozen=True):
    """Entries that are to follow a head.

    `head`: the log with them; `seqs`: the number of each; `batch`, `frame`: as they are published, and as they stand in the
    journal; `length`: bytes of their lines.
    """

    base: Head
    head: Head
    seqs: tuple[int, ...]
    batch: Batch
    frame: bytes
    length: int


def grow(base: Head, entries: Sequence[Entry], time: str, origin: str, signers: Sequence[Signer]) -> Growth:
    """What `entries` add to a log whose head is `base`. What is too long for one line has others before it.

    Raises:
        RecordError: RECORD_UNAVAILABLE: one cannot be written, or they are too much for one append.
    """
    parted = [parts_of(entry) for entry in entries]
    lines = [encode(part, seq=seq, time=time) for seq, part in enumerate(chain(*parted), base.size)]
    ends = accumulate(map(len, parted), initial=base.size - 1)
    frontier = base.frontier.copy()
    leaves = leaf_hashes(lines)
    above = frontier.extend(leaves, HEIGHT)
    note = Checkpoint(origin, frontier.size, frontier.root()).sign(*signers)
    packed = [pack_entry(line) for line in lines]
    frame = encode_frame(base.size, packed, note)
    if len(frame) > MAX_APPEND:
        raise RecordError(
            Reason.RECORD_UNAVAILABLE,
            f"one append of {len(frame)} bytes; at most {MAX_APPEND} fit",
            "Append fewer entries at once.",
        )
    return Growth(
        base,
        Head(frontier, note),
        tuple(ends)[1:],
        Batch(packed, leaves, above),
        frame,
        sum(map(len, lines)),
    )
