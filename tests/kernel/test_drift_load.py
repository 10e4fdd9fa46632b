"""Loading with drift programs: required, wanted, or not; and where the kernel cannot have them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from egs_kernel.config import load_config
from egs_kernel.errors import GateError, HostLacks
from egs_kernel.gate import btf
from egs_kernel.gate.drift import FOLDER, TRACEPOINTS
from egs_kernel.gate.loader import load_gate, unload_gate
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from tests.harness import Instance

pytestmark = pytest.mark.kernel


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without one of the tracepoints: one that does not exist takes its place."""
    monkeypatch.setitem(TRACEPOINTS, "drift_child", "no_such_tracepoint")


@pytest.mark.usefixtures("lacking")
def test_what_is_required_and_cannot_be_had_leaves_nothing_behind(instance: Instance) -> None:
    instance.configure(drift="required")
    with pytest.raises(HostLacks, match="no_such_tracepoint") as caught:
        load_gate(instance.paths, load_config(instance.paths.config))
    assert caught.value.reason is Reason.KERNEL_UNSUPPORTED
    assert 'drift.events = "auto"' in caught.value.next_step
    assert not instance.paths.pins.exists()
    assert not instance.paths.pins.with_name(f"{instance.paths.pins.name}-loading").exists()


def test_programs_that_see_something_else_are_not_believed(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One field of the kernel is read beside where it is: the gate is not loaded with that."""
    real = btf.drift_offsets

    def with_one_wrong(types: btf.KernelTypes) -> dict[str, int]:
        offsets = real(types)
        return offsets | {"OFF_cred_cap_effective": offsets["OFF_cred_cap_effective"] + 8}

    monkeypatch.setattr(btf, "drift_offsets", with_one_wrong)
    instance.configure(drift="required")
    with pytest.raises(GateError, match="capabilities") as caught:
        load_gate(instance.paths, load_config(instance.paths.config))
    assert caught.value.reason is Reason.SELF_TEST_FAILED
    assert not instance.paths.pins.exists()


@pytest.mark.usefixtures("lacking")
def test_what_is_only_wanted_is_told_to_be_missing(instance: Instance) -> None:
    instance.configure(drift="auto")
    loaded = load_gate(instance.paths, load_config(instance.paths.config))
    try:
        assert loaded.manifest.drift is not None
        assert "no_such_tracepoint" in loaded.manifest.drift.missing
        assert not (instance.paths.pins / FOLDER).exists()
        Gate.open(instance.paths.pins).close()
        assert json.loads(instance.egs("gate", "status", "--json").stdout)["drift"] is None
        assert "Drift events: none" in instance.egs("gate", "status").stdout
    finally:
        unload_gate(instance.paths)


def test_they_go_with_the_gate(instance: Instance) -> None:
    instance.configure(drift="required")
    said = json.loads(instance.egs("gate", "load", "--json").stdout)
    assert said["drift"]["missing"] == ""
    assert "drift: traced is told" in said["checks"]
    assert json.loads(instance.egs("gate", "status", "--json").stdout)["drift"]["missed"] == 0
    instance.egs("gate", "unload")
    assert not instance.paths.pins.exists()
