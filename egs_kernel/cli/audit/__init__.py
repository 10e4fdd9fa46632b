"""`egs audit …`: reading, checking and exporting the record (docs/record.md), a module for each group of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.cli.audit import archive, export, indexes, keys, prove, query, show, verify

if TYPE_CHECKING:
    from egs_kernel.cli.main import Commands


def add_commands(commands: Commands) -> None:
    """Add `egs audit`."""
    audit = commands.add_parser("audit", help="read and verify the record")
    words = audit.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (verify, prove, show, query, indexes, export, archive, keys):
        module.add_words(words)
