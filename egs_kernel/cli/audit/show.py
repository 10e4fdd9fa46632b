"""`egs audit show | tail`."""

from __future__ import annotations

import json
import select
import sys
from typing import TYPE_CHECKING

from egs_kernel.audit.chain import START
from egs_kernel.audit.lines import decode
from egs_kernel.audit.reader import last_position, last_seq, lines_from, opened, record_file
from egs_kernel.cli.audit.common import add_path, add_word, natural, print_entry, print_text
from egs_kernel.daemon.watch import FILE, Watcher
from egs_kernel.errors import EgsError, ExitCode
from egs_kernel.model import Reason

if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO

    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `show` and `tail`."""
    _add_show(words)
    _add_tail(words)


def _add_show(words: Commands) -> None:
    parser = add_word(words, "show", run_show, "the record as a whole, or one entry of it")
    parser.add_argument("seq", nargs="?", type=natural, metavar="SEQ", help="the number of an entry")
    add_path(parser, "--path")


def _add_tail(words: Commands) -> None:
    parser = add_word(words, "tail", run_tail, "the last entries")
    parser.add_argument("-n", "--lines", type=natural, default=10, metavar="N", help="how many (10)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with entries as they come")
    add_path(parser, "--path")


def run_show(arguments: argparse.Namespace) -> int:
    """`egs audit show [SEQ]`.

    Raises:
        EgsError: there is no such entry, or no record.
    """
    with opened(arguments.path) as file:
        if arguments.seq is not None:
            return _show_entry(file, arguments.seq, as_json=arguments.json)
        position = last_position(file)
        summary = {
            "path": str(arguments.path),
            "file": str(record_file(arguments.path)),
            "size": position.size,
            "bytes": position.end,
            "head": position.hash,
            "first_time": _time_of(file, 0) if position != START else None,
            "last_time": _time_of(file, position.seq) if position != START else None,
        }
    if arguments.json:
        print_text(json.dumps(summary))
    else:
        for name, value in summary.items():
            print_text(f"{name.replace('_', ' ')}: {value}")
    return int(ExitCode.DONE)


def _show_entry(file: BinaryIO, seq: int, *, as_json: bool) -> int:
    line = next(lines_from(file, seq), None)
    if line is None:
        raise EgsError(Reason.NOT_FOUND, f"there is no entry {seq}", f"The last entry is {last_seq(file)}.")
    recorded = decode(line)
    if as_json:
        print_text(line.decode())
    else:
        print_text(json.dumps(json.loads(line), indent=2, sort_keys=True))
        print_text(f"sha256 {recorded.hash}")
    return int(ExitCode.DONE)


def _time_of(file: BinaryIO, seq: int) -> str:
    return decode(next(lines_from(file, seq))).time


def run_tail(arguments: argparse.Namespace) -> int:
    """`egs audit tail`.

    Raises:
        EgsError: there is no record, or it may not be read.
    """
    watcher = Watcher(lambda: None)
    try:
        with opened(arguments.path) as file:
            if arguments.follow:  # before the first look, so that nothing falls between
                watcher.add(record_file(arguments.path), FILE, lambda _name: None)
            seq = max(0, last_seq(file) + 1 - arguments.lines)
            while True:
                for line in lines_from(file, seq):
                    seq = print_entry(line, as_json=arguments.json) + 1
                if not arguments.follow:
                    return int(ExitCode.DONE)
                sys.stdout.flush()
                select.select([watcher], [], [])
                watcher.dispatch()
    finally:
        watcher.close()
