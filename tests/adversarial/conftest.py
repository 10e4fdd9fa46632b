"""One gate for all attacks: loading it takes longer than most of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.adversarial.arena import Arena
from tests.harness import Instance

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def _shared_arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    instance = Instance.create(folder / "egs", grace="300s")
    try:
        built = Arena.build(folder, instance)
        yield built
        built.gate.close()
    finally:
        instance.close()


@pytest.fixture
def arena(_shared_arena: Arena) -> Iterator[Arena]:
    """The arena, with nothing permitted and nobody inside."""
    yield _shared_arena
    _shared_arena.forget_grants()
    assert _shared_arena.gate.counters().missed == 0
