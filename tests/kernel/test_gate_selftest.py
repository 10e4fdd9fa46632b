"""A gate that would read the wrong field is never enforced: each offset, made wrong, fails the self-test."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.config import load_config
from egs_kernel.errors import ExitCode, GateError
from egs_kernel.gate import btf, loader, selftest
from egs_kernel.gate.btf import FIELDS, LSM_FIELDS
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Reason, Tier
from tests.harness import BIN, COMMAND_SECONDS
from tests.refusals import TIER

if TYPE_CHECKING:
    from tests.harness import Instance

pytestmark = pytest.mark.kernel

HARMLESS: Final = {
    # Used where the kernel can skip the gate (Linux 7.0). There a wrong one kills, or shows as an exec that ran.
    "OFF_task_struct_self_exec_id",
    "OFF_mm_struct_exe_file",
    # Wrong, it is taken for "no group exit", and the task's own exit code is the same number.
    "OFF_signal_struct_flags",
    # Used for the outcome of a process whose last thread ends without exit_group(2).
    "OFF_task_struct_exit_code",
    # Only ever compared with itself: the same reader measured it. Many files have generation 0.
    "OFF_inode_i_generation",
    # Guards against a descriptor that is not open; the callers have theirs open.
    "OFF_fdtable_max_fds",
    # Told in an outcome, and nothing is decided by it; tests/kernel/test_outcome.py compares it with wait4(2).
    "OFF_sched_entity_sum_exec_runtime",
    "OFF_signal_struct_maxrss",
    "OFF_signal_struct_sum_sched_runtime",
    "OFF_task_struct_se",
}
_FIELDS: Final = {f"OFF_{field.replace('.', '_')}" for field in FIELDS}
_LSM_FIELDS: Final = {f"OFF_{field.replace('.', '_')}" for field in LSM_FIELDS}
OFFSETS: Final = sorted(
    _LSM_FIELDS if TIER is Tier.LSM else _FIELDS | {"OFF_inode_ctime_sec", "OFF_inode_ctime_nsec"}
)
"""What the tier under test reads beside the other one: the rest is proven there, by the same checks."""


@pytest.mark.parametrize("wrong", [name for name in OFFSETS if name not in HARMLESS])
def test_a_wrong_offset_fails_the_self_test(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = btf.gate_offsets

    def with_one_wrong(types: btf.KernelTypes) -> dict[str, int]:
        offsets = right(types)
        return offsets | {wrong: offsets[wrong] + 16}

    monkeypatch.setattr(btf, "gate_offsets", with_one_wrong)
    with pytest.raises(GateError) as caught:
        loader.load_gate(instance.paths, load_config(instance.paths.config))
    unreadable = (
        caught.value.reason is Reason.GATE_FAILED and "cannot read the identity" in caught.value.message
    )
    assert caught.value.reason is Reason.SELF_TEST_FAILED or unreadable, caught.value
    with pytest.raises(GateError) as closed:
        Gate.open(instance.paths.pins)
    assert closed.value.reason is Reason.GATE_NOT_LOADED
    assert list(instance.paths.pins.parent.glob(f"{instance.paths.pins.name}*")) == []


def test_the_right_offsets_pass_it(instance: Instance) -> None:
    loaded = loader.load_gate(instance.paths, load_config(instance.paths.config))
    assert "device" in loaded.checks
    Gate.open(instance.paths.pins).close()


def test_where_it_cannot_be_made_nothing_is_loaded(instance: Instance) -> None:
    """As under a unit that may not do what it does: here, make a cgroup."""
    read_only = (
        'mount --make-rprivate /; mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", read_only, "sh", cgroup_mount(), BIN / "egs", "gate", "load"],
        env=instance.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == ExitCode.HOST_LACKS
    assert "self-test could not be made" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(GateError) as closed:
        Gate.open(instance.paths.pins)
    assert closed.value.reason is Reason.GATE_NOT_LOADED


def test_what_no_new_privs_hides_is_not_taken_for_proven(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an exec under no_new_privs goes before Linux 6.17: the effective user is the real one."""
    monkeypatch.setattr(selftest, "_EUID", selftest._UID)
    monkeypatch.setattr(selftest, "_no_new_privs_here", lambda: True)
    with pytest.raises(GateError) as caught:
        loader.load_gate(instance.paths, load_config(instance.paths.config))
    assert caught.value.reason is Reason.SELF_TEST_FAILED
    assert "no_new_privs is set" in caught.value.message
