"""`egs audit prove`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from egs_kernel.audit.layout import TileFolder
from egs_kernel.audit.merkle import consistency_proof, leaf_hash, root, verify_consistency, verify_inclusion
from egs_kernel.audit.notes import encode_base64
from egs_kernel.audit.reader import open_record
from egs_kernel.audit.tiles import nodes_of
from egs_kernel.audit.tlog_proof import TlogProof
from egs_kernel.cli.audit.common import add_path, add_word, natural
from egs_kernel.cli.output import print_json
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason

if TYPE_CHECKING:
    import argparse

    from egs_kernel.audit.reader import Reader
    from egs_kernel.cli.main import Commands


def add_words(words: Commands) -> None:
    """Add `prove`."""
    text = "prove that an entry is in the log, or that the log begins with what it was"
    parser = add_word(words, "prove", run_prove, text)
    parser.add_argument(
        "seq", nargs="?", type=natural, metavar="SEQ", help="the number of an entry: a tlog-proof"
    )
    parser.add_argument(
        "--since", type=natural, metavar="SIZE", help="a size that the log had: a consistency proof"
    )
    add_path(parser, "--path")


def run_prove(arguments: argparse.Namespace) -> int:
    """`egs audit prove SEQ | --since SIZE`.

    Raises:
        UsageError: neither or both of them are given.
        ProofError: there is no such entry or size under the published checkpoint, or the record is damaged.
        EgsError: there is no record, or nothing is published.
    """
    if (arguments.seq is None) == (arguments.since is None):
        raise UsageError(
            Reason.USAGE,
            "one of SEQ and --since is needed",
            "egs audit prove 7, or egs audit prove --since 1000",
        )
    reader = open_record(arguments.path, arguments.cold)
    log = _Published(reader)
    found, text = _entry(log, arguments.seq) if arguments.since is None else _growth(log, arguments.since)
    if arguments.json:
        head = {"origin": log.head.origin, "size": log.head.size, "root_hash": log.head.root.hex()}
        print_json(found | head | {"checkpoint": log.note.decode()})
    else:
        sys.stdout.write(text)
    return int(ExitCode.DONE)


class _Published:
    """A log under its published checkpoint."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.note, self.head = reader.published()
        self.nodes = nodes_of(TileFolder(reader.folder, reader.cold).read, self.head.size)


def _entry(log: _Published, seq: int) -> tuple[dict[str, Any], str]:
    """The proof of an entry, for programs and as a tlog-proof."""
    proof = TlogProof.of(seq, log.head.size, log.nodes, log.note)
    leaf = leaf_hash(log.reader.line(seq))
    verify_inclusion(leaf, seq, log.head.size, proof.hashes, log.head.root)  # tiles may be damaged
    found = {"seq": seq, "leaf_hash": leaf.hex(), "hashes": [item.hex() for item in proof.hashes]}
    return found, proof.encode().decode()


def _growth(log: _Published, since: int) -> tuple[dict[str, Any], str]:
    """The proof from a size on, for programs and as a witness is asked (tlog-witness, add-checkpoint)."""
    hashes = consistency_proof(since, log.head.size, log.nodes)
    before = root(since, log.nodes)
    verify_consistency(since, before, log.head.size, log.head.root, hashes)
    found = {"since": since, "since_root": before.hex(), "hashes": [item.hex() for item in hashes]}
    lines = "".join(f"{encode_base64(item)}\n" for item in hashes)
    return found, f"old {since}\n{lines}\n{log.note.decode()}"
