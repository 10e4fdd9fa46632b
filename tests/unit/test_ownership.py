"""Paths that others could have changed are refused, whatever they lead to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egs_kernel.errors import ExitCode, UnsafePath
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in a safe folder."""
    path = tmp_path / "folder" / "file"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def refused(path: Path, limit: int = 100) -> UnsafePath:
    with pytest.raises(UnsafePath) as caught:
        read_private_file(path, limit)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.PATH_UNSAFE, ExitCode.USAGE)
    assert caught.value.next_step
    return caught.value


def test_a_safe_file_is_read(file: Path) -> None:
    assert read_private_file(file, 7) == b"content"


def test_the_limit_holds(file: Path) -> None:
    assert "larger than 6" in refused(file, 6).message


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o666])
def test_a_file_that_others_may_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert "can be written" in refused(file).message


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_folder_that_others_may_write_sticky_or_not(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    assert str(file.parent) in refused(file).message


def test_a_folder_above_may_be_writable_when_it_is_sticky(file: Path) -> None:
    file.parent.parent.chmod(0o1777)
    assert read_private_file(file, 100) == b"content"
    file.parent.parent.chmod(0o777)
    refused(file)


@needs_root
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_belongs_to_another_user(file: Path, level: int) -> None:
    path = (file, file.parent, file.parent.parent)[level]
    os.chown(path, 1234, 1234)
    assert "user 1234" in refused(file).message


@needs_root
def test_the_group_may_be_any_while_it_cannot_write(file: Path) -> None:
    os.chown(file, 0, 1234)
    assert read_private_file(file, 100) == b"content"


def test_a_link_to_a_safe_file(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert "symbolic link" in refused(link).message


def test_a_dangling_link(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file.with_name("none"))
    refused(link)


def test_a_link_on_the_way(file: Path) -> None:
    link = file.parent.with_name("link")
    link.symlink_to(file.parent)
    assert "symbolic link" in refused(link / "file").message


def test_what_is_no_regular_file(file: Path) -> None:
    pipe = file.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    assert "not a regular file" in refused(pipe).message
    refused(file.parent)


def test_a_missing_file_is_an_os_error_for_the_caller_to_word(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_private_file(file.with_name("none"), 100)


def test_a_missing_folder_and_a_file_in_its_place(file: Path) -> None:
    with pytest.raises(UnsafePath, match="cannot be inspected"):
        require_private_folder(file.parent / "none")
    with pytest.raises(UnsafePath, match="not a folder"):
        require_private_folder(file)


def test_a_relative_path_is_checked_from_where_we_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert read_private_file(Path("file"), 100) == b"content"
    file.parent.chmod(0o777)
    refused(Path("file"))
