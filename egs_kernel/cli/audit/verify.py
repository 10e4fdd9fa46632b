"""`egs audit verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.reader import verify
from egs_kernel.cli.audit.common import add_word, print_text, progress_bar
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `verify`."""
    parser = add_word(words, "verify", run_verify, "check every entry, the chain, and the end of the record")
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=Paths.from_environment().record,
        help="the record's folder, or a copy of its file",
    )


def run_verify(arguments: argparse.Namespace) -> int:
    """`egs audit verify`.

    Raises:
        RecordError: the record does not verify.
    """
    with progress_bar("verifying") as progress:
        found = verify(arguments.path, progress)
    answer = {
        "verified": True,
        "path": str(arguments.path),
        "size": found.position.size,
        "head": found.position.hash,
        "head_checked": found.head_checked,
        "first_time": found.first_time,
        "last_time": found.last_time,
        "types": found.types,
        "unknown_types": found.unknown_types,
        "torn_bytes": found.torn,
    }
    if arguments.json:
        print_text(json.dumps(answer))
        return int(ExitCode.DONE)
    print_text(f"verified: {found.position.size} entries, each follows the one before it")
    print_text(f"head: {found.position.hash}")
    if not found.head_checked:
        print_text(
            "no `head` beside this file: compare the hash above with one that you noted to know the end is whole"
        )
    if found.unknown_types:
        print_text(f"{found.unknown_types} entries are of types that this version does not know")
    if found.torn:
        print_text(f"{found.torn} bytes after the last entry are being written, or were cut off by a crash")
    return int(ExitCode.DONE)
