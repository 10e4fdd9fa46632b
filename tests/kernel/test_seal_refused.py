"""What cannot be sealed says so, and nothing is half sealed: a gate on the tier `tracepoint`, on any host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.running import Running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Instance

pytestmark = pytest.mark.kernel
TRACEPOINT = 'tier = "tracepoint"'


def test_egs_seal(instance: Instance, tmp_path: Path) -> None:
    instance.configure(more=TRACEPOINT)
    running = Running(instance, tmp_path)
    try:
        done = instance.egs("seal", check=False)
        assert done.returncode == 3
        assert "only a gate on the tier lsm can be sealed" in done.stderr
        assert json.loads(instance.egs("status", "--json").stdout)["seal"] == "unsealed"
        refused = instance.egs("unseal", str(instance.paths.config), check=False)
        assert refused.returncode == 3
    finally:
        running.close()


def test_a_daemon_that_is_to_seal_does_not_start_unsealed(instance: Instance) -> None:
    instance.configure(more=f"{TRACEPOINT}\nsealed = true")
    instance.paths.trust.mkdir(mode=0o755)
    instance.egs("gate", "load")
    daemon = instance.egsd()
    assert daemon.returncode == 3
    assert "only a gate on the tier lsm can be sealed" in daemon.stderr
