"""One gate for all attacks on the gate, one running system for each file of attacks on the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.adversarial.arena import Arena
from tests.harness import Instance
from tests.running import disk_folder, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.running import Running


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
    with running_on_disk() as running:
        yield running
