"""Fixtures for tests of the whole running system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Instance


@pytest.fixture
def running(instance: Instance, tmp_path: Path) -> Iterator[Running]:
    """Gate, daemon and a trusted key, for a scope on a cgroup of this test's own."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # other users reach the socket
    folder = tmp_path / "work"
    folder.mkdir(mode=0o755)
    system = Running(instance, folder)
    try:
        yield system
    finally:
        system.close()
