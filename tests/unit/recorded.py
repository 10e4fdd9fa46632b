"""What tests of the record share: entries, a disk that a test looks at, a record of a known shape."""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit import record, segments
from egs_kernel.audit.check import Verified
from egs_kernel.audit.check import verify as verify_with
from egs_kernel.audit.checkpoint import CHECKPOINT
from egs_kernel.audit.entries import (
    DaemonStopped,
    Decision,
)
from egs_kernel.audit.files import Files
from egs_kernel.audit.layout import STATE, TILES, segment_path, segments_of
from egs_kernel.audit.reader import read
from egs_kernel.audit.record import Record
from egs_kernel.errors import RecordError
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.recording import log_keys, open_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NOON = 1_795_435_200_000_000_000  # 2026-11-23T12:00:00Z
TOMORROW = "2026-11-24T12:00:00Z"

SINCE = "2026-11-23T12:00:00Z"


def note(text: str) -> DaemonStopped:
    return DaemonStopped(cause=text)


def launch(artifact_id: str, until: str | None = TOMORROW) -> Decision:
    return Decision(
        verdict=Verdict.ALLOW,
        reason=Reason.AUTHORIZED,
        scope="s",
        policy_digest="",
        posture="",
        artifact_id=artifact_id,
        grant_kind=GrantKind.ARMED,
        use_until=until,
    )


def causes(folder: Path) -> list[str]:
    return [got.entry.cause for got in read(folder) if isinstance(got.entry, DaemonStopped)]


def make(folder: Path, *texts: str) -> None:
    with open_record(folder) as opened:
        for text in texts:
            opened.append([note(text)])


def verify(folder: Path) -> Verified:
    return verify_with(folder, log_keys(folder).listed.verifiers)


def journal(folder: Path) -> Path:
    """The last file of the journal."""
    return segment_path(folder, segments_of(folder)[-1])


def drop_anchors(folder: Path) -> None:
    """What a power loss may leave of a new record: nothing was published yet."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder / TILES, ignore_errors=True)


def torn_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("torn-*.bin"))]


class Hooked(Files):
    """The disk, with a step that a test looks at or lets fail."""

    def __init__(self, **hooks: Callable[..., None]) -> None:
        self._hooks = hooks

    def _call(self, name: str, *arguments: object) -> None:
        if name in self._hooks:
            self._hooks[name](*arguments)

    def write(self, descriptor: int, content: bytes) -> None:
        self._call("write", descriptor)
        super().write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        self._call("sync", descriptor)
        super().sync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._call("truncate", descriptor)
        super().truncate(descriptor, size)

    def sync_all(self, folder: Path) -> None:
        self._call("sync_all", folder)


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel refuses to grow files beyond `limit`: it writes what fits and then says no."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(opened: Record) -> RecordError:
    """Append until it is refused."""
    for _batch in range(1000):
        try:
            opened.append([note("x" * 1000)] * 3)
        except RecordError as error:
            return error
    raise AssertionError("it was never refused")


def trimmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make a record whose journal does not reach back to its beginning; its size."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(record, "TRIM_FILES", 1)
    with open_record(folder, in_background=False) as opened:
        for number in range(9):
            opened.append([note(f"{number}-{each}") for each in range(100)])
            opened.publish()
        assert segments_of(folder)[0] > 256
        return opened.size
