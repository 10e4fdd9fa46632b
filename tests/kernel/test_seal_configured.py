"""`sealed = true`: the gate is sealed whenever the daemon is ready, and not where nobody could lift that (tier `lsm`)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.entries import SealChange
from tests.sealing import Sealed, sealable_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Instance

pytestmark = [pytest.mark.kernel, pytest.mark.lsm]

SEALED = "sealed = true"


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    with sealable_host(tmp_path_factory.mktemp("configured")) as host:
        host.running.stop()
        host.instance.configure(more=SEALED)
        host.start()
        yield host


@pytest.fixture
def host(_made: Sealed) -> Sealed:
    """A host whose daemon was started with it."""
    if _made.status["seal"] != "sealed":
        _made.seal()
    return _made


def test_it_is_sealed_when_the_daemon_is_ready(host: Sealed) -> None:
    first = next(entry for entry in host.running.entries(SealChange) if entry.action == "sealed")
    assert (first.cause, first.peer) == ("configured", None)
    with pytest.raises(PermissionError):
        os.kill(host.pid, signal.SIGTERM)
    assert host.status["pid"] == host.pid


def test_a_daemon_that_starts_during_a_maintenance_leaves_the_seal_lifted(host: Sealed) -> None:
    host.lift()
    assert host.running.stop() == 0
    host.start()
    assert host.status["seal"] == "lifted"


def test_a_gate_that_is_loaded_anew_is_sealed_again(host: Sealed) -> None:
    host.lift()
    host.running.stop()
    host.instance.egs("gate", "unload")
    host.instance.egs("gate", "load")
    host.start()
    assert host.status["seal"] == "sealed"


def test_where_nobody_could_lift_it_no_daemon_starts(instance: Instance) -> None:
    instance.configure(more=SEALED)
    instance.paths.trust.mkdir(mode=0o755)
    instance.egs("gate", "load")
    daemon = instance.egsd()
    assert daemon.returncode == 1
    assert "maintenance" in daemon.stderr
    assert "Traceback" not in daemon.stderr
    instance.egs("gate", "unload")  # nothing is sealed
