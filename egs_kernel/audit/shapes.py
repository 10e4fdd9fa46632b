"""What an entry looks like in the record, worked out once for each type: a struct with its JSON fields in their canonical order.

`lines.encode` is what the daemon does most, and reading an entry back is what `egs audit verify` does most. msgspec writes and
reads a struct's fields in the order in which it has them; so a type's *shape* has them sorted, as RFC 8785 wants, each of the
type that JSON shows. No second pass over the bytes is needed. Pure.
"""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from egs_kernel.audit.entries import Entry
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
FORMAT_VERSION: Final = 2
"""Every entry's `v`."""
UNTAGGED: Final = "event"
"""The field whose type the entry's own type tells."""
SAFE_INTEGER: Final = 2**53 - 1
"""RFC 8785 has no integers beyond it, on either side of zero."""

_UNKNOWN: Final = SAFE_INTEGER + 1
"""In place of numbers that nobody asks one by one."""

_Safe = Annotated[int, msgspec.Meta(ge=-SAFE_INTEGER, le=SAFE_INTEGER)]


class Shape(NamedTuple):
    """How a type stands in the record.

    `wire`: a struct with the JSON fields, sorted. `fill` makes one: of an entry, its number and its time; of a struct
    inside an entry, of that alone. Text and numbers are taken as they are: the encoder refuses text that is not UTF-8, and
    numbers beyond 2^53 are for who encodes to find. `numbers`: those of an entry, one or-ed with the other: below 2^53, and not
    negative, all of them are safe. Otherwise one may not be.
    """

    wire: type[msgspec.Struct]
    fill: Callable[..., msgspec.Struct]
    numbers: Callable[[Any], int]


class _Field(NamedTuple):
    """A JSON field: its type, the expression that gives its value, and the one of the numbers in it."""

    hint: Any
    value: str
    numbers: str = "0"


@functools.cache
def shape_of(kind: type[msgspec.Struct]) -> Shape:
    """The shape of a type of entry, or of a struct inside one."""
    names: dict[str, Any] = {}
    fields = {name: _field(name, hint, names) for name, hint in typing.get_type_hints(kind).items()}
    parameters = "of"
    if issubclass(kind, Entry):
        parameters = "of, seq, time"
        fields["seq"] = _Field(_Safe, "seq")
        fields["time"] = _Field(str, "time")
        tag = str(kind.__struct_config__.tag)
        fields["type"] = _Field(Literal[tag], repr(tag))
        fields["v"] = _Field(int, str(FORMAT_VERSION))
    ordered = sorted(fields.items())
    names["wire"] = wire = msgspec.defstruct(
        f"{kind.__name__}Wire",
        [(name, field.hint) for name, field in ordered],
        forbid_unknown_fields=True,
        gc=False,
    )
    values = ", ".join(field.value for _name, field in ordered)
    # One expression with every field in it, as dataclasses make theirs: a loop over the fields takes twice as long.
    fill = eval(f"lambda {parameters}: wire({values})", names)  # noqa: S307 - out of our own types' field names
    found = " | ".join(field.numbers for _name, field in ordered if field.numbers != "0") or "0"
    numbers = eval(f"lambda of: {found}", names)  # noqa: S307 - the same
    return Shape(wire, fill, numbers)


def _field(name: str, hint: Any, names: dict[str, Any]) -> _Field:
    """How a field stands in the record. What its expression needs is put into `names`."""
    own = f"of.{name}"
    if name in NAMED:
        names[name] = _names(NAMED[name]).__getitem__
        return _Field(str, f"{name}({own})")
    if name in WIDE and int in (hint, *typing.get_args(hint)):
        return _optional(hint, str, "str", own)
    structs = [part for part in _parts(hint) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    if not structs:
        return _Field(_safe(hint), own, _numbers(hint, own))
    shape = shape_of(structs[0])
    names[f"fill_{name}"], names[f"numbers_{name}"] = shape.fill, shape.numbers
    if typing.get_origin(hint) is tuple:
        each = f"[fill_{name}(each) for each in {own}]"
        return _Field(list[shape.wire], each, str(_UNKNOWN))  # type: ignore[name-defined]  # made above
    numbers = f"numbers_{name}({own})"
    if types.NoneType in _parts(hint):
        numbers = f"(0 if {own} is None else {numbers})"
    return _optional(hint, shape.wire, f"fill_{name}", own)._replace(numbers=numbers)


def _numbers(hint: Any, value: str) -> str:
    """The expression of the numbers in a field that is no struct."""
    inside = set(_parts(hint)) - {types.NoneType, Ellipsis}
    if inside == {int}:
        return f"({value} or 0)" if typing.get_origin(hint) is not tuple else str(_UNKNOWN)
    return "0" if all(map(_is_text, inside)) else str(_UNKNOWN)


def _is_text(hint: Any) -> bool:
    """Whether a type is certain to be no number in JSON."""
    if hint in {str, bool}:
        return True
    values = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if isinstance(hint, type) and issubclass(hint, Enum):
        values = tuple(item.value for item in hint)
    return bool(values) and all(type(value) is str for value in values)


def _optional(hint: Any, wire: Any, change: str, value: str) -> _Field:
    if types.NoneType in _parts(hint):
        return _Field(wire | None, f"None if {value} is None else {change}({value})")
    return _Field(wire, f"{change}({value})")


def _names(kind: type[IntEnum]) -> list[str]:
    """The names of numbers, in lower case: indexing a list is faster than asking an enum's member."""
    found = [""] * (max(kind) + 1)
    for item in kind:
        found[item] = item.name.lower()
    return found


def _parts(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    return typing.get_args(hint) if origin in {typing.Union, types.UnionType, tuple} else (hint,)


def _safe(hint: Any) -> Any:
    """The same type, whose integers are those that RFC 8785 has."""
    if hint is int:
        return _Safe
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return functools.reduce(operator.or_, map(_safe, parts))
    if origin is tuple:
        return tuple.__class_getitem__(tuple(_tuple_parts(parts)))
    return hint


def _tuple_parts(parts: tuple[Any, ...]) -> Iterator[Any]:
    for part in parts:
        yield part if part is Ellipsis else _safe(part)
