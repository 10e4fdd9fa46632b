"""`egs audit archive`: entries of long ago, moved to cold storage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit import archive
from egs_kernel.audit.lines import microseconds
from egs_kernel.audit.signed import SignedTree
from egs_kernel.cli.audit.common import add_path, add_word, print_text, progress_bar
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.cli.audit.query import since_of
from egs_kernel.cli.output import print_json
from egs_kernel.errors import ExitCode

if TYPE_CHECKING:
    import argparse

    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `archive`."""
    parser = add_word(words, "archive", run_archive, "move entries of long ago to another folder")
    parser.description = (
        "Move full bundles of entries that were recorded before a time to another folder, in the same layout. Each is compared "
        "with the tree, and durable there, before it is deleted here. Hashes and the newest 32,768 entries stay. --cold DIR finds "
        "the others again."
    )
    parser.add_argument(
        "--before",
        required=True,
        metavar="T",
        help="2026-11-23, 2026-11-23T14:00:00Z, or a time ago: 1h, 90d",
    )
    parser.add_argument(
        "--to", required=True, type=Path, metavar="DIR", help="where to; made when it is missing"
    )
    add_path(parser, "--path")


def run_archive(arguments: argparse.Namespace) -> int:
    """`egs audit archive`.

    Raises:
        EgsError: there is no record, it may not be changed, or a bundle is not what the tree says.
    """
    bound = microseconds(since_of(arguments.before) or "")
    with open_index(arguments.path, index_place(arguments.path), arguments.to) as (index, log):
        first = next(index.numbers(since=bound), log.size)
    end = min(first, SignedTree(arguments.path).size - archive.KEPT)
    with progress_bar("archiving") as progress:
        moved = archive.move_bundles(arguments.path, arguments.to, end, progress)
    if arguments.json:
        print_json({"moved": moved, "to": str(arguments.to)})
    else:
        print_text(f"{moved} entries were moved to {arguments.to}")
    return ExitCode.DONE
