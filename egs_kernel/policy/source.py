"""The folder that people write: policy.toml, Cedar files, tests. Pure: its files' bytes in, a manifest and tests out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import Label, ScopeName
from egs_kernel.artifact.strict import misfit
from egs_kernel.errors import UsageError
from egs_kernel.policy.catalog import Catalog
from egs_kernel.policy.manifest import TYPE, FileName, Manifest, SetScope
from egs_kernel.policy.parse import invalid
from egs_kernel.policy.questions import Question
from egs_kernel.policy.vocabulary import SCHEMA

SETTINGS: Final = "policy.toml"
TESTS: Final = "tests/"
POLICIES: Final = ".cedar"

_T = TypeVar("_T")
_CATALOG: Final = Catalog.__struct_fields__


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """policy.toml without its catalog."""

    name: ScopeName
    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    scopes: Annotated[tuple[SetScope, ...], Meta(min_length=1, max_length=256)]
    description: Label | None = None


class _Test(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Label
    expect: Literal["permit", "deny"]
    question: dict[str, Any] = {}
    by: tuple[Label, ...] | None = None
    approvals: Annotated[int, Meta(ge=0, le=16)] | None = None


class _TestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    test: Annotated[tuple[_Test, ...], Meta(min_length=1)]
    question: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test: what is asked, and what the set must say.

    Attributes:
        name: what it shows.
        file: where it is from.
        question: what is asked.
        expect: the effect.
        by: the policies that decide, where the test says so.
        approvals: how many approvals would make it permitted, where the test says so.
    """

    name: str
    file: str
    question: Question
    expect: str
    by: tuple[str, ...] | None
    approvals: int | None


@dataclass(frozen=True)
class Source:
    """What a folder holds."""

    manifest: Manifest
    tests: tuple[Case, ...]


def parse_source(files: Mapping[str, bytes]) -> Source:
    """What the files of a folder say.

    Args:
        files: their content by their path in the folder, with slashes.

    Raises:
        UsageError: POLICY_INVALID, with the file, and line and column where TOML or Cedar is wrong.
    """
    texts: dict[str, str] = {}
    tests: list[Case] = []
    for path, content in sorted(files.items()):
        if path.startswith(TESTS) and path.endswith(".toml"):
            tests += _tests(path, content)
        elif path.endswith(POLICIES) and "/" not in path:
            texts[_name(path)] = _text(path, content)
        elif path != SETTINGS:
            raise invalid(f"{path} does not belong to a policy set: policy.toml, NAME.cedar, tests/NAME.toml")
    if SETTINGS not in files:
        raise invalid(f"there is no {SETTINGS}")
    if not texts:
        raise invalid("there is no policy: no file ends in .cedar")
    table = _toml(SETTINGS, files[SETTINGS])
    catalog = _convert(SETTINGS, {key: table.pop(key) for key in _CATALOG if key in table}, Catalog)
    head = _convert(SETTINGS, table, _Head)
    manifest = Manifest(
        type=TYPE,
        name=head.name,
        version=head.version,
        scopes=head.scopes,
        policies=texts,
        schema=SCHEMA,
        catalog=catalog,
        description=head.description,
    )
    return Source(manifest, tuple(tests))


def parse_question(name: str, content: bytes) -> Question:
    """The question in a TOML file.

    Raises:
        UsageError: POLICY_INVALID: no TOML, unknown fields, or values that cannot be.
    """
    return _convert(name, _toml(name, content), Question)


def _tests(path: str, content: bytes) -> list[Case]:
    file = _convert(path, _toml(path, content), _TestFile)
    return [
        Case(
            name=test.name,
            file=path,
            question=_convert(f"{path}: {test.name}", _merged(file.question, test.question), Question),
            expect=test.expect,
            by=None if test.by is None else tuple(sorted(test.by)),
            approvals=test.approvals,
        )
        for test in file.test
    ]


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A table with the values of another one in it, table by table."""
    merged = dict(table)
    for key, value in changes.items():
        present = merged.get(key)
        merged[key] = (
            _merged(present, value) if isinstance(present, dict) and isinstance(value, dict) else value
        )
    return merged


def _toml(path: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise invalid(f"{path}: {error}") from error


def _convert(path: str, table: dict[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise invalid(f"{path}: {misfit(error)}") from error


def _name(path: str) -> str:
    return _convert(path, path, FileName)  # type: ignore[arg-type] # an annotated str is a type to msgspec


def _text(path: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _no_text(path) from error


def _no_text(path: str) -> UsageError:
    return invalid(f"{path} is no UTF-8 text")
