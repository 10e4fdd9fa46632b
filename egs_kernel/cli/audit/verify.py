"""`egs audit verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.check import verify
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.audit.notes import VerifierKey
from egs_kernel.cli.audit.common import add_cold, add_word, print_text, progress_bar
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.errors import EgsError, ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `verify`."""
    text = "check every entry, tile and checkpoint of the record"
    parser = add_word(words, "verify", run_verify, text)
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=Paths.from_environment().record,
        help="the record's folder, or a copy of it",
    )
    add_cold(parser)
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="VKEY",
        help="a key of the log, as `egs audit key show` prints it (default: this host's; may be repeated)",
    )
    parser.add_argument(
        "--index",
        action="store_true",
        help="compare the index that `egs lineage` and `egs audit query` use with the record, too",
    )
    parser.add_argument("--unsigned", action="store_true", help="do not verify signatures: no key is at hand")


def run_verify(arguments: argparse.Namespace) -> int:
    """`egs audit verify`.

    Raises:
        RecordError: the record does not verify, or its index says something else.
        EgsError: there is no record, or no key.
    """
    keys = () if arguments.unsigned else _keys(arguments.key)
    with progress_bar("verifying") as progress:
        found = verify(arguments.path, keys, progress, arguments.cold)
    if arguments.index:
        _compare_index(arguments.path, arguments.cold)
    answer = {
        "verified": True,
        "path": str(arguments.path),
        "size": found.size,
        "root_hash": found.root,
        "published": found.published,
        "signed": found.signed,
        "first_time": found.first_time,
        "last_time": found.last_time,
        "types": found.types,
        "unknown_types": found.unknown_types,
        "torn_bytes": found.torn,
        "index": arguments.index,
    }
    if arguments.json:
        print_text(json.dumps(answer))
        return int(ExitCode.DONE)
    print_text(f"verified: {found.size} entries, {found.published} of them under the published checkpoint")
    if found.size > found.published:
        print_text("those after it are signed by nobody yet: egsd does it within a second, or when it starts")
    print_text(f"root: {found.root}")
    if arguments.index:
        print_text("the index says what the record says")
    if not found.signed:
        print_text("no signature was verified: give --key to know whose log it is")
    if found.unknown_types:
        print_text(f"{found.unknown_types} entries are of types that this version does not know")
    if found.torn:
        print_text(f"{found.torn} bytes after the last entry are being written, or were cut off by a crash")
    return int(ExitCode.DONE)


def _compare_index(path: Path, cold: Path | None) -> None:
    with (
        open_index(path, index_place(path), cold) as (index, _log),
        progress_bar("comparing") as progress,
    ):
        index.compare(progress)


def _keys(given: list[str]) -> tuple[VerifierKey, ...]:
    if not given:
        return read_keys(Paths.from_environment().log_keys).verifiers
    try:
        return tuple(VerifierKey.parse(key) for key in given)
    except EgsError as error:
        raise UsageError(
            Reason.USAGE, f"--key: {error.message}", "Copy it from `egs audit key show`."
        ) from error
