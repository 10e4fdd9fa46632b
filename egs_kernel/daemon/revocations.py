"""Revoked artifacts: one empty file each, named by the artifact id.

The record says it, too. Each of the two is enough, so neither a lost file nor a new record revives an artifact.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import require_private_folder

_ID = re.compile(r"[0-9a-f]{64}")


def read_revocations(folder: Path) -> frozenset[str]:
    """The revoked artifact ids; the folder is created when it is missing.

    Raises:
        UnsafePath: others could change the folder.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    require_private_folder(folder)
    return frozenset(path.name for path in folder.iterdir() if _ID.fullmatch(path.name))


def require_id(text: str) -> str:
    """Check that `text` is a whole artifact id.

    Raises:
        UsageError: it is not.
    """
    if not _ID.fullmatch(text):
        raise UsageError(
            Reason.USAGE,
            f"{text!r} is no artifact id",
            "An id has 64 hex digits; `egs show FILE` and `egs artifacts list` print it.",
        )
    return text


def write_revocation(folder: Path, artifact_id: str) -> None:
    """Note, durably, that an artifact is revoked.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(folder / artifact_id, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
