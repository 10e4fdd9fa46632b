"""What the words of `egs audit` have in common."""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.audit.describe import describe
from egs_kernel.audit.lines import decode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.cli.main import Commands


def add_word(
    words: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A word of `egs audit`, with `--json`."""
    parser = words.add_parser(name, help=text)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)
    return parser


def add_path(parser: argparse.ArgumentParser, option: str) -> None:
    """Where the record is: this instance's, or one that was copied; and where entries were moved to."""
    add_cold(parser)
    add_folder(parser, option)


def add_folder(parser: argparse.ArgumentParser, option: str) -> None:
    """Where the record is, for what looks at no entry of long ago."""
    parser.add_argument(
        option,
        type=Path,
        default=Paths.from_environment().record,
        help="the record's folder, or a copy of it",
    )


def add_cold(parser: argparse.ArgumentParser) -> None:
    """Where entries of long ago were moved to."""
    parser.add_argument(
        "--cold",
        type=Path,
        metavar="DIR",
        help="where entries were moved to, if they were (egs audit archive)",
    )


def print_entry(line: bytes, *, as_json: bool) -> int:
    """Print an entry, as it stands in the record or for people; its number."""
    recorded = decode(line)
    print_text(line.decode() if as_json else describe(recorded))
    return recorded.seq


def print_text(text: str) -> None:
    """Print one line of text."""
    sys.stdout.write(f"{text}\n")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, for what takes long; call it with what is done and what there is in all."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only for a terminal
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def natural(text: str) -> int:
    """A number of an entry or a process.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 15:  # noqa: PLR2004 - below 2^53
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)
