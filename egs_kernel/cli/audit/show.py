"""`egs audit show | tail`."""

from __future__ import annotations

import json
import select
import sys
from typing import TYPE_CHECKING

from egs_kernel.audit.layout import JOURNAL
from egs_kernel.audit.lines import decode
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.audit.merkle import EMPTY_ROOT
from egs_kernel.audit.reader import Reader, open_record
from egs_kernel.cli.audit.common import add_path, add_word, natural, print_entry, print_text
from egs_kernel.daemon.watch import FILE, FOLDER, Watcher
from egs_kernel.errors import EgsError, ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

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
    reader = open_record(arguments.path, arguments.cold)
    if arguments.seq is not None:
        return _show_entry(reader.line(arguments.seq), as_json=arguments.json)
    size, published = reader.size, reader.checkpoint()
    origin = None if published is None else published.origin
    summary = {
        "path": str(arguments.path),
        "origin": origin,
        "size": 0 if published is None else published.size,
        "root_hash": (EMPTY_ROOT if published is None else published.root).hex(),
        "verifier_key": _verifier_key(origin),
        "unpublished": size - (0 if published is None else published.size),
        "first_time": _time_of(reader, 0) if size else None,
        "last_time": _time_of(reader, size - 1) if size else None,
    }
    if arguments.json:
        print_text(json.dumps(summary))
    else:
        for name, value in summary.items():
            print_text(f"{name.replace('_', ' ')}: {value}")
    return int(ExitCode.DONE)


def _verifier_key(origin: str | None) -> str | None:
    """This host's verifier key, when that log is its own and the key may be read."""
    try:
        listed = read_keys(Paths.from_environment().log_keys)
    except EgsError:
        return None
    return str(listed.current) if listed.origin == origin else None


def _show_entry(line: bytes, *, as_json: bool) -> int:
    recorded = decode(line)
    if as_json:
        print_text(line.decode())
    else:
        print_text(json.dumps(json.loads(line), indent=2, sort_keys=True))
        print_text(f"leaf hash {recorded.hash}")
    return int(ExitCode.DONE)


def _time_of(reader: Reader, seq: int) -> str:
    return decode(reader.line(seq)).time


def run_tail(arguments: argparse.Namespace) -> int:
    """`egs audit tail`.

    Raises:
        EgsError: there is no record, or it may not be read.
    """
    watcher = Watcher(lambda: None)
    try:
        reader = open_record(arguments.path, arguments.cold)
        if arguments.follow:  # before the first look, so that nothing falls between
            watcher.add(arguments.path / JOURNAL, FILE | FOLDER, lambda _name: None)
        seq = max(0, reader.size - arguments.lines)
        while True:
            for line in reader.lines(seq):
                seq = print_entry(line, as_json=arguments.json) + 1
            if not arguments.follow:
                return int(ExitCode.DONE)
            sys.stdout.flush()
            select.select([watcher], [], [])
            watcher.dispatch()
    finally:
        watcher.close()
