"""Fixtures for tests that load real BPF programs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egs_kernel.gate.parts import can_skip
from egs_kernel.model import Tier
from tests.harness import Instance, LoadedGate, compile_program
from tests.refusals import TIER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.gate.pins import Gate


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tests' folders lie in one of this session's own, into which other users may go.

    The common one, /tmp/pytest-of-root, is closed to others by each session that starts, in the middle of our tests.
    """
    if config.option.basetemp is None:
        folder = tempfile.TemporaryDirectory(prefix="egs-tests-")
        config.option.basetemp = f"{folder.name}/t"
        Path(folder.name).chmod(0o755)
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a kernel are skipped where none can be had, and then say so; CI does not let them.

    Those that need the tier lsm are skipped where the kernel has none, but not where the tests are told that it has.
    """
    required = os.environ.get("EGS_REQUIRE_KERNEL") == "1"
    no_kernel = None if required else _why_no_kernel()
    for item in items:
        if no_kernel is not None and item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason=no_kernel))
        elif TIER is not Tier.LSM and item.get_closest_marker("lsm"):
            item.add_marker(pytest.mark.skip(reason="needs tier lsm; this host has none"))


def _why_no_kernel() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs a kernel with BTF"
    return None


@pytest.fixture
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """An instance of egs-kernel with a scope `test` on its own cgroup; nothing loaded, but by the fixture `gate`."""
    if "gate" in request.fixturenames:
        yield request.getfixturevalue("_loaded").instance
        return
    created = Instance.create(tmp_path / "egs")
    try:
        yield created
    finally:
        created.close()


@pytest.fixture
def gate(_loaded: LoadedGate) -> Iterator[Gate]:
    """The real gate, as just loaded, with a fresh heartbeat and a grace that outlasts the test."""
    _loaded.renew()
    yield _loaded.gate
    assert can_skip() or _loaded.gate.counters().missed == 0


@pytest.fixture(scope="session")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedGate]:
    """Loaded once: in a virtual machine that takes longer than all that most tests do with it."""
    loaded = LoadedGate.create(tmp_path_factory.mktemp("gate") / "egs")
    try:
        yield loaded
    finally:
        loaded.close()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled test programs by name."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o755)
    return {
        "burst": compile_program("burst", folder, "-pthread"),
        "first_write": compile_program("first_write", folder, "-nostdlib", "-nostartfiles"),
    }
