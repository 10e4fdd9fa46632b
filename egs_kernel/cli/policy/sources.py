"""Sets as commands get them: a folder, a signed file, or the active one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.policy.manifest import PAYLOAD_TYPE, SET_LIMIT, Manifest, parse_manifest
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.source import parse_source

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.policy.source import Case
    from egs_kernel.sslib import Envelope

_MOST_FILES: Final = 2000


@dataclass(frozen=True)
class Given:
    """A set. `tests` None: of a signed file, which has none; `envelope` None: of a folder, which is not signed."""

    manifest: Manifest
    tests: tuple[Case, ...] | None
    envelope: Envelope | None

    @property
    def parsed(self) -> PolicySet:
        """Ready to be asked.

        Raises:
            UsageError: POLICY_INVALID, with file, line and column.
        """
        return PolicySet.of(self.manifest)


def read_set(path: Path | None) -> Given:
    """The set at `path`; None: the active one.

    Raises:
        EgsError: there is none, or it is none.
    """
    if path is None:
        return _signed(_active())
    return _folder(path) if path.is_dir() else _signed(path)


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file, one more than allowed at most.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        reason = Reason.NOT_FOUND if isinstance(error, FileNotFoundError) else Reason.USAGE
        raise UsageError(reason, f"cannot read {path}: {error.strerror}", "Check the path.") from error


def _active() -> Path:
    path = Paths.from_environment().policy_set
    if not path.exists():
        raise UsageError(
            Reason.NOT_FOUND, "no policy set is active", "Name one, or: egs policy activate FILE"
        )
    return path


def _signed(path: Path) -> Given:
    envelope = parse_envelope(read_bytes(path, SET_LIMIT), PAYLOAD_TYPE, SET_LIMIT)
    return Given(parse_manifest(envelope.payload), None, envelope)


def _folder(folder: Path) -> Given:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if len(paths) > _MOST_FILES:
        raise UsageError(
            Reason.USAGE, f"{folder} has {len(paths)} files", "Name the folder of one policy set."
        )
    files = {path.relative_to(folder).as_posix(): read_bytes(path, SET_LIMIT) for path in paths}
    source = parse_source(files)
    return Given(source.manifest, source.tests, None)
