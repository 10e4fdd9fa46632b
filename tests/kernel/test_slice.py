"""Scopes on slices of systemd, without systemd (the case `boot` of scripts/test-vm has it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egs_kernel.daemon.scoping import SLICE_ROOM

if TYPE_CHECKING:
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]


def test_a_launch_into_a_slice_gets_a_cgroup_of_its_own(running: Running) -> None:
    """Also when systemd has not made the slice's cgroup, or removed it."""
    config = running.instance.paths.config
    inner = f"{running.instance.cgroup.path}/agents.slice"
    config.write_text(config.read_text().replace(running.instance.cgroup.path, inner))
    running.instance.egs("reload")
    program = running.copy("/bin/cat", "program")
    artifact = running.issue(program)
    folder = running.instance.cgroup.folder / "agents.slice"
    for _ in range(2):
        assert not folder.exists()
        done = running.run("--artifact", str(artifact), "--", str(program), "/proc/self/cgroup")
        assert f"0::{inner}/{SLICE_ROOM}\n" in done.stdout, done.stderr
        (folder / SLICE_ROOM).rmdir()
        folder.rmdir()
