"""Locks: one process at a time, and nobody who may only read can take one."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

import pytest

from egs_kernel.errors import EgsError
from egs_kernel.locks import locked, take
from egs_kernel.model import Reason
from tests.recording import open_record

if TYPE_CHECKING:
    from pathlib import Path

TAKEN = EgsError(Reason.DAEMON_RUNNING, "there is one", "")


def test_the_second_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, TAKEN), pytest.raises(EgsError, match="there is one"):
        take(path, TAKEN)
    os.close(take(path, TAKEN))


def test_nobody_else_can_open_it_also_where_it_was_open_to_others(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch(0o644)
    for path in (new, old):
        with locked(path, TAKEN):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        take(tmp_path / "lock", TAKEN)


def test_who_reads_the_record_keeps_nobody_from_writing_it(tmp_path: Path) -> None:
    """The group that may read it can flock its folder."""
    folder = tmp_path / "record"
    open_record(folder).close()
    reader = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(reader, fcntl.LOCK_EX | fcntl.LOCK_NB)
        open_record(folder).close()
    finally:
        os.close(reader)
    with open_record(folder), pytest.raises(EgsError) as caught:
        open_record(folder)
    assert caught.value.reason is Reason.DAEMON_RUNNING
