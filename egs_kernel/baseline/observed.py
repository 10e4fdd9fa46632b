"""What the record says that a scope executed, folded to what can be proposed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from egs_kernel.audit.entries import Exec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.model import FileIdentity

MOST: Final = 100_000
"""Different command lines; a scope that executes more is not what a list of programs is for."""


class Seen(NamedTuple):
    """One command line of one program by one user: as it was typed, its file as the gate saw it, and its arguments.

    `argv` None: the gate did not see all of them.
    """

    filename: str
    file: FileIdentity
    uid: int
    argv: tuple[str, ...] | None


def observed(entries: Iterable[Recorded], scope: str, since: str = "") -> dict[Seen, int]:
    """How often each was executed in a scope, whatever the gate said to it.

    Args:
        entries: of the record.
        scope: its name.
        since: a time as entries have it; what was recorded before does not count.
    """
    found: dict[Seen, int] = {}
    for item in entries:
        if not isinstance(item.entry, Exec) or item.time < since or item.entry.event.scope != scope:
            continue
        event = item.entry.event
        argv = None if event.argv_truncated else event.argv
        seen = Seen(event.filename, event.file, event.uid, argv)
        if seen in found or len(found) < MOST:
            found[seen] = found.get(seen, 0) + 1
    return found
