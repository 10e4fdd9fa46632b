"""How commands print: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def print_json(value: Any) -> None:
    """Print one JSON value."""
    sys.stdout.write(f"{json.dumps(value, indent=2, ensure_ascii=False)}\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def announce(line: str) -> None:
    """Print a line that somebody waits for, now: a service says that it is ready."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under a heading, each column as wide as its widest cell."""
    table = [heading, *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(heading))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
