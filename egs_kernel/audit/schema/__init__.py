"""The published JSON Schema of the record's entries, generated from the types in `audit/entries.py`.

Run `python -m egs_kernel.audit.schema` to write it again after a change of the types; a test compares. It describes what
docs/record.md says in words: numbers of 64 bits as decimal strings, names, text that is no UTF-8 as base64, no field left out.
"""

from __future__ import annotations

import json
import types
import typing
from enum import Enum, IntEnum
from importlib.resources import files
from typing import Any, Final, Literal

import msgspec

from egs_kernel.audit.entries import ENTRY_CLASSES
from egs_kernel.audit.shapes import FORMAT_VERSION, WIDE

NAME: Final = "entry.schema.json"
_NAMED: Final = frozenset({"verdict", "reason", "grant_kind"})
"""Numbers that are written as names; new names may come without a new version."""
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Final = {"$ref": "#/$defs/text"}
_NUMBER: Final = {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,19})$"}
_WORD: Final = {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}
_BASE64: Final = {
    "type": "object",
    "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["base64"],
    "additionalProperties": False,
}
_ENVELOPE: Final = {
    "v": {"const": FORMAT_VERSION},
    "seq": {"type": "integer", "minimum": 0},
    "time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"},
}


def published() -> dict[str, Any]:
    """The published schema, as it is in the package."""
    content: dict[str, Any] = json.loads(files(__name__).joinpath(NAME).read_bytes())
    return content


def generate() -> dict[str, Any]:
    """The schema, from the types."""
    definitions = _Definitions()
    entries = [definitions.entry(kind) for kind in ENTRY_CLASSES]
    return {
        "$schema": _DIALECT,
        "title": f"An entry of the record, version {FORMAT_VERSION}",
        "oneOf": entries,
        "$defs": {
            "text": {"anyOf": [{"type": "string"}, _BASE64]},
            **dict(sorted(definitions.found.items())),
        },
    }


class _Definitions:
    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def entry(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        tag = kind.__struct_config__.tag
        return self._struct(kind, _ENVELOPE | {"type": {"const": tag}})

    def _struct(self, kind: type[msgspec.Struct], more: dict[str, Any]) -> dict[str, Any]:
        if kind.__name__ not in self.found:
            hints = typing.get_type_hints(kind)
            fields = {name: self._value(hints[name], name) for name in kind.__struct_fields__}
            self.found[kind.__name__] = {
                "type": "object",
                "properties": more | fields,
                "required": sorted(more | fields),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}

    def _value(self, hint: Any, name: str = "") -> dict[str, Any]:
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if name in _NAMED:
            return _WORD
        if origin is Literal:
            return {"enum": list(parts)}
        if origin in {typing.Union, types.UnionType}:
            return {"anyOf": [self._value(part, name) for part in parts]}
        if origin is tuple and parts[-1] is Ellipsis:
            return {"type": "array", "items": self._value(parts[0])}
        if origin is tuple:
            items = [self._value(part) for part in parts]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        return self._scalar(hint, name)

    def _scalar(self, hint: Any, name: str) -> dict[str, Any]:
        plain = {str: _TEXT, bool: {"type": "boolean"}, type(None): {"type": "null"}}
        if hint in plain:
            return plain[hint]
        if hint is int:
            return _NUMBER if name in WIDE else {"type": "integer"}
        if issubclass(hint, Enum) and not issubclass(hint, IntEnum):
            return {"enum": [member.value for member in hint]}
        if issubclass(hint, msgspec.Struct):
            return self._struct(hint, {})
        raise TypeError(f"{name}: {hint} has no form in the record")
