"""One gate for all attacks on the gate, one running system for each file of attacks on the whole."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.adversarial.arena import Arena
from tests.harness import Instance
from tests.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def disk_folder() -> Iterator[Path]:
    """A new folder that any user can go into, on a disk: pytest's own are closed to others, and may be on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="egs-test-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for one test; see `disk_folder`."""
    with disk_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def _shared_arena() -> Iterator[Arena]:
    with disk_folder() as folder:
        instance = Instance.create(folder / "egs", grace="300s")
        try:
            built = Arena.build(folder, instance)
            yield built
            built.gate.close()
        finally:
            instance.close()


@pytest.fixture
def arena(_shared_arena: Arena) -> Iterator[Arena]:
    """The arena, with nothing permitted and nobody inside. Loading its gate takes longer than most attacks."""
    yield _shared_arena
    _shared_arena.forget_grants()
    assert _shared_arena.gate.counters().missed == 0


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """Gate, daemon and a trusted key, for all tests of a file."""
    with disk_folder() as folder:
        instance = Instance.create(folder / "egs")
        try:
            work = folder / "work"
            work.mkdir(mode=0o755)
            running = Running(instance, work)
            try:
                yield running
            finally:
                running.close()
        finally:
            instance.close()
