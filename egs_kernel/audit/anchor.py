"""Two small files beside the record, so that a start need not read all of it and a lost end is noticed.

`head` names the last durable line. It is written in place after every append and not synced: behind
after a power loss, never ahead. `checkpoint.json` is synced every some thousand entries: a position to
start from, and the tally up to there. Both can be deleted: the record alone has everything.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.chain import Position
from egs_kernel.audit.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = "head"
CHECKPOINT: Final = "checkpoint.json"
_HEAD_FORM = re.compile(rb"([0-9]{20}) ([0-9]{20}) ([0-9]{20}) ([0-9a-f]{64}) ([0-9a-f]{16})\n")


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A verified position and the tally there. `uses`: artifact id → (uses spent, its notAfter)."""

    v: int
    position: Position
    uses: dict[str, tuple[int, str]]
    revoked: tuple[str, ...]

    @property
    def tally(self) -> Tally:
        """The tally to go on from."""
        return Tally(self.uses, self.revoked)


def head_line(position: Position) -> bytes:
    """`head`'s content: seq, start, end, hash, and a check of the four (a reader may meet a half write)."""
    text = b"%020d %020d %020d %s" % (position.seq, position.start, position.end, position.hash.encode())
    return b"%s %s\n" % (text, _check(text))


def parse_head(content: bytes) -> Position | None:
    """The position that `head` names; None when it is none (half written: after a power loss, at most)."""
    match = _HEAD_FORM.fullmatch(content)
    if match is None or _check(content[:-18]) != match[5]:
        return None
    return Position(int(match[1]), int(match[2]), int(match[3]), match[4].decode())


def read_head(folder: Path) -> Position | None:
    """The last durable line as `head` tells; None when there is no readable `head`.

    Raises:
        OSError: it exists and cannot be read.
    """
    try:
        return parse_head((folder / HEAD).read_bytes())
    except FileNotFoundError:
        return None


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint; None when there is none, or none that this version reads: the record then tells.

    Raises:
        OSError: it exists and cannot be read.
    """
    try:
        found = msgspec.json.decode((folder / CHECKPOINT).read_bytes(), type=Checkpoint)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.v == 1 else None


def write_checkpoint(folder: Path, position: Position, tally: Tally) -> None:
    """Replace the checkpoint, durably.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    uses, revoked = tally.saved()
    content = msgspec.json.encode(Checkpoint(1, position, uses, revoked))
    fresh = folder / f"{CHECKPOINT}.new"
    write_durably(fresh, content)
    fresh.replace(folder / CHECKPOINT)
    sync_folder(folder)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file of 0640 and sync it.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o640), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names that were created in a folder durable.

    Raises:
        OSError: the folder cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()
