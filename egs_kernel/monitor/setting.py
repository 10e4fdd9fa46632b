"""Reads `/etc/egs/drift.toml`, or a file that is tried in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.drift.rules import LIMIT, Rules, parse_rules
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.paths import Paths


def load_rules(paths: Paths) -> Rules:
    """The rules of this host; a file that is missing leaves the defaults.

    Raises:
        EgsError: it is unsafe, wrong, or cannot be read.
    """
    return read_rules(paths.drift_rules) if paths.drift_rules.exists() else Rules()


def read_rules(file: Path) -> Rules:
    """The rules in a file.

    Raises:
        EgsError: it is unsafe, wrong, or cannot be read.
    """
    try:
        content = read_private_file(file, LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.CONFIG_INVALID,
            f"{file} cannot be read: {error.strerror}",
            "Name another file, or mend it.",
        ) from error
    return parse_rules(content, str(file))
