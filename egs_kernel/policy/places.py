"""Where in a Cedar text something is wrong: cedarpy's errors say what, but not where.

The place is found with the parser itself. A text is cut into tokens; the first token with which the text up to there
cannot be continued any more is where the parser stopped. What is grammatical and still wrong, such as a function that
does not exist, is told by the first policy that is refused alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

UNFINISHED: Final = "unexpected end of input"
"""What Cedar says of a text that could go on; test_policy_parse.py pins it."""

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*|[0-9]+)
  | (?P<sign>::|==|!=|<=|>=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(r"`([^`]+)`|: (\w+)$")


@dataclass(frozen=True)
class Place:
    """Line and column of a character, from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"

    def after(self, start: Place) -> Place:
        """This place in a text that begins at `start`."""
        column = self.column + start.column - 1 if self.line == 1 else self.column
        return Place(self.line + start.line - 1, column)


@dataclass(frozen=True)
class Statement:
    """One policy's text, and where it begins."""

    text: str
    place: Place


def locate(text: str, complaint: Callable[[str], str | None]) -> Place:
    """Where a text is wrong.

    Args:
        text: what the parser refuses.
        complaint: why the parser refuses a text; None when it does not.
    """
    statement: list[re.Match[str]] = []
    for token in _tokens(text):
        statement.append(token)
        if token.group() == ";":
            if complaint(text[statement[0].start() : token.end()]) is not None:
                break
            statement = []
    return place_of(text, _stop(text, statement, complaint) if statement else len(text))


def place_of(text: str, offset: int) -> Place:
    """Line and column of the character at `offset`."""
    before = text[:offset]
    return Place(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def statements(text: str) -> list[Statement]:
    """The policies of a text that parses, each with its annotations; comments before it are left out."""
    found: list[Statement] = []
    start: int | None = None
    for token in _tokens(text):
        start = token.start() if start is None else start
        if token.group() == ";":
            found.append(Statement(text[start : token.end()], place_of(text, start)))
            start = None
    return found


def _tokens(text: str) -> list[re.Match[str]]:
    return [match for match in _TOKEN.finditer(text) if match.lastgroup != "space"]


def _stop(text: str, statement: list[re.Match[str]], complaint: Callable[[str], str | None]) -> int:
    """Where the parser stops in one statement that it refuses."""
    start = statement[0].start()
    low, high = (
        0,
        len(statement),
    )  # the shortest prefix that cannot go on is longer than `low`, at most `high`
    while low < high:
        middle = (low + high) // 2
        if complaint(text[start : statement[middle].end()]) == UNFINISHED:
            low = middle + 1
        else:
            high = middle
    if low == len(statement):
        return statement[-1].end()  # it ends too early
    if statement[low].group() != ";":
        return statement[low].start()
    refused = text[start : statement[low].end()]  # grammatical, and wrong: what the message names
    return start + _named(refused, complaint(refused) or "")


def named_in(text: str, message: str) -> Place:
    """Where what a message names stands in a text; the beginning when it does not."""
    return place_of(text, _named(text, message))


def _named(text: str, message: str) -> int:
    word = _QUOTED.search(message)
    return max(text.find(word.group(1) or word.group(2)), 0) if word else 0
