"""The systemd unit of a process, as its cgroup tells it.

Of the system's manager alone: in a path below it the first part that is no slice is the unit. What a user's own manager
starts is below `user@UID.service`, and is that unit, whatever the user calls it.
"""

from __future__ import annotations

import re
from typing import Final

_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,247}\.(service|scope|socket|mount|swap)")
_SLICE: Final = ".slice"


def unit_of(cgroup: str) -> str | None:
    """The unit that governs a cgroup; None: none does.

    Args:
        cgroup: its path from the root of the hierarchy, as in /proc/PID/cgroup.
    """
    unit = unit_cgroup(cgroup)
    return None if unit is None else unit.rpartition("/")[2]


def unit_cgroup(cgroup: str) -> str | None:
    """The path of that unit's own cgroup."""
    parts = cgroup.split("/")[1:]
    for index, part in enumerate(parts):
        if part.endswith(_SLICE):
            continue
        return "/".join(["", *parts[: index + 1]]) if _UNIT.fullmatch(part) else None
    return None


def is_unit_name(name: str) -> bool:
    """Whether it could be the name of a unit that has processes."""
    return _UNIT.fullmatch(name) is not None
