"""The parts of a loaded gate by name: which programs are attached where, which are called, which maps there are."""

from __future__ import annotations

from typing import Final

from egs_kernel.model import Tier

TRACEPOINTS: Final = {
    "gate_exec": "sched_process_exec",
    "gate_fork": "sched_process_fork",
    "gate_exit": "sched_process_exit",
    "gate_attach": "cgroup_attach_task",
    "gate_mkdir": "cgroup_mkdir",
    "gate_rmdir": "cgroup_rmdir",
}
"""Attached programs and where."""

HOOKS: Final = {
    "check_exec": "bprm_check_security",
    "check_mapping": "mmap_file",
    "check_protection": "file_mprotect",
    "note_writer": "file_open",
}
"""Programs of the tier `lsm` and their hooks."""

SLEEPABLE: Final = frozenset({"check_exec"})
"""Those of them that may sleep, where the kernel hashes files for the gate."""

GUARDS: Final = {"guard_return": "x86_fpu_regs_activated", "guard_fault": "page_fault_user"}
"""Programs that are attached while a scope holds, and where."""

CALLED: Final = ("read_file", "set_task", "release_hold")
"""Programs that user space runs, never attached."""

MAPS: Final = (
    "gate_configs",
    "heartbeats",
    "scopes",
    "scope_cgroups",
    "scope_paths",
    "scope_files",
    "scope_entries",
    "scope_users",
    "tasks",
    "task_counts",
    "held_counts",
    "standing_grants",
    "armed_grants",
    "grant_uses",
    "grant_argvs",
    "scratches",
    "code_variables",
    "decisions",
    "failures",
    "readings",
    "subjects",
    "measured_files",
    "library_folders",
    "events",
)

LSM_MAPS: Final = ("pending_execs", "blank_pendings")
"""Of the tier `lsm`; user space reads them never."""


def links_of(tier: Tier) -> dict[str, str]:
    """Every program that is attached on a tier, and where."""
    return {**TRACEPOINTS, **HOOKS} if tier is Tier.LSM else TRACEPOINTS


def programs_of(tier: Tier) -> tuple[str, ...]:
    """Every program of a tier."""
    return (*links_of(tier), *CALLED)
