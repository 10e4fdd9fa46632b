"""What /proc says of one process, where the gate's identity of a process needs it."""

from __future__ import annotations

from pathlib import Path

_START_TIME_FIELD = 22
"""proc(5), /proc/PID/stat; the second field is the name in parentheses, which may hold anything."""


def start_ticks(pid: int) -> int:
    """The start of a process in clock ticks since boot.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"process {pid} is gone") from error
    after_name = content[content.rindex(")") + 2 :].split()
    return int(after_name[_START_TIME_FIELD - 3])
