"""When the monitor was last there: a file that outlives it, so that the next one can say for how long nobody watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class _Said(msgspec.Struct, frozen=True):
    time: str
    boot_id: str


class Beat:
    """The file. What the record says counts as well; of both, the later."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, time: str, boot_id: str) -> None:
        """The monitor is there now. Not synced: after a power loss it is another boot, and nothing ran."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        fresh.write_bytes(msgspec.json.encode(_Said(time, boot_id)))
        fresh.replace(self._path)

    def last(self, recorded: str | None) -> str:
        """Until when somebody watched in this boot; "": nobody did.

        Args:
            recorded: what the record says; None: it says that nobody watched.
        """
        if recorded is None:
            return ""
        try:
            said = msgspec.json.decode(self._path.read_bytes(), type=_Said)
        except (OSError, msgspec.DecodeError):
            return recorded
        return max(said.time, recorded)
