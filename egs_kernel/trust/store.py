"""The trust store: a folder that says which keys may sign for which scopes.

One file a key, `KEYID.toml`, and `thresholds.toml`. A file is written whole or not at all, so no
crash leaves a key half trusted. Anything else in the folder is refused, because a file that is
silently ignored is a revocation that silently does nothing.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import Label, Sha256, Time, format_time, parse_time
from egs_kernel.durable import sync_folder
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.trust.keys import KEY_LIMIT, load_public, parts_of, public_pem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from egs_kernel.sslib import Key

ANY_SCOPE: Final = "*"
THRESHOLDS: Final = "thresholds.toml"
_SCOPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_MAX_KEYS = 1024
_NEXT = "Correct or remove it; egs trust writes these files."


class Role(Enum):
    """What a key is trusted for."""

    ISSUER = "issuer"  # signs execution authorizations
    MAINTENANCE = "maintenance"  # signs what changes the protection itself
    REVOKER = "revoker"  # signs what is taken back
    POLICY = "policy"  # signs policy sets
    APPROVER = "approver"  # agrees to what somebody asks of the authority
    HOST = "host"  # says who asks on the host that has it


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public_key: str
    roles: Annotated[tuple[Role, ...], Meta(min_length=1)]
    scopes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    name: Label | None = None
    not_before: Time | None = None
    not_after: Time | None = None
    revoked: Time | None = None
    replaces: Sha256 | None = None


class _ThresholdFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    thresholds: dict[str, Annotated[int, Meta(ge=1, le=16)]]


@dataclass(frozen=True, kw_only=True)
class TrustedKey:
    """A public key, what it may sign, and when. Valid from `not_before` on, until before `not_after`.

    `replaces` is the id of the key whose holder has it now; of both, only one counts for a threshold.
    """

    key: Key
    roles: frozenset[Role]
    scopes: frozenset[str]
    name: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    revoked: datetime | None = None
    replaces: str | None = None

    @property
    def keyid(self) -> str:
        """The key's id: SHA-256 (hex) of its canonical form, as securesystemslib computes it."""
        return str(self.key.keyid)

    def covers(self, role: Role, scope: str) -> bool:
        """Whether it may sign in this role for this scope."""
        return role in self.roles and (scope in self.scopes or ANY_SCOPE in self.scopes)

    def problem(self, now: datetime) -> str | None:
        """Why it is not valid now, in words; None when it is. A revoked key is never valid again."""
        if self.revoked is not None:
            return f"revoked at {format_time(self.revoked)}"
        if self.not_before is not None and now < self.not_before:
            return f"not valid before {format_time(self.not_before)}"
        if self.not_after is not None and now >= self.not_after:
            return f"not valid since {format_time(self.not_after)}"
        return None


@dataclass(frozen=True)
class TrustStore:
    """The trusted keys by key id, and how many of them must sign for a scope."""

    keys: Mapping[str, TrustedKey] = field(default_factory=lambda: MappingProxyType({}))
    thresholds: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def threshold(self, scope: str) -> int:
        """How many keys must sign for `scope`: its own number, else that of `*`, else 1."""
        return self.thresholds.get(scope, self.thresholds.get(ANY_SCOPE, 1))

    def holders(self, keys: Iterable[TrustedKey]) -> int:
        """How many different holders these keys have: a key and those that it replaces have one."""
        return len({self._first(key.keyid) for key in keys})

    def _first(self, keyid: str) -> str:
        """The key that this one goes back to, by however many replacements."""
        seen = {keyid}
        while (key := self.keys.get(keyid)) is not None and key.replaces is not None:
            keyid = key.replaces
            if keyid in seen:
                return min(seen)  # a circle: one holder, all the same
            seen.add(keyid)
        return keyid

    @classmethod
    def load(cls, folder: Path) -> TrustStore:
        """Read a trust folder.

        Raises:
            UsageError: it is missing, others could have changed it, or a file in it is not understood.
        """
        require_private_folder(folder)
        keys: dict[str, TrustedKey] = {}
        thresholds: dict[str, int] = {}
        for path in _entries(folder):
            if path.name == THRESHOLDS:
                thresholds = _read_thresholds(path)
            else:
                entry = _read_key(path)
                keys[entry.keyid] = entry
        _require_separate(folder, keys)
        return cls(MappingProxyType(keys), MappingProxyType(thresholds))


def add(folder: Path, entry: TrustedKey) -> Path:
    """Trust a key. The folder is created when it is missing.

    Raises:
        UsageError: the key is already there, or the folder is unsafe.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if entry.keyid in TrustStore.load(folder).keys:
        raise UsageError(
            Reason.USAGE,
            f"the key {entry.keyid} is already trusted",
            f"To change it, first run: egs trust remove {entry.keyid}",
        )
    return put(folder, entry)


def put(folder: Path, entry: TrustedKey) -> Path:
    """Write a key, new or changed.

    Raises:
        UsageError: the folder is unsafe, or the key is part of another one that is trusted.
    """
    _require_separate(folder, {**TrustStore.load(folder).keys, entry.keyid: entry})
    path = folder / f"{entry.keyid}.toml"
    _replace(path, _format_key(entry))
    return path


def remove(folder: Path, keyid: str) -> None:
    """Trust a key no longer.

    Raises:
        UsageError: NOT_FOUND, or the folder is unsafe.
    """
    require_private_folder(folder)
    try:
        _key_path(folder, keyid).unlink()
    except FileNotFoundError as error:
        raise _unknown_key(keyid) from error
    sync_folder(folder)


def revoke(folder: Path, keyid: str, now: datetime) -> None:
    """Keep a key on file as revoked: what it signed is refused, and says why.

    Raises:
        UsageError: NOT_FOUND, or the folder is unsafe.
    """
    entry = TrustStore.load(folder).keys.get(keyid)
    if entry is None:
        raise _unknown_key(keyid)
    if entry.revoked is None:
        put(folder, replace(entry, revoked=now))


def set_threshold(folder: Path, scope: str, count: int) -> None:
    """Require `count` signatures for `scope` (`*`: for every scope without a number of its own).

    Raises:
        UsageError: no such scope name, no such number, or the folder is unsafe.
    """
    require_scope_name(scope)
    if not 1 <= count <= 16:  # noqa: PLR2004 - an envelope holds at most MAX_SIGNATURES
        raise UsageError(Reason.USAGE, f"{count} is no threshold", "Give a number from 1 to 16.")
    thresholds = {**TrustStore.load(folder).thresholds, scope: count}
    lines = [f"{json.dumps(name)} = {number}" for name, number in sorted(thresholds.items())]
    _replace(folder / THRESHOLDS, "\n".join(["[thresholds]", *lines, ""]))


def require_scope_name(scope: str) -> None:
    """Check a scope name, or `*`.

    Raises:
        UsageError: it is neither.
    """
    if scope != ANY_SCOPE and not _SCOPE.fullmatch(scope):
        raise UsageError(
            Reason.USAGE, f"{scope!r} is no scope name", "Use 1 to 32 of a-z 0-9 . _ -, or * for every scope."
        )


def _entries(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if len(paths) > _MAX_KEYS:
        raise UsageError(
            Reason.CONFIG_INVALID, f"{folder} holds more than {_MAX_KEYS} files", "Remove old keys."
        )
    for path in paths:
        if path.suffix != ".toml":
            raise UsageError(
                Reason.CONFIG_INVALID, f"{path} does not belong into a trust folder", f"Remove {path}."
            )
    return paths


def _require_separate(folder: Path, keys: Mapping[str, TrustedKey]) -> None:
    """A half of a hybrid key that is trusted by itself would let its holder sign twice."""
    owners: dict[bytes, str] = {}
    for keyid, entry in keys.items():
        for part in parts_of(entry.key):
            if part in owners:
                raise UsageError(
                    Reason.CONFIG_INVALID,
                    f"{folder}: the keys {owners[part][:16]} and {keyid[:16]} have a part in common",
                    "Trust one of them; a hybrid key's parts are used nowhere else.",
                )
            owners[part] = keyid


_T = TypeVar("_T")


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        content = read_private_file(path, KEY_LIMIT)
        table: dict[str, Any] = tomllib.loads(content.decode())
        return msgspec.convert(table, kind)
    except OSError as error:
        raise UsageError(Reason.CONFIG_INVALID, f"cannot read {path}: {error.strerror}", _NEXT) from error
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise UsageError(Reason.CONFIG_INVALID, f"{path}: {error}", _NEXT) from error


def _read_thresholds(path: Path) -> dict[str, int]:
    thresholds = _read(path, _ThresholdFile).thresholds
    _in_file(path, lambda: _require_scope_names(thresholds))
    return thresholds


def _read_key(path: Path) -> TrustedKey:
    file = _read(path, _KeyFile)
    entry = _in_file(path, lambda: _entry(file, str(path)))
    if path.name != f"{entry.keyid}.toml":
        raise UsageError(
            Reason.CONFIG_INVALID,
            f"{path} holds the key {entry.keyid}: its name must be {entry.keyid}.toml",
            _NEXT,
        )
    return entry


def _entry(file: _KeyFile, where: str) -> TrustedKey:
    _require_scope_names(file.scopes)
    return TrustedKey(
        key=load_public(file.public_key.encode(), where),
        roles=frozenset(file.roles),
        scopes=frozenset(file.scopes),
        name=file.name,
        not_before=_optional_time(file.not_before),
        not_after=_optional_time(file.not_after),
        revoked=_optional_time(file.revoked),
        replaces=file.replaces,
    )


def _require_scope_names(scopes: Iterable[str]) -> None:
    for scope in scopes:
        require_scope_name(scope)


def _in_file(path: Path, parse: Callable[[], _T]) -> _T:
    """What is wrong usage on a command line is an invalid file here."""
    try:
        return parse()
    except (UsageError, ValueError) as error:
        raise UsageError(Reason.CONFIG_INVALID, f"{path}: {error}", _NEXT) from error


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def _key_path(folder: Path, keyid: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", keyid):
        raise _unknown_key(keyid)
    return folder / f"{keyid}.toml"


def _unknown_key(keyid: str) -> UsageError:
    return UsageError(Reason.NOT_FOUND, f"no trusted key has the id {keyid!r}", "Run: egs trust list")


def _format_key(entry: TrustedKey) -> str:
    """TOML; JSON strings of printable text are TOML basic strings."""

    def strings(values: list[str]) -> str:
        return "[" + ", ".join(json.dumps(value) for value in sorted(values)) + "]"

    lines = [f"name = {json.dumps(entry.name, ensure_ascii=False)}"] if entry.name else []
    lines += [
        f"roles = {strings([role.value for role in entry.roles])}",
        f"scopes = {strings(list(entry.scopes))}",
    ]
    times = {"not_before": entry.not_before, "not_after": entry.not_after, "revoked": entry.revoked}
    lines += [f'replaces = "{entry.replaces}"'] if entry.replaces else []
    lines += [f'{name} = "{format_time(time)}"' for name, time in times.items() if time is not None]
    lines += [f'public_key = """\n{public_pem(entry.key)}"""', ""]
    return "\n".join(lines)


def _replace(path: Path, content: str) -> None:
    """Write a file whole or not at all; loading ignores names that begin with a dot."""
    require_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
