"""A proposal: programs by package, each with what it would be authorized as, and what is not proposed, and why. Pure.

It is TOML, to be read and edited; nothing in it authorizes anything before somebody signs it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import (
    AbsolutePath,
    AccountId,
    Argument,
    Label,
    ScopeName,
    Sha256,
    Text,
    Time,
)
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason

FORMAT: Final = 1
LIMIT: Final = 16 * 1024 * 1024
NO_PACKAGE: Final = "-"
"""The name of the group of what belongs to no package."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Script(_Part, frozen=True, kw_only=True):
    """A script that a program is given, by digest."""

    path: AbsolutePath
    sha256: Sha256


class Program(_Part, frozen=True, kw_only=True):
    """A program as it would be authorized. `seen`: execs that were observed; 0: it is only in its package."""

    path: AbsolutePath
    sha256: Sha256
    seen: Annotated[int, Meta(ge=0)] = 0
    uid: AccountId | None = None
    argv: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=1024)] | None = None
    script: tuple[Script, ...] = ()

    @property
    def key(self) -> tuple[str, tuple[str, ...] | None, int | None]:
        """What makes it the same program in another proposal, whatever its content is there."""
        return self.path, self.argv, self.uid

    @property
    def content(self) -> tuple[str, tuple[Script, ...]]:
        """What may have changed of it."""
        return self.sha256, self.script


class Package(_Part, frozen=True, kw_only=True):
    """The programs of a package; `name` `-`: of none."""

    name: Label
    version: Label | None = None
    program: tuple[Program, ...] = ()


class LeftOut(_Part, frozen=True, kw_only=True):
    """Something that was executed and is not proposed, and why not."""

    path: Text
    why: Text
    seen: int = 0
    argv: tuple[str, ...] | None = None


class Proposal(_Part, frozen=True, kw_only=True):
    """A whole proposal, made on a host at a time."""

    format: Literal[1]
    scope: ScopeName
    host: Label
    proposed: Time
    package: tuple[Package, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def programs(self) -> Iterator[tuple[Package, Program]]:
        """Every program with its package."""
        for package in self.package:
            for program in package.program:
                yield package, program


class Change(_Part, frozen=True, kw_only=True):
    """What is different in a later proposal. `was` and `now` are packages' versions; "": none."""

    kind: Literal["added", "changed", "removed"]
    package: str
    was: str
    now: str
    program: Program


def parse(content: bytes, where: str) -> Proposal:
    """The proposal in a file's bytes.

    Raises:
        UsageError: it is none.
    """
    try:
        table: dict[str, Any] = tomllib.loads(content.decode())
        found = msgspec.convert(table, Proposal)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise UsageError(
            Reason.PROPOSAL_INVALID,
            f"{where} is no proposal: {error}",
            "Use a file that egs baseline propose wrote; what is not to be authorized is taken out of it whole.",
        ) from error
    keys = [program.key for _, program in found.programs()]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(
            Reason.PROPOSAL_INVALID,
            f"{where} has {twice[0]} twice, for the same user and arguments",
            "Take one out.",
        )
    return found


def render(proposal: Proposal) -> str:
    """The proposal as TOML, with a word for whoever reviews it."""
    count = sum(1 for _ in proposal.programs())
    lines = [
        f"# {count} programs of scope {proposal.scope}, of {len(proposal.package)} packages; {len(proposal.left_out)} are left out.",
        "# Nothing here is authorized before somebody signs it: take out what is not wanted, then",
        "#   egs baseline issue THIS.toml --key N.key --out DIR",
        f"format = {proposal.format}",
        f"scope = {_text(proposal.scope)}",
        f"host = {_text(proposal.host)}",
        f"proposed = {_text(proposal.proposed)}",
    ]
    for package in proposal.package:
        lines += ["", "[[package]]", f"name = {_text(package.name)}"]
        if package.version is not None:
            lines.append(f"version = {_text(package.version)}")
        for program in package.program:
            lines += ["", "[[package.program]]", *_fields(program)]
            for script in program.script:
                lines += ["", "[[package.program.script]]", *_fields(script)]
    for item in proposal.left_out:
        lines += ["", "[[left_out]]", *_fields(item)]
    return "\n".join([*lines, ""])


def difference(before: Proposal, after: Proposal) -> tuple[Change, ...]:
    """What a later proposal adds, changes and removes, in the order of its packages."""
    old = {program.key: (package, program) for package, program in before.programs()}
    new = {program.key: (package, program) for package, program in after.programs()}
    found = []
    for key, (package, program) in new.items():
        if key not in old:
            found.append(_change("added", None, package, program))
        elif old[key][1].content != program.content:
            found.append(_change("changed", old[key][0], package, program))
    found += [
        _change("removed", package, None, program)
        for key, (package, program) in old.items()
        if key not in new
    ]
    return tuple(sorted(found, key=lambda change: (change.package, change.program.path, change.kind)))


def only(proposal: Proposal, programs: Iterable[Program]) -> Proposal:
    """The same proposal, with these programs alone."""
    wanted = {program.key for program in programs}
    packages = (
        msgspec.structs.replace(
            package, program=tuple(program for program in package.program if program.key in wanted)
        )
        for package in proposal.package
    )
    return msgspec.structs.replace(
        proposal, package=tuple(package for package in packages if package.program)
    )


def _change(
    kind: Literal["added", "changed", "removed"], was: Package | None, now: Package | None, program: Program
) -> Change:
    named = now or was
    return Change(
        kind=kind,
        package=NO_PACKAGE if named is None else named.name,
        was="" if was is None else was.version or "",
        now="" if now is None else now.version or "",
        program=program,
    )


def _fields(part: _Part) -> list[str]:
    fields = ((name, getattr(part, name)) for name in part.__struct_fields__ if name != "script")
    return [f"{name} = {_value(value)}" for name, value in fields if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    return "[" + ", ".join(_text(item) for item in value) + "]"


def _text(text: str) -> str:
    """A JSON string is a TOML basic string, but for DEL and what is no character."""
    safe = text.encode(errors="replace").decode()
    return json.dumps(safe, ensure_ascii=False).replace("\x7f", "\\u007f")
