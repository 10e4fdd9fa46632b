"""The record's folder: making it, and having it for one writer alone."""

from __future__ import annotations

import os
from pathlib import Path

from egs_kernel.audit.files import Files
from egs_kernel.errors import RecordError
from egs_kernel.locks import take
from egs_kernel.model import Reason
from egs_kernel.ownership import require_private_folder


def make_folder(folder: Path) -> None:
    """Make the record's folder, where nobody else could have put something in its place.

    Raises:
        UnsafePath: others can write to a folder above it.
        OSError: it cannot be made.
    """
    folder = folder.absolute()
    if os.path.lexists(folder):
        return
    if not os.path.lexists(folder.parent):
        make_folder(folder.parent)
    require_private_folder(folder.parent)
    folder.mkdir(mode=0o750)
    Files().sync_folder(folder.parent)


def claim(folder: Path) -> int:
    """Take the record for this process: a descriptor. The kernel lets go of it however the process ends.

    By a file beside the folder, which the group that reads the record cannot open.

    Raises:
        RecordError: DAEMON_RUNNING: another process has it.
        OSError: the file cannot be opened.
    """
    taken = RecordError(
        Reason.DAEMON_RUNNING,
        f"another process writes the record in {folder}",
        "One egsd at a time: `egs status` asks the one that runs. EGS_ROOT keeps instances apart.",
    )
    return take(folder.with_name(f"{folder.name}.lock"), taken)


def unavailable(folder: Path, error: OSError) -> RecordError:
    """The error for a record that cannot be written."""
    return RecordError(
        Reason.RECORD_UNAVAILABLE,
        f"the record in {folder} cannot be written: {error.strerror or error}",
        f"Free space or repair the disk (df {folder}; dmesg); until then every authorization is refused.",
    )
