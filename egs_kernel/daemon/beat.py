"""When the monitor was last heard: a file that outlives both, so that the next monitor can say for how long nobody watched.

The daemon writes it: while a gate is sealed, nobody else could.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = "monitor.beat"


class _Said(msgspec.Struct, frozen=True):
    time: str


class Beat:
    """The file in a run folder. What the record says counts as well; of both, the later."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def write(self, time: str) -> None:
        """The monitor is there now. Not synced: after a power loss it is another boot, and nothing ran."""
        fresh = self._path.with_name(f"{_NAME}.new")
        fresh.write_bytes(msgspec.json.encode(_Said(time)))
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
