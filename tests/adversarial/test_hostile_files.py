"""Attacker's goal: have the daemon trust files that others could have written, or write into theirs.

Claim T-11 of docs/threat-model.md. tests/unit/test_ownership.py has every rule for one path.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.adversarial.arena import NOBODY
from tests.refusals import REFUSED
from tests.running import Running

pytestmark = pytest.mark.kernel

Spoil = Callable[[Path], None]


def writable_by_all(path: Path) -> None:
    path.chmod(0o777)


def writable_by_a_group(path: Path) -> None:
    path.chmod(0o775)


def owned_by_somebody_else(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def a_symbolic_link(path: Path) -> None:
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


WAYS: Final = (writable_by_all, writable_by_a_group, owned_by_somebody_else, a_symbolic_link)
PLACES: Final = (
    "etc/egs",
    "etc/egs/egs.toml",
    "etc/egs/trust",
    "etc/egs/policy",
    "etc/egs/artifacts",
    "var/lib/egs",
    "var/lib/egs/record",
    "var/lib/egs/revoked",
    "run/egs",
    "run/egs/gate.json",
)


def restore(path: Path, mode: int) -> None:
    if path.is_symlink():
        path.unlink()
        path.with_name(f"{path.name}.moved").rename(path)
    os.chown(path, 0, 0)
    path.chmod(mode)


@pytest.fixture(scope="module")
def program(system: Running) -> Path:
    """An authorized program; the daemon is stopped."""
    (system.instance.paths.policy).mkdir(mode=0o755)
    program = system.copy("/bin/true", "program")
    system.add(system.issue(program))
    assert system.inside(str(program)) == 0
    system.stop()
    return program


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("path", PLACES)
def test_the_daemon_does_not_start_on_it(system: Running, program: Path, path: str, way: Spoil) -> None:
    spoiled = system.instance.root / path
    mode = spoiled.stat().st_mode & 0o777
    way(spoiled)
    try:
        done = system.instance.egsd()
    finally:
        restore(spoiled, mode)
    assert (done.returncode, "[path_unsafe]" in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) <= 2, "an error and a next step, no traceback"


def test_put_right_it_starts(system: Running, program: Path) -> None:
    """The control of the others: nothing but what each of them spoiled kept it from starting."""
    system.start()
    assert system.inside(str(program)) == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_artifact_that_others_could_have_put_there(system: Running, way: Spoil) -> None:
    """Its signature is good; but who can replace it can also remove it, so it is refused, and said to be."""
    program = system.copy("/bin/true", way.__name__)
    artifact = system.issue(program)
    way(artifact)
    path = system.instance.paths.artifacts / "spoiled.json"
    artifact.rename(path)
    system.instance.egs("reload")
    listed = [item for item in system.artifacts().values() if item["file"] == path.name]
    assert [(item["state"], item["reason"]) for item in listed] == [("refused", "path_unsafe")]
    assert system.inside(str(program)) == REFUSED.code
    path.unlink()
    assert system.inside(str(program)) == REFUSED.code
    system.add(system.issue(program))
    assert system.inside(str(program)) == 0
