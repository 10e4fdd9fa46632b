"""The gate against what was loaded: links, programs, maps and pins that somebody took away, swapped or wrote to."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.drift.observations import HostEvent
from egs_kernel.findings import Finding
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.parts import links_of
from egs_kernel.gate.pins import Gate
from egs_kernel.monitor.sources.integrity import GONE, GateIntegrity
from tests.harness import Instance

pytestmark = pytest.mark.kernel

_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    instance = Instance.create(tmp_path_factory.mktemp("integrity") / "egs")
    try:
        instance.configure(drift="required")
        instance.load_gate().close()
        yield instance
    finally:
        instance.close()


@pytest.fixture
def source(loaded: Instance) -> Iterator[GateIntegrity]:
    found = GateIntegrity(loaded.paths, lambda: False)
    assert list(found.sweep()) == [], "as it was loaded"
    yield found
    assert list(found.sweep()) == [], "the test has put everything back"
    found.close()


def told(source: GateIntegrity) -> list[tuple[Finding, str, str]]:
    """What it has to say by itself, without a sweep."""
    assert select.select([source], [], [], 0)[0], "nothing woke it"
    return shown(list(source.read()))


def shown(found: list[object]) -> list[tuple[Finding, str, str]]:
    return [(each.suspicion, each.subject, each.now) for each in found if isinstance(each, HostEvent)]


def gate_links(instance: Instance) -> list[str]:
    gate = Gate.open(instance.paths.pins)
    names = [f"link_{name}" for name in links_of(gate.tier)]
    gate.close()
    return [*names, "drift/link_drift_call"]


def test_each_link_that_is_unpinned(loaded: Instance, source: GateIntegrity) -> None:
    for name in gate_links(loaded):
        pin = loaded.paths.pins / name
        link = libbpf.open_pin(pin)
        pin.unlink()
        assert told(source) == [(Finding.GATE_LINK_LOST, name, GONE)]
        assert list(source.sweep()) == [], "told once"
        libbpf.pin(link, pin)
        os.close(link)
        assert told(source) == []


def test_a_pin_that_names_another_program(loaded: Instance, source: GateIntegrity) -> None:
    """It bears the name, and permits everything."""
    pin = loaded.paths.pins / "gate_exec"
    ours = libbpf.open_pin(pin)
    theirs = libbpf.load_raw_tracepoint("gate_exec", _RETURN_ZERO)
    pin.unlink()
    libbpf.pin(theirs, pin)
    [(finding, name, now)] = told(source)
    assert (finding, name) == (Finding.GATE_TAMPERED, "gate_exec")
    assert now.startswith("program ")
    pin.unlink()
    libbpf.pin(ours, pin)
    os.close(ours)
    os.close(theirs)


def test_a_link_that_names_another_program(loaded: Instance, source: GateIntegrity) -> None:
    """It is attached, to where nothing happens."""
    pin = loaded.paths.pins / "link_gate_exec"
    ours = libbpf.open_pin(pin)
    theirs = libbpf.load_raw_tracepoint("gate_exec", _RETURN_ZERO)
    link = libbpf.attach_raw_tracepoint("sched_process_exec", theirs)
    pin.unlink()
    libbpf.pin(link, pin)
    assert [(finding, name) for finding, name, _ in told(source)] == [
        (Finding.GATE_LINK_LOST, "link_gate_exec")
    ]
    pin.unlink()
    libbpf.pin(ours, pin)
    for descriptor in (ours, theirs, link):
        os.close(descriptor)


def test_a_map_that_is_constant_and_was_written(loaded: Instance, source: GateIntegrity) -> None:
    """No variable that makes a program load code would be refused any more. A sweep sees it; the event: test_drift_events."""
    table = libbpf.Map(libbpf.open_pin(loaded.paths.pins / "code_variables"), ctypes.c_uint32, abi.Variables)
    before = table.get(ctypes.c_uint32(0))
    assert before is not None
    table.put(ctypes.c_uint32(0), abi.Variables())
    assert [(finding, name) for finding, name, _ in shown(list(source.sweep()))] == [
        (Finding.GATE_TAMPERED, "code_variables")
    ]
    table.put(ctypes.c_uint32(0), before)
    os.close(table.descriptor)


def test_a_strange_program_that_has_a_map_of_the_gate(loaded: Instance, source: GateIntegrity) -> None:
    """It could write there without another call of bpf(2)."""
    table = libbpf.open_pin(loaded.paths.pins / "tasks")
    load_map = struct.pack("<BBhi", 0x18, 0x11, 0, table) + bytes(8)
    stranger = libbpf.load_raw_tracepoint("stranger", load_map + _RETURN_ZERO)
    [(finding, name, now)] = shown(list(source.sweep()))
    assert finding is Finding.GATE_TAMPERED
    assert name.endswith(" stranger")
    assert now == "uses tasks of the gate"
    os.close(stranger)
    os.close(table)


def test_a_note_that_is_gone(loaded: Instance, source: GateIntegrity) -> None:
    note: Path = loaded.paths.gate_manifest
    moved = note.rename(note.with_name("elsewhere"))
    [(finding, name, now)] = told(source)
    assert (finding, name) == (Finding.GATE_TAMPERED, "manifest")
    assert "does not say what was loaded" in now
    moved.rename(note)


def test_a_sealed_gate_is_not_looked_at(loaded: Instance, source: GateIntegrity) -> None:
    """It keeps itself, and who looks is refused: what was found before stays, and nothing is found because of that."""
    name = gate_links(loaded)[0]
    pin = loaded.paths.pins / name
    link = libbpf.open_pin(pin)
    sealed = True
    kept = GateIntegrity(loaded.paths, lambda: sealed)
    pin.unlink()
    assert list(kept.sweep()) == []
    sealed = False
    assert shown(list(kept.sweep())) == [(Finding.GATE_LINK_LOST, name, GONE)]
    libbpf.pin(link, pin)
    os.close(link)
    kept.close()
    list(source.read())


def test_a_gate_that_is_unloaded(instance: Instance) -> None:
    """By whomever: nothing is enforced any more."""
    instance.load_gate().close()
    source = GateIntegrity(instance.paths, lambda: False)
    assert list(source.sweep()) == []
    instance.egs("gate", "unload")
    assert (Finding.GATE_LINK_LOST, "link_*", GONE) in told(source)
    source.close()
