"""Files that commands read and write at the user's own word: artifacts, programs, results."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from egs_kernel.artifact.envelope import MAX_ARTIFACT
from egs_kernel.artifact.interpreters import program_kind
from egs_kernel.errors import UsageError
from egs_kernel.measure import digest_of
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.model import ProgramKind


@dataclass(frozen=True)
class Program:
    """An executable, script or library: its path without symbolic links, its SHA-256 (hex), its kind."""

    path: Path
    digest: str
    kind: ProgramKind


def read_artifact(path: Path) -> bytes:
    """The bytes of an artifact file, one more than allowed at most.

    Raises:
        UsageError: it cannot be read.
    """
    return read_file(path, MAX_ARTIFACT)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file, one more than `limit` at most.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def inspect_program(path: Path) -> Program:
    """Hash and classify a file through one descriptor.

    Raises:
        UsageError: it cannot be read, or is no regular file.
        Refused: MEASUREMENT_RACED: it changed while it was hashed.
    """
    try:
        resolved = path.resolve(strict=True)
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
        with os.fdopen(descriptor, "rb"):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(Reason.USAGE, f"{path} is not a regular file", "Name a program file.")
            digest = digest_of(descriptor, str(path))
            kind = program_kind(str(resolved), partial(os.pread, descriptor))
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    return Program(resolved, digest, kind)


def read_head(path: Path, length: int) -> bytes:
    """The first bytes of a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(temporary, content, mode)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            Reason.USAGE,
            f"cannot write {path}: {error.strerror}",
            "Name a file in a folder that you can write.",
        ) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _unreadable(path: Path, error: Exception) -> UsageError:
    problem = error.strerror if isinstance(error, OSError) else "a loop of symbolic links"
    missing = isinstance(error, FileNotFoundError)
    return UsageError(
        Reason.NOT_FOUND if missing else Reason.USAGE,
        f"cannot read {path}: {problem}",
        "Check the path and its permissions.",
    )
