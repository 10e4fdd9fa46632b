"""The host's own key: made once, for one host id, read by nobody else; artifacts are bound by it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from egs_kernel.artifact.statement import Identity
from egs_kernel.checks.identity import check_host
from egs_kernel.cli.hostid import describe_host, host_line
from egs_kernel.errors import EgsError, Refused
from egs_kernel.hostkey import open_host_key, read_host_key
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from tests.unit.issuing import host

if TYPE_CHECKING:
    from pathlib import Path

ID, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "host-keys"


def test_it_is_made_once_and_stays(folder: Path) -> None:
    assert read_host_key(folder, ID) is None
    made = open_host_key(folder, ID)
    assert len(made) == 64
    assert open_host_key(folder, ID) == read_host_key(folder, ID) == made
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_disk_that_another_machine_got_has_another_key_there(folder: Path) -> None:
    assert open_host_key(folder, ID) != open_host_key(folder, OTHER)


def test_a_key_that_others_could_read_or_that_is_none_is_refused(folder: Path) -> None:
    open_host_key(folder, ID)
    (path,) = folder.iterdir()
    path.chmod(0o640)
    with pytest.raises(EgsError) as caught:
        open_host_key(folder, ID)
    assert caught.value.reason is Reason.PATH_UNSAFE
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EgsError) as caught:
        open_host_key(folder, ID)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_where_it_cannot_be_made_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EgsError) as caught:
        open_host_key(tmp_path / "file" / "host-keys", ID)
    assert caught.value.next_step


@pytest.mark.parametrize(("named", "fits"), [(ID, True), ("k" * 64, True), (OTHER, False), ("k" * 16, False)])
def test_an_artifact_is_bound_to_a_host_by_its_id_or_by_its_key(named: str, fits: bool) -> None:  # noqa: FBT001 - a table
    facts = host(host_id=ID, host_key="k" * 64)
    if fits:
        check_host(Identity(hosts=(named,)), facts)
        return
    with pytest.raises(Refused) as caught:
        check_host(Identity(hosts=(named,)), facts)
    assert caught.value.reason is Reason.HOST_MISMATCH


def test_a_host_without_a_key_is_not_the_one_without_a_name() -> None:
    with pytest.raises(Refused):
        check_host(Identity(hosts=(OTHER,)), host(host_id=ID, host_key=""))


def test_doctor_tells_it_and_never_makes_it(tmp_path: Path) -> None:
    paths = Paths.under(os.fspath(tmp_path))
    found = describe_host(paths)
    assert found["id"] is not None
    assert "no key yet" in host_line(found)
    assert not paths.host_keys.exists()
    made = open_host_key(paths.host_keys, found["id"])
    assert made in host_line(describe_host(paths))
    (path,) = paths.host_keys.iterdir()
    path.chmod(0o644)
    assert "open to others" in host_line(describe_host(paths))
