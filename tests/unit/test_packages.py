"""Which package has a file, as far as policy asks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from egs_kernel.packages import Packages
from egs_kernel.policy.catalog import Catalog, Files
from egs_kernel.policy.sets import PolicySet
from tests.unit.test_policy_evaluate import policy_set, question


@pytest.fixture
def dpkg(tmp_path: Path) -> Path:
    (tmp_path / "info").mkdir()
    (tmp_path / "status").write_text("")
    (tmp_path / "info/git.list").write_text("/.\n/usr/bin\n/usr/bin/git\n")
    (tmp_path / "info/libc6:amd64.list").write_text("/lib/x86_64-linux-gnu/libc.so.6\n")
    (tmp_path / "info/other.list").write_text("/usr/bin/other\n")
    return tmp_path


def test_only_the_packages_that_are_asked_for(dpkg: Path) -> None:
    found = Packages(["git", "libc6", "none", "../status"], dpkg)
    assert found.of("/usr/bin/git") == "git"
    assert found.of("/usr/lib/x86_64-linux-gnu/libc.so.6") == "libc6"
    assert found.of("/usr/bin/other") is None
    assert found.known


def test_it_is_read_again_when_dpkg_changed_something(dpkg: Path) -> None:
    found = Packages(["git"], dpkg)
    assert found.of("/usr/bin/git-new") is None
    (dpkg / "info/git.list").write_text("/usr/bin/git-new\n")
    (dpkg / "status").unlink()
    assert found.of("/usr/bin/git") is None
    (dpkg / "status.new").write_text("git")
    (dpkg / "status.new").rename(dpkg / "status")
    assert found.of("/usr/bin/git-new") == "git"


def test_a_host_without_dpkg_has_no_packages(tmp_path: Path) -> None:
    found = Packages(["git"], tmp_path / "none")
    assert (found.of("/usr/bin/git"), found.known) == (None, False)


def test_a_question_is_completed(dpkg: Path) -> None:
    asked = question(program=msgspec.structs.replace(question().program, package=None))
    filled = Packages(["git"], dpkg).filled(asked)
    assert (asked.program.package, filled.program.package) == (None, "git")
    assert Packages([], dpkg).filled(asked) is asked


def test_a_set_knows_the_packages_that_it_names() -> None:
    catalog = Catalog(label=(Files(name="l", packages=("make",)),))
    text = (
        '@id("a") permit(principal, action, resource in Package::"git") when { resource in Package::"tar" };'
    )
    manifest = msgspec.structs.replace(policy_set(text).manifest, catalog=catalog)
    assert PolicySet.of(manifest).packages == {"git", "tar", "make"}
