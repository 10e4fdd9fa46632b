"""Which fields of an entry look different in the record than in Python, worked out once for each type. Pure.

`lines.encode` is what the daemon does most. Most fields are written as they are; so it takes a struct's fields in one step, and
changes the few that this names.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, Final

import msgspec

from egs_kernel.model import GrantKind, Reason, Verdict

WIDE: Final = frozenset(
    {
        "cgroup_id",
        "cpu_nanoseconds",
        "ctime_seconds",
        "execution",
        "grant_id",
        "inode",
        "max_rss_bytes",
        "parent_execution",
        "size",
        "start_ticks",
        "time",
    }
)
"""Fields inside an entry that are decimal strings. (The entry's own `time` is a date.)"""
NAMED: Final[dict[str, type[IntEnum]]] = {"verdict": Verdict, "reason": Reason, "grant_kind": GrantKind}
"""Fields that are written by name, and what they are."""
UNTAGGED: Final = "event"
"""The field whose type the entry's own type tells."""

Change = Callable[[Any], Any]


def fields_of(value: msgspec.Struct) -> dict[str, Any]:
    """The fields of an entry as JSON shows them, where they are text that is UTF-8 and numbers below 2^53.

    Other text and numbers are there as they are.
    """
    found = msgspec.structs.asdict(value)
    tag, changes = _shape(type(value))
    if tag is not None:
        found["type"] = tag
    for name, change in changes:
        found[name] = change(found[name])
    return found


@cache
def _shape(kind: type[msgspec.Struct]) -> tuple[str | None, tuple[tuple[str, Change], ...]]:
    """The tag of a type, and the fields that have to be changed."""
    changes = ((name, _change(name, hint)) for name, hint in typing.get_type_hints(kind).items())
    tag = kind.__struct_config__.tag
    return None if tag is None else str(tag), tuple((name, change) for name, change in changes if change)


def _change(name: str, hint: Any) -> Change | None:
    if name in NAMED:
        return {item: item.name.lower() for item in NAMED[name]}.__getitem__
    if name in WIDE and int in (hint, *typing.get_args(hint)):
        return str if hint is int else _decimal
    structs = [part for part in _parts(hint) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    if not structs:
        return None
    if typing.get_origin(hint) is tuple:
        return _each
    return _untagged if name == UNTAGGED else _nested


def _parts(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    return typing.get_args(hint) if origin in {typing.Union, types.UnionType, tuple} else (hint,)


def _decimal(value: int | None) -> str | None:
    return None if value is None else str(value)


def _nested(value: msgspec.Struct | None) -> dict[str, Any] | None:
    return None if value is None else fields_of(value)


def _untagged(value: msgspec.Struct) -> dict[str, Any]:
    found = fields_of(value)
    del found["type"]
    return found


def _each(values: tuple[msgspec.Struct, ...]) -> list[dict[str, Any]]:
    return [fields_of(value) for value in values]
