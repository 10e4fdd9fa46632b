"""`/etc/egs/witness.toml`: the witness's name, where it listens, and the logs that it cosigns."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.audit.notes import KeyType, VerifierKey, is_name
from egs_kernel.errors import NoteError, UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file
from egs_kernel.web import Address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LIMIT = 1024 * 1024


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A log that is cosigned: its origin, and the verifier keys that may sign for it."""

    origin: str
    keys: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    listen: str = "127.0.0.1:9733"
    log: tuple[LogConfig, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a witness was told. `logs`: the keys of each log, by origin."""

    name: str
    listen: Address
    logs: Mapping[str, tuple[VerifierKey, ...]]


def load_settings(path: Path) -> Settings:
    """Read and check the witness's configuration.

    Raises:
        UsageError: it is missing, unsafe, or wrong.
    """
    try:
        content = read_private_file(path, _LIMIT)
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from error
    return parse_settings(content, path)


def parse_settings(content: bytes, path: Path) -> Settings:
    """Parse TOML bytes; `path` is what to call them.

    Raises:
        UsageError: with what is wrong.
    """
    try:
        file = msgspec.convert(tomllib.loads(content.decode()), _File, strict=True)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, str(error)) from error
    if not is_name(file.name):
        raise _invalid(path, f"name: {file.name!r} has spaces or a plus, or is empty")
    logs: dict[str, tuple[VerifierKey, ...]] = {}
    for log in file.log:
        if not log.origin or not log.origin.isprintable() or log.origin in logs or not log.keys:
            raise _invalid(path, f"log {log.origin!r}: an origin, once, with at least one key")
        logs[log.origin] = tuple(_log_key(path, log.origin, key) for key in log.keys)
    return Settings(file.name, Address.parse(file.listen, f"{path}: listen"), logs)


def _log_key(path: Path, origin: str, text: str) -> VerifierKey:
    try:
        key = VerifierKey.parse(text)
    except NoteError as error:
        raise _invalid(path, f"log {origin!r}: {error.message}") from error
    if key.type is not KeyType.ED25519:
        raise _invalid(path, f"log {origin!r}: {text} is the key of a witness, not of a log")
    return key


def _invalid(path: Path, problem: str) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID, f"{path}: {problem}", "Correct it; docs/log.md has an example of witness.toml."
    )
