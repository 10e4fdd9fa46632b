"""Where the index of a record is kept, for those who ask it; `egs audit reindex`."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.index import Index, remove
from egs_kernel.audit.log import open_log
from egs_kernel.cli.audit.common import add_path, add_word, print_text, progress_bar
from egs_kernel.cli.output import print_json
from egs_kernel.errors import ExitCode, UnsafePath
from egs_kernel.ownership import require_private_folder
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from egs_kernel.audit.log import OpenLog
    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `reindex`."""
    parser = add_word(words, "reindex", run_reindex, "build the index of the record anew")
    add_path(parser, "--path")


def run_reindex(arguments: argparse.Namespace) -> int:
    """`egs audit reindex`.

    Raises:
        EgsError: there is no record, it is damaged, or the index cannot be written.
    """
    place = index_place(arguments.path)
    remove(place)
    with open_index(arguments.path, place, arguments.cold) as (index, _log):
        size = index.size
    if arguments.json:
        print_json(
            {"path": str(arguments.path), "index": None if place is None else str(place), "size": size}
        )
    elif place is None:
        print_text(f"no folder for an index can be written: {size} entries were read, and nothing is kept")
    else:
        print_text(f"{size} entries in {place}")
    return ExitCode.DONE


@contextmanager
def open_index(path: Path, place: Path | None, cold: Path | None = None) -> Iterator[tuple[Index, OpenLog]]:
    """The record at `path` and its index at `place`, brought up to date; `cold`: where entries were moved to.

    Raises:
        EgsError: there is no record, it is damaged, or the index cannot be used.
    """
    with (
        open_log(path, cold) as log,
        progress_bar("indexing") as progress,
        Index.open(place, log, progress=progress) as index,
    ):
        yield index, log


def index_place(path: Path) -> Path | None:
    """Where the index of the record at `path` is: in the instance's cache, or the caller's; None where neither can be."""
    paths = Paths.from_environment()
    name = "record" if path == paths.record else hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path(os.environ.get("HOME", "/nonexistent")) / ".cache")
    if _usable(paths.index, paths.state_dir):
        return paths.index / f"{name}.sqlite"
    if _usable(Path(cache) / "egs", Path(cache).parent):
        return Path(cache) / "egs" / f"{name}.sqlite"
    return None


def _usable(folder: Path, existing: Path) -> bool:
    """Whether it is there or can be made, where `existing` is, is the caller's to write, and nobody else's."""
    try:
        existing.stat()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private_folder(folder)
    except (OSError, UnsafePath):
        return False
    return os.access(folder, os.W_OK)
