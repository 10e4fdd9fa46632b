"""What a kernel lacks is named with what cures it, and nothing is loaded there, not even by half.

The BPF LSM cases need kernels that differ: scripts/test-vm boots each with and without `bpf` in its list.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from egs_kernel.errors import ExitCode
from tests.harness import BIN, COMMAND_SECONDS, Instance

pytestmark = pytest.mark.kernel

TYPES: Final = "/sys/kernel/btf/vmlinux"
ACTIVE: Final = Path("/sys/kernel/security/lsm")

_WITHOUT_TYPES: Final = f"""
mount --make-rprivate /
mount --bind "$1" {TYPES}
shift
exec "$@"
"""
"""In a mount namespace: the kernel's types are the (empty) file $1."""


def finding(answer: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in answer["findings"] if found["name"] == name)


def without_types(instance: Instance, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    empty = folder / "empty"
    empty.touch()
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", _WITHOUT_TYPES, "sh", str(empty), str(BIN / "egs"), *command],
        env=instance.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )


def test_a_kernel_without_types(instance: Instance, tmp_path: Path) -> None:
    done = without_types(instance, tmp_path, "doctor", "--json")
    assert done.returncode == ExitCode.HOST_LACKS, done.stderr
    answer = json.loads(done.stdout)
    assert answer["tier"] is None
    missing = finding(answer, "kernel types (BTF)")
    assert not missing["present"]
    assert "CONFIG_DEBUG_INFO_BTF=y" in missing["cure"]


def test_a_gate_is_not_loaded_without_types(instance: Instance, tmp_path: Path) -> None:
    done = without_types(instance, tmp_path, "gate", "load")
    assert done.returncode == ExitCode.HOST_LACKS
    assert "CONFIG_DEBUG_INFO_BTF=y" in done.stderr
    assert "Traceback" not in done.stderr
    assert not instance.paths.pins.exists() or not list(instance.paths.pins.iterdir())


def test_bpf_lsm_is_there_or_the_boot_parameter_is_named(instance: Instance) -> None:
    answer = json.loads(instance.egs("doctor", "--json").stdout)
    found = finding(answer, "BPF LSM")
    active = ACTIVE.read_text().strip() if ACTIVE.exists() else None
    if active is not None and "bpf" not in active.split(","):
        assert not found["present"]
        assert f"lsm={active},bpf" in found["cure"]
    elif not found["present"]:
        assert "trampolines are blocked" in found["cure"] or "CONFIG_BPF_LSM=y" in found["cure"]
    assert answer["tier"] == ("lsm" if found["present"] else "tracepoint")
    said = instance.egs("doctor").stdout
    assert found["present"] or found["cure"] in said


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="holding takes x86")
def test_whether_a_scope_may_hold(instance: Instance) -> None:
    """By trying, and as the self-test of a gate that is loaded has found."""

    def holding() -> dict[str, Any]:
        return finding(json.loads(instance.egs("doctor", "--json").stdout), "holding")

    assert holding()["present"]
    gate = instance.load_gate()
    assert holding()["present"]
    gate.holds.give_up()
    gate.close()
    assert (holding()["present"], "gets away" in holding()["detail"]) == (False, True)
    assert 'on_missing = "kill"' in instance.egs("doctor").stdout
