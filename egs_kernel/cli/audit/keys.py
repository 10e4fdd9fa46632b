"""`egs audit key show | rotate`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.cli.audit.common import add_word, print_text
from egs_kernel.cli.client import ask
from egs_kernel.cli.output import print_json
from egs_kernel.config import parse_duration
from egs_kernel.daemon import protocol
from egs_kernel.errors import ExitCode
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    import argparse

    from egs_kernel.audit.logkeys import LogKey
    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `key show` and `key rotate`."""
    key = words.add_parser("key", help="the key that signs the record's checkpoints")
    actions = key.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_word(
        actions,
        "show",
        run_show,
        "the log's origin and its verifier keys, the current one last, each with the size at which it took over",
    )
    rotate = add_word(
        actions, "rotate", run_rotate, "let a new key take over; for a time the one before it signs as well"
    )
    rotate.add_argument(
        "--overlap",
        metavar="TIME",
        default="30d",
        help="how long both sign: 12h, 30d (30d); 0: the old key signs nothing any more, as when it was stolen",
    )


def run_show(arguments: argparse.Namespace) -> int:
    """`egs audit key show`.

    Raises:
        EgsError: there is no key, or the list may not be read.
    """
    listed = read_keys(Paths.from_environment().log_keys)
    if arguments.json:
        print_json(msgspec.to_builtins(listed) | {"verifier_key": str(listed.current)})
        return int(ExitCode.DONE)
    print_text(f"origin: {listed.origin}")
    for key in listed.keys:
        print_text(f"verifier key: {key.key} (from {key.since} entries on{_until(key)})")
    return int(ExitCode.DONE)


def run_rotate(arguments: argparse.Namespace) -> int:
    """`egs audit key rotate`.

    Raises:
        EgsError: the daemon does not run, or the key cannot be made.
    """
    overlap = 0 if arguments.overlap == "0" else parse_duration(arguments.overlap, "--overlap")
    answer = ask(Paths.from_environment(), protocol.RotateLogKeyRequest(overlap=overlap), protocol.Done)
    if arguments.json:
        print_json({"verifier_key": answer.id, "message": answer.message})
    else:
        print_text(f"verifier key: {answer.id}")
        print_text(answer.message)
    return int(ExitCode.DONE)


def _until(key: LogKey) -> str:
    if key.until is None:
        return ""
    return f", until {format_time(datetime.fromtimestamp(key.until, UTC))}"
