"""What the record counts, saved at a size of the log, so that a start need not read all of it.

It can be deleted: the record alone has everything. A start that finds one which is not of this log refuses: the log was rolled
back, or somebody changed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.layout import STATE
from egs_kernel.audit.tally import Saved, Tally

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.files import Files

_VERSION: Final = 3


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tally of the first `size` entries, and the root (hex) of the tree over them.

    `length`: bytes of those entries. `synced`: full tiles and bundles of as many entries are durable.
    """

    v: int
    size: int
    root: str
    length: int
    synced: int
    tally: Saved


NONE: Final = State(_VERSION, 0, "", 0, 0, Saved())
"""Of a record that has none: everything is counted anew."""


@dataclass
class Counted:
    """What is counted from entry to entry. `synced` as in `State`; `saved`: the size of the state on the disk."""

    tally: Tally
    length: int
    synced: int
    saved: int

    @classmethod
    def of(cls, state: State) -> Counted:
        """What is counted at a state."""
        return cls(Tally(state.tally), state.length, state.synced, state.size)

    def add(self, entry: Entry, length: int) -> None:
        """Take one more entry into account, whose line has `length` bytes."""
        self.tally.count(entry)
        self.length += length

    def state(self, size: int, root: bytes) -> State:
        """The state to save at `size` entries."""
        return State(_VERSION, size, root.hex(), self.length, self.synced, self.tally.saved())


def read_state(folder: Path) -> State | None:
    """The state; None when there is none, or none that this version reads.

    Raises:
        OSError: it exists and cannot be read.
    """
    try:
        found = msgspec.json.decode((folder / STATE).read_bytes(), type=State)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.v == _VERSION else None


def write_state(folder: Path, files: Files, state: State) -> None:
    """Replace the state, durably.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    files.put(folder / STATE, msgspec.json.encode(state), synced=True)
    files.sync_folder(folder)
