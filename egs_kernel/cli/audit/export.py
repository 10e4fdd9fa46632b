"""`egs audit export`: the record's entries, or its decisions as receipts, for other programs."""

from __future__ import annotations

import base64
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from egs_kernel.audit.entries import Decision, Exec, PostureEntry
from egs_kernel.audit.lines import decode, microseconds
from egs_kernel.audit.log import open_log
from egs_kernel.audit.receipts import Receipts, draft, needs_receipt
from egs_kernel.cli.audit.common import add_path, add_word
from egs_kernel.cli.audit.indexes import index_place, open_index
from egs_kernel.cli.audit.query import since_of
from egs_kernel.cli.output import print_json
from egs_kernel.cli.signing import KEY, add_passphrase_option, open_key
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.trust.keys import Algorithm, algorithm_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.audit.index import Index
    from egs_kernel.cli.main import Commands

_RECEIPTS = "eg-receipts"


def add_words(words: Commands) -> None:
    """Add `export`."""
    parser = add_word(
        words, "export", run_export, "write entries, or receipts of the decisions, for other programs"
    )
    parser.description = (
        "Write the record's entries as they stand in it, a line each (jsonl), or a receipt of each decision as "
        "@11ai/execution-governance has them (eg-receipts), signed with --key: its eg-verify accepts the file."
    )
    parser.add_argument(
        "--format", choices=["jsonl", _RECEIPTS], default="jsonl", help="jsonl, or eg-receipts"
    )
    parser.add_argument("--key", metavar=KEY, help="the Ed25519 key that signs receipts, a file or a URI")
    add_passphrase_option(parser)
    parser.add_argument("--since", metavar="T", help="entries from this time on; written as for query")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file (default: the standard output)")
    add_path(parser, "--path")


def run_export(arguments: argparse.Namespace) -> int:
    """`egs audit export`.

    Raises:
        UsageError: receipts without an Ed25519 key, or the file exists.
        EgsError: there is no record, or it may not be read.
    """
    if (arguments.format == _RECEIPTS) != (arguments.key is not None):
        raise UsageError(
            Reason.USAGE,
            "receipts are signed, entries are not: --key goes with --format eg-receipts",
            "Make a key: egs keys generate --name receipts --out DIR",
        )
    if arguments.json and arguments.out is None:
        raise UsageError(Reason.USAGE, "--json tells of a file", "Add --out FILE.")
    since = since_of(arguments.since)
    bound = None if since is None else microseconds(since)
    with _output(arguments.out) as out:
        if arguments.format == _RECEIPTS:
            answer = _write_receipts(arguments, bound, out)
        else:
            answer = _write_entries(arguments, since, out)
    if arguments.json:
        print_json(answer)
    elif "public_key" in answer:
        sys.stderr.write(f"{answer['count']} receipts; eg-verify --pubkey {answer['public_key']}\n")
    return ExitCode.DONE


def _write_entries(arguments: argparse.Namespace, since: str | None, out: BinaryIO) -> dict[str, Any]:
    count = 0
    with open_log(arguments.path, arguments.cold) as log:
        for line in log.lines(0):
            if since is None or decode(line).time >= since:
                out.write(line + b"\n")
                count += 1
    return {"format": "jsonl", "count": count}


def _write_receipts(arguments: argparse.Namespace, since: int | None, out: BinaryIO) -> dict[str, Any]:
    signer = open_key(arguments.key, arguments.passphrase_file)
    if algorithm_of(signer.public_key) is not Algorithm.ED25519:
        raise UsageError(Reason.USAGE, f"{arguments.key} is no Ed25519 key", "egs keys generate makes one.")
    public = bytes.fromhex(signer.public_key.keyval["public"])
    receipts = Receipts(public, lambda message: bytes.fromhex(signer.sign(message).signature))
    count = 0
    with open_index(arguments.path, index_place(arguments.path), arguments.cold) as (index, log):
        parent_of = lru_cache(maxsize=4096)(_parents(index))
        policy = ""
        for seq, line in enumerate(log.lines(0)):
            recorded = decode(line)
            if isinstance(recorded.entry, PostureEntry):
                policy = recorded.entry.posture.policy_digest
            if not needs_receipt(recorded) or (since is not None and microseconds(recorded.time) < since):
                continue
            boot = index.boot_of(seq)
            parent = 0
            if isinstance(recorded.entry, Exec):
                parent = recorded.entry.event.parent_execution
            made = draft(
                recorded,
                session=index.boot_id(boot) or "",
                policy=policy,
                parent=parent_of(parent, boot) if parent else None,
                request=_request(index, recorded, boot),
            )
            out.write(receipts.add(made) + b"\n")
            count += 1
    key = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    return {"format": _RECEIPTS, "count": count, "public_key": key}


def _parents(index: Index) -> Callable[[int, int], Recorded | None]:
    def parent_of(execution: int, boot: int) -> Recorded | None:
        return next(index.find(type="exec", execution=str(execution), boot=boot), None)

    return parent_of


def _request(index: Index, recorded: Recorded, boot: int) -> Recorded | None:
    if not isinstance(recorded.entry, Decision) or recorded.entry.request is None:
        return None
    return next(index.find(type="request", request=recorded.entry.request, boot=boot), None)


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        file = path.open("xb")
    except OSError as error:
        raise UsageError(
            Reason.USAGE, f"{path} cannot be written: {error.strerror}", "Name a new file."
        ) from error
    with file:
        yield file
