"""Opening a record after whatever happened: check what is new since the tiles were synced, and set a torn tail aside.

What was acknowledged is in a whole frame of the journal, or in tiles that were synced before the journal was trimmed. So a
start reads the journal, and rebuilds from it every tile and bundle that may be missing or half written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.checkpoint import CHECKPOINT, Checkpoint, open_checkpoint
from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.edge import Batch, Edge
from egs_kernel.audit.entries import Gap
from egs_kernel.audit.frames import MAX_APPEND, Frame, frame_after, frames_in
from egs_kernel.audit.layout import (
    JOURNAL,
    PENDING,
    STATE,
    TileFolder,
    require_ours,
    segment_path,
    segments_of,
)
from egs_kernel.audit.lines import decode
from egs_kernel.audit.merkle import Frontier, leaf_hash, root
from egs_kernel.audit.notes import VerifierKey
from egs_kernel.audit.publisher import Publisher
from egs_kernel.audit.reader import Reader
from egs_kernel.audit.segments import Segments
from egs_kernel.audit.state import NONE, Counted, State, read_state
from egs_kernel.audit.tiles import HEIGHT, WIDTH, nodes_of, pack_entry
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from egs_kernel.audit.files import Files


_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a file of the journal that are read: more than it can have."""


class Recovered(msgspec.Struct, frozen=True):
    """A record that can be appended to."""

    frontier: Frontier
    counted: Counted
    segments: Segments
    publisher: Publisher
    edge: Edge


def recover(folder: Path, files: Files, origin: str, keys: Sequence[VerifierKey]) -> Recovered:
    """Check and repair the record in `folder`, of which the caller is the one writer.

    Args:
        folder: the record's folder.
        files: the disk.
        origin: the log's name in its checkpoints.
        keys: the log's keys, all that it ever had.

    Raises:
        UnsafePath: others could change its files.
        RecordError: RECORD_CORRUPT when it is not what was written, RECORD_UNAVAILABLE when there is what does not belong
            there, or a later version wrote it.
        NoteError: the checkpoint is none of this log's.
        OSError: the disk fails.
    """
    require_ours(folder)
    journal = _read_journal(folder, origin)
    published = _published(folder, origin, keys)
    state = read_state(folder) or NONE
    _require_whole(folder, journal, published, state)
    base = max(journal.first, state.synced // WIDTH * WIDTH)
    tiles = TileFolder(folder)
    frontier = Frontier.of(base, nodes_of(tiles.read_full, base))
    _check_roots(journal, frontier, tiles, published, state)

    segments = _repair(folder, files, journal)
    publisher, edge = _republish(files, folder, journal, base)
    counted = _counted(folder, state, frontier.size)
    return Recovered(frontier, counted, segments, publisher, edge)


class _Journal(msgspec.Struct, frozen=True):
    """The journal as it was found: the first entries of its files, and where the last whole frame of the last one ends.

    `checkpoint`: the one in that frame. `origin`: whose they have to be.
    """

    folder: Path
    origin: str
    firsts: tuple[int, ...]
    end: int
    torn: bytes
    size: int
    checkpoint: Checkpoint | None

    @property
    def first(self) -> int:
        """The first entry that it has; 0 of a record without entries."""
        return self.firsts[0] if self.firsts else 0

    def expected(self, tree: Frontier) -> Checkpoint:
        """The checkpoint of a frame that ends with that tree."""
        return Checkpoint(self.origin, tree.size, tree.root())

    def frames(self) -> Iterator[Frame]:
        """Every frame."""
        for first in self.firsts:
            yield from frames_in(segment_path(self.folder, first).read_bytes())

    def batches(self, frontier: Frontier) -> Iterator[tuple[Frame, Batch]]:
        """Each frame that has entries which `frontier` has not, and those entries; `frontier` grows with them."""
        for frame in self.frames():
            if frame.size > frontier.size:
                entries = frame.entries[frontier.size - frame.first :]
                leaves = [leaf_hash(entry) for entry in entries]
                above = frontier.extend(leaves, HEIGHT)
                yield frame, Batch([pack_entry(entry) for entry in entries], leaves, above)


def _read_journal(folder: Path, origin: str) -> _Journal:
    firsts = segments_of(folder)
    size = firsts[0] if firsts else 0
    end, torn, checkpoint = 0, b"", None
    for number, first in enumerate(firsts):
        path = segment_path(folder, first)
        where = path.relative_to(folder).as_posix()
        if first != size:
            raise corrupt(where, f"entries {size} to {first - 1} are missing before it")
        content = read_private_file(path, _LIMIT)
        end = 0
        for frame in frames_in(content):
            if frame.first != size:
                raise corrupt(where, f"entry {frame.first} where entry {size} belongs")
            size, end, checkpoint = frame.size, frame.end, frame.checkpoint
        torn = content[end:]
        if torn and (number + 1 < len(firsts) or frame_after(content, end) is not None):
            raise corrupt(f"entry {size}", f"{where} is damaged at byte {end}, and entries follow")
        if len(torn) > MAX_APPEND:
            raise corrupt(f"entry {size}", f"{where} has {len(torn)} bytes at its end that are no entries")
    return _Journal(folder, origin, tuple(firsts), end, torn, size, checkpoint)


def _published(folder: Path, origin: str, keys: Sequence[VerifierKey]) -> Checkpoint | None:
    try:
        content = read_private_file(folder / CHECKPOINT, _LIMIT)
    except FileNotFoundError:
        return None
    return open_checkpoint(content, origin, keys).checkpoint


def _require_whole(folder: Path, journal: _Journal, published: Checkpoint | None, state: State) -> None:
    """Check that nothing is missing that the checkpoint and the state say was there."""
    if published is None and journal.first:
        raise corrupt(CHECKPOINT, "it is missing, and the journal no longer begins with entry 0")
    acknowledged = max(state.size, published.size if published is not None else 0)
    if state.synced > state.size:
        raise corrupt(STATE, f"{state.synced} of {state.size} entries are synced")
    if acknowledged and not journal.firsts:
        raise corrupt(JOURNAL, f"it is missing, but there were {acknowledged} entries in {folder}")
    if acknowledged > journal.size:
        raise corrupt(
            f"entry {journal.size}",
            f"the record ends there, but {acknowledged} entries had been acknowledged",
        )


def _check_roots(
    journal: _Journal, frontier: Frontier, tiles: TileFolder, published: Checkpoint | None, state: State
) -> None:
    """Grow `frontier` to the journal's end, and compare the roots that were noted on the way.

    Only those of the checkpoint, the state and the last frame: they leave no room for another tree before them. What follows the
    checkpoint nobody has signed yet; it is durable, and may have been acknowledged: it is signed next.
    """
    base = frontier.size
    noted = [(state.size, bytes.fromhex(state.root), STATE)] if state.size else []
    if published is not None:
        noted.append((published.size, published.root, CHECKPOINT))
    roots = {
        size: root(size, nodes_of(tiles.read_full, size)) for size, _root, _name in noted if size <= base
    }
    sizes = {size for size, _root, _name in noted}
    for frame, _batch in journal.batches(frontier):
        if frame.size in sizes:
            roots[frame.size] = frontier.root()
    for size, expected, name in noted:
        if roots.get(size) != expected:
            raise corrupt(name, f"its tree of {size} entries is another one than the record's")
    if journal.checkpoint not in {None, journal.expected(frontier)}:
        raise corrupt(
            f"entry {_first_difference(journal, tiles, base)}",
            f"it, or what stands before it, is not what was appended to the log {journal.origin}",
        )


def _first_difference(journal: _Journal, tiles: TileFolder, base: int) -> int:
    """The first entry of the first frame with another tree than its checkpoint's."""
    frontier = Frontier.of(base, nodes_of(tiles.read_full, base))
    for frame, _batch in journal.batches(frontier):
        if frame.checkpoint != journal.expected(frontier):
            return frame.first
    return frontier.size


def _repair(folder: Path, files: Files, journal: _Journal) -> Segments:
    """Make the journal durable as it was found, without a torn tail; `pending_gaps` tells of that.

    What is in the page cache need not be on the disk: the last append may have failed at its sync. So the last file is
    written anew.
    """
    files.make_folder(folder / JOURNAL)
    if journal.torn:
        name = f"torn-{journal.size}-{hashlib.sha256(journal.torn).hexdigest()[:16]}.bin{PENDING}"
        files.put(folder / name, journal.torn, synced=True)
    files.sync_folder(folder)
    if journal.firsts:
        path = segment_path(folder, journal.firsts[-1])
        files.put(path, path.read_bytes()[: journal.end], synced=True)
        files.sync_folder(folder / JOURNAL)
    return Segments(folder, files, journal.firsts, journal.end)


def _republish(files: Files, folder: Path, journal: _Journal, base: int) -> tuple[Publisher, Edge]:
    publisher = Publisher(folder, files, base // WIDTH * WIDTH)
    edge = Edge.of(base, TileFolder(folder).read_full)
    frontier = Frontier.of(base, nodes_of(TileFolder(folder).read_full, base))
    for _frame, batch in journal.batches(frontier):
        publisher.take(edge.grow(batch))
        publisher.write()
    publisher.repair(base, edge)
    return publisher, edge


def _counted(folder: Path, state: State, size: int) -> Counted:
    counted = Counted.of(state)
    for number, line in enumerate(Reader(folder).lines(state.size), state.size):
        if number >= size:
            break
        counted.add(decode(line, f"entry {number}").entry, len(line))
    return counted


def pending_gaps(folder: Path) -> list[tuple[Path, Gap]]:
    """Torn tails that no entry mentions yet: the file, and the entry to append.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path in sorted(folder.glob(f"torn-*.bin{PENDING}")):
        size = path.stat().st_size
        detail = f"a crash cut a write off: {size} bytes before this entry are no whole frame"
        found.append((path, Gap(cause="torn_tail", detail=detail, kept=path.name.removesuffix(PENDING))))
    return found


def settle(path: Path, files: Files) -> None:
    """Take the mark off a torn tail's file, once an entry mentions it.

    Raises:
        OSError: it cannot be renamed.
    """
    files.rename(path, path.with_name(path.name.removesuffix(PENDING)))
    files.sync_folder(path.parent)
