"""The record's log, as it is under one signed checkpoint: its entries, its tree. Nothing of it is verified here."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from egs_kernel.audit.checkpoint import Checkpoint
from egs_kernel.audit.notes import Note
from egs_kernel.audit.published import Published
from egs_kernel.audit.tiles import WIDTH, bundle_of, nodes_of, unpack
from egs_kernel.errors import EgsError, RecordError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from egs_kernel.audit.merkle import Nodes
    from egs_kernel.audit.tiles import Tile


class SignedTree:
    """A record's published files, up to a checkpoint.

    Args:
        folder: the record's folder, or a copy of it.
        checkpoint: the signed note; None takes the one that is published there.
        cold: where entries of long ago were moved to.

    Raises:
        EgsError: NOT_FOUND or NOT_PERMITTED; NOTE_MALFORMED: the checkpoint is none.
    """

    def __init__(self, folder: Path, checkpoint: bytes | None = None, cold: Path | None = None) -> None:
        self._folder = folder
        self._files = Published(folder)
        self._cold = None if cold is None else Published(cold)
        self.checkpoint = self._explained(self._files.checkpoint) if checkpoint is None else checkpoint
        self.note = Note.parse(self.checkpoint)
        self.size = Checkpoint.parse(self.note.text).size
        self._bundle = lru_cache(maxsize=16)(self._read_bundle)

    @property
    def nodes(self) -> Nodes:
        """The nodes of the tree."""
        return nodes_of(self._read, self.size)

    def line(self, seq: int) -> bytes:
        """The bytes of an entry.

        Raises:
            EgsError: NOT_FOUND: the checkpoint does not cover it. RECORD_CORRUPT: its bundle is damaged or missing.
        """
        if not 0 <= seq < self.size:
            raise EgsError(
                Reason.NOT_FOUND,
                f"the log's checkpoint covers {self.size} entries, and not entry {seq}",
                "Try again in a moment: the daemon publishes what is durable.",
            )
        return self._bundle(seq // WIDTH)[seq % WIDTH]

    def _read_bundle(self, number: int) -> list[bytes]:
        tile = bundle_of(number * WIDTH, self.size)
        return unpack(self._read(tile), tile.path, tile.width)

    def _read(self, tile: Tile) -> bytes:
        cold = self._cold
        if tile.level is None and cold is not None and not (self._folder / tile.path).exists():
            return self._explained(lambda: cold.tile(tile))
        return self._explained(lambda: self._files.tile(tile))

    def _explained(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except FileNotFoundError as error:
            raise EgsError(
                Reason.NOT_FOUND,
                f"{error.filename} is not there",
                "Name the folder of a record that egsd has published; check it: egs audit verify",
            ) from error
        except PermissionError as error:
            raise EgsError(
                Reason.NOT_PERMITTED,
                f"{error.filename} may not be read by this user",
                "Run as root, or as a member of the record's group.",
            ) from error
        except OSError as error:
            raise RecordError(
                Reason.RECORD_UNAVAILABLE,
                f"{self._folder} cannot be read: {error.strerror}",
                "Check the disk (dmesg).",
            ) from error
