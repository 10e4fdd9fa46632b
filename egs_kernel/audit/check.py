"""Verifying a record as a whole: every entry, every tile, the journal, the checkpoint; the first wrong place is named.

The tree is computed anew from the entries. Where a tile says something else, what is above it tells which of them is wrong,
up to the signed root.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from egs_kernel.audit.checkpoint import CHECKPOINT, Checkpoint, open_checkpoint
from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.edge import Batch, Edge
from egs_kernel.audit.entries import ENTRY_TYPES
from egs_kernel.audit.frames import Frame, frame_after, frames_in
from egs_kernel.audit.layout import JOURNAL, STATE, require_ours
from egs_kernel.audit.lines import checked_header, decode
from egs_kernel.audit.merkle import Frontier, leaf_hashes
from egs_kernel.audit.notes import Note, VerifierKey
from egs_kernel.audit.reader import Reader, open_record
from egs_kernel.audit.shelves import Shelves
from egs_kernel.audit.state import read_state
from egs_kernel.audit.tally import Tally
from egs_kernel.audit.tiles import HEIGHT, WIDTH, pack_entry
from egs_kernel.errors import NoteError

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Header
    from egs_kernel.audit.state import State

_COUNTED = (b'"use_until":"', b'"action":"revoked"', b'"type":"revocation', b'"type":"policy"')
"""What an entry holds that counts (tally.py)."""

Progress = Callable[[int, int], None]
"""Called now and then with entries done and in all."""


class Verified(msgspec.Struct, frozen=True):
    """A record that verified: how far, in what time span, and what is worth a look.

    `published`: the size of its checkpoint; what follows nobody has signed yet. `signed`: its signature was verified, too.
    `torn`: bytes after the last whole frame of the journal.
    """

    size: int
    root: str
    published: int
    signed: bool
    first_time: str | None
    last_time: str | None
    types: dict[str, int]
    unknown_types: int
    torn: int


def verify(
    folder: Path,
    keys: Sequence[VerifierKey],
    progress: Progress = lambda _done, _all: None,
    cold: Path | None = None,
) -> Verified:
    """Walk a whole record, of a running daemon or a copy.

    Args:
        folder: the record's folder.
        keys: the log's, all that it ever had, named after its origin; without any, signatures are not verified.
        progress: called now and then.
        cold: where entries of long ago were moved to.

    Raises:
        RecordError: RECORD_CORRUPT with the first wrong place; RECORD_UNAVAILABLE: something does not belong there, or
            a later version wrote it.
        EgsError: the record is missing or may not be read.
    """
    reader = open_record(folder, cold)
    require_ours(folder)
    signed = _Signed(keys)
    published = None
    if (folder / CHECKPOINT).exists():  # read before the entries: those can only become more
        published = signed.open((folder / CHECKPOINT).read_bytes(), CHECKPOINT)
    state = read_state(folder)
    if state is None and (folder / STATE).exists():
        raise corrupt(STATE, "it is no state; without it a start counts everything anew")
    if state is not None and state.synced > state.size:
        raise corrupt(STATE, f"{state.synced} of {state.size} entries are synced")
    walk = _Walk(reader, signed, published, state, progress)
    return walk.run()


class _Signed:
    """Opens checkpoints of one log."""

    def __init__(self, keys: Sequence[VerifierKey]) -> None:
        self.keys = keys

    def open(self, content: bytes, where: str) -> Checkpoint:
        """The checkpoint in a note.

        Raises:
            RecordError: RECORD_CORRUPT: it is none of this log.
        """
        try:
            if self.keys:
                return open_checkpoint(content, self.keys[0].name, self.keys).checkpoint
            return unsigned(content)
        except NoteError as error:
            raise corrupt(where, error.message) from error


def unsigned(content: bytes) -> Checkpoint:
    """The checkpoint in a note, whoever signed it.

    Raises:
        NoteError: NOTE_MALFORMED: there is none.
    """
    return Checkpoint.parse(Note.parse(content).text)


class _Walk:
    """A verification under way."""

    def __init__(
        self,
        reader: Reader,
        signed: _Signed,
        published: Checkpoint | None,
        state: State | None,
        progress: Progress,
    ) -> None:
        self._reader = reader
        self._signed = signed
        self._published = published or Checkpoint("", 0, b"")
        self._state = state
        self._progress = progress
        self._shelves = Shelves(reader.folder, reader.cold, self._published)
        self._frontier = Frontier()
        self._edge = Edge()
        self._tally = Tally()
        self._length = 0
        self._types: Counter[str] = Counter()
        self._times: list[str] = []
        self._torn = 0

    def run(self) -> Verified:
        """Check everything.

        Raises:
            RecordError: RECORD_CORRUPT with the first wrong place.
        """
        with self._reader.segments(0) as segments:
            begin = segments[0][0] if segments else self._published.size
            if begin and not self._published.size:
                raise corrupt(CHECKPOINT, "it is missing, and the journal no longer begins with entry 0")
            for seq in range(0, begin, WIDTH):
                self._add(self._reader.bundle(seq, begin))
                self._progress(self._frontier.size, max(begin, self._published.size))
            for first, file in segments:
                self._add_segment(first, file, last=first == segments[-1][0])
        self._require_acknowledged()
        self._require_signed()
        self._shelves.require_nothing_else(self._reader)
        return Verified(
            size=self._frontier.size,
            root=self._frontier.root().hex(),
            published=self._published.size,
            signed=bool(self._signed.keys),
            first_time=self._times[0] if self._times else None,
            last_time=self._times[-1] if self._times else None,
            types=dict(sorted(self._types.items())),
            unknown_types=sum(count for name, count in self._types.items() if name not in ENTRY_TYPES),
            torn=self._torn,
        )

    def _add_segment(self, first: int, file: BinaryIO, *, last: bool) -> None:
        """Check a file of the journal."""
        where = f"{JOURNAL}/{first:020}"
        content = file.read()
        end = 0
        if first != self._frontier.size:
            raise corrupt(
                f"entry {self._frontier.size}", f"it is missing, and {where} begins with entry {first}"
            )
        for frame in frames_in(content):
            self._add_frame(frame, where)
            end = frame.end
        if end < len(content) and (not last or frame_after(content, end) is not None):
            raise corrupt(
                f"entry {self._frontier.size}", f"{where} is damaged at byte {end}, and entries follow"
            )
        self._torn = len(content) - end

    def _add_frame(self, frame: Frame, where: str) -> None:
        first = self._frontier.size
        if frame.first != first:
            raise corrupt(f"entry {first}", f"{where} has entry {frame.first} in its place")
        self._add(frame.entries)
        noted = frame.checkpoint
        origin = self._signed.keys[0].name if self._signed.keys else noted.origin
        if noted != Checkpoint(origin, self._frontier.size, self._frontier.root()):
            last = f" to {self._frontier.size - 1}" if frame.count > 1 else ""
            raise corrupt(
                f"entry {first}",
                f"entries {first}{last} in {where} are not those that were appended to the log {origin}",
            )

    def _add(self, lines: Sequence[bytes]) -> None:
        """Check the next entries, and what is noted of the tree at sizes on the way."""
        first = self._frontier.size
        stops = {self._published.size, self._state.size if self._state else 0}
        for stop in sorted(stops):
            if first < stop < first + len(lines):
                self._add(lines[: stop - first])
                self._add(lines[stop - first :])
                return
        headers = [checked_header(line, seq) for seq, line in enumerate(lines, first)]
        self._types.update(found.type for found in headers)
        self._times = [*self._times[:1], headers[0].time, headers[-1].time]
        self._count(lines, headers)
        leaves = leaf_hashes(lines)
        above = self._frontier.extend(leaves, HEIGHT)
        for tile, content in self._edge.grow(Batch([pack_entry(line) for line in lines], leaves, above)):
            self._shelves.compare(tile, content)
        self._compare_noted()

    def _count(self, lines: Sequence[bytes], headers: Sequence[Header]) -> None:
        whole = b"".join(lines)
        self._length += len(whole)
        if not any(mark in whole for mark in _COUNTED):
            return
        for line, found in zip(lines, headers, strict=True):
            if any(mark in line for mark in _COUNTED) and found.type in ENTRY_TYPES:
                self._tally.count(decode(line, f"entry {found.seq}").entry)

    def _compare_noted(self) -> None:
        size = self._frontier.size
        if size == self._published.size:
            for tile in self._edge.partial():
                self._shelves.compare(tile, self._edge.content(tile))
            if self._frontier.root() != self._published.root:
                raise corrupt(CHECKPOINT, f"its root is not that of the first {size} entries")
        state = self._state
        if state is not None and size == state.size:
            said, counted = state.tally, self._tally.saved()
            if state.root != self._frontier.root().hex() or state.length != self._length:
                raise corrupt(STATE, f"it is not of the first {size} entries")
            if (said.revoked, said.lists, said.policies, said.policy) != (
                counted.revoked,
                counted.lists,
                counted.policies,
                counted.policy,
            ) or not said.uses.items() <= counted.uses.items():
                raise corrupt(STATE, f"it does not count what the first {size} entries say")

    def _require_acknowledged(self) -> None:
        acknowledged = max(self._published.size, self._state.size if self._state else 0)
        if acknowledged > self._frontier.size:
            raise corrupt(
                f"entry {self._frontier.size}",
                f"the record ends there, but {acknowledged} entries had been acknowledged",
            )

    def _require_signed(self) -> None:
        if self._signed.keys and self._frontier.size and not (self._reader.folder / CHECKPOINT).exists():
            raise corrupt(
                CHECKPOINT, f"it is missing: nobody has signed any of {self._frontier.size} entries"
            )
