"""The journal's bytes: one frame for each append, with its entries and the checkpoint signed over them. Pure.

A frame is a header, the entries as in a bundle (tiles.py), and the text of the checkpoint over the tree that ends with them.
The header has a CRC-32 over all that follows it, which tells a frame that a crash cut off. What somebody changed the checkpoint
tells: the next one that is published, which is signed.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.checkpoint import Checkpoint
from egs_kernel.audit.damage import corrupt
from egs_kernel.audit.tiles import unpack
from egs_kernel.errors import NoteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAGIC: Final = b"\x93egs2\r\n\x1a"
MAX_APPEND: Final = 16 * 1024 * 1024
"""Bytes of one frame at most: all that a crash can leave unacknowledged."""

_HEADER: Final = struct.Struct(
    ">8sIQIII"
)  # magic, CRC, first entry, entries, bytes of them, bytes of the checkpoint
_CHECKED: Final = struct.Struct(">QIII")


class Frame(msgspec.Struct, frozen=True):
    """An append: the number of its first entry, how many, their packed form, the text of the checkpoint after them.

    `end`: where it ends in what it was parsed from.
    """

    first: int
    count: int
    packed: bytes
    text: bytes
    end: int

    @property
    def size(self) -> int:
        """Entries of the tree that ends with it."""
        return self.first + self.count

    @property
    def entries(self) -> list[bytes]:
        """Its entries.

        Raises:
            RecordError: RECORD_CORRUPT: they are not as many as it says.
        """
        return unpack(self.packed, f"journal, entry {self.first}", self.count)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint after them.

        Raises:
            RecordError: RECORD_CORRUPT: there is none.
        """
        text = self.text.removesuffix(b"\n").partition(b"\n\n")[0]  # earlier versions had signatures under it
        try:
            return Checkpoint.parse(f"{text.decode()}\n")
        except (UnicodeDecodeError, NoteError) as error:
            raise corrupt(f"entry {self.first}", "the checkpoint after it in the journal is none") from error


def encode_frame(first: int, packed: Sequence[bytes], checkpoint: Checkpoint) -> bytes:
    """The frame of entries, each after its length (`tiles.pack_entry`), and their checkpoint."""
    entries, text = b"".join(packed), checkpoint.text.encode()
    checked = _CHECKED.pack(first, len(packed), len(entries), len(text))
    crc = zlib.crc32(text, zlib.crc32(entries, zlib.crc32(checked)))
    return b"".join((MAGIC, crc.to_bytes(4), checked, entries, text))


def frame_at(content: bytes, start: int) -> Frame | None:
    """The frame that begins at `start`; None when there is none, or not all of it."""
    if len(content) - start < _HEADER.size:
        return None
    magic, crc, first, count, packed, text = _HEADER.unpack_from(content, start)
    begin = start + _HEADER.size
    end = begin + packed + text
    if magic != MAGIC or end > len(content) or end - start > MAX_APPEND or not count:
        return None
    if zlib.crc32(memoryview(content)[start + 12 : end]) != crc:
        return None
    return Frame(first, count, content[begin : begin + packed], content[begin + packed : end], end)


def frames_in(content: bytes, start: int = 0) -> Iterator[Frame]:
    """Every frame from `start` on, up to the first place where there is none."""
    while (frame := frame_at(content, start)) is not None:
        yield frame
        start = frame.end


def frame_after(content: bytes, start: int) -> Frame | None:
    """The first frame that begins beyond `start`, whatever stands before it."""
    at = content.find(MAGIC, start + 1)
    while at >= 0:
        frame = frame_at(content, at)
        if frame is not None:
            return frame
        at = content.find(MAGIC, at + 1)
    return None
