"""The published JSON Schema of the record's entries: it is the types', takes what we write, and nothing with other fields."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from egs_kernel.audit.entries import ENTRY_TYPES
from egs_kernel.audit.schema import generate, published
from tests.unit.proving import lines
from tests.unit.test_record_lines import ENTRIES, line_of

SCHEMA = jsonschema.Draft202012Validator(published())


def test_the_published_schema_is_the_types_schema() -> None:
    assert published() == generate(), "run: python -m egs_kernel.audit.schema"
    jsonschema.Draft202012Validator.check_schema(published())
    tags = {
        value["properties"]["type"]["const"]
        for value in published()["$defs"].values()
        if "v" in value.get("properties", {})
    }
    assert tags == set(ENTRY_TYPES)


@settings(max_examples=100)
@given(ENTRIES)
def test_it_takes_what_we_write(entry: Any) -> None:
    SCHEMA.validate(json.loads(line_of(entry)))


@pytest.mark.parametrize("line", lines())
def test_it_refuses_other_fields_and_missing_ones(line: bytes) -> None:
    entry = json.loads(line)
    SCHEMA.validate(entry)
    for name in entry:
        assert not SCHEMA.is_valid({key: value for key, value in entry.items() if key != name}), name
    assert not SCHEMA.is_valid(entry | {"more": 1})
