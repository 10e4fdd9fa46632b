"""The parts of a loaded gate by name: which programs are attached where, which are called, which maps there are."""

from __future__ import annotations

import os
from typing import Final

from egs_kernel.model import Tier

TRACEPOINTS: Final = {
    "gate_exec": "sched_process_exec",
    "gate_fork": "sched_wakeup_new",
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
    "keep_signal": "task_kill",
    "keep_sigio": "file_send_sigiotask",
    "keep_trace": "ptrace_access_check",
    "keep_limits": "task_setrlimit",
    "keep_schedule": "task_setscheduler",
    "keep_nice": "task_setnice",
    "keep_bpf": "bpf",
    "keep_map": "bpf_map",
    "keep_prog": "bpf_prog",
    "keep_open": "file_open",
    "keep_create": "inode_create",
    "keep_symlink": "inode_symlink",
    "keep_mkdir": "inode_mkdir",
    "keep_mknod": "inode_mknod",
    "keep_unlink": "inode_unlink",
    "keep_rmdir": "inode_rmdir",
    "keep_link": "inode_link",
    "keep_rename": "inode_rename",
    "keep_attributes": "inode_setattr",
    "keep_setxattr": "inode_setxattr",
    "keep_removexattr": "inode_removexattr",
    "keep_mount": "sb_mount",
    "keep_move": "move_mount",
    "keep_umount": "sb_umount",
    "keep_pivot": "sb_pivotroot",
    "see_program": "bprm_check_security",
    "see_code": "mmap_file",
    "see_free": "task_free",
}
"""Programs of the tier `lsm` and their hooks."""

SHARED: Final = {
    "keep_nice": "keep_schedule",
    "keep_symlink": "keep_create",
    "keep_mkdir": "keep_create",
    "keep_mknod": "keep_create",
    "keep_rmdir": "keep_unlink",
    "keep_removexattr": "keep_setxattr",
}
"""Those of them that are the same function as another one: it takes LLVM a while to compile each."""

LSM_TRACEPOINTS: Final = {"see_exec": "sched_process_exec", "see_exit": "sched_process_exit"}
"""Attached programs of the tier `lsm` besides, and where."""

SLEEPABLE: Final = frozenset({"check_exec"})
"""Those of them that may sleep, where the kernel hashes files for the gate."""

GUARDS: Final = {"guard_return": "x86_fpu_regs_activated", "guard_fault": "page_fault_user"}
"""Programs that are attached while a scope holds, and where."""

SKIP_GUARDS: Final = {"guard_exec": "x86_fpu_regs_activated", "guard_exit": "sched_process_free"}
"""Attached besides where the kernel can skip `gate_exec` and `gate_exit`."""

_SKIPS_FROM: Final = 7
"""Linux 7.0: tracepoints can be preempted (a46023d5616e), and a program that another task is inside of is skipped."""

CALLED: Final = ("read_file", "set_task", "release_hold", "restrain_task")
"""Programs that user space runs, never attached."""

LSM_CALLED: Final = ("read_protection",)
"""As `CALLED`, of the tier `lsm` besides."""

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
    "ended_tasks",
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

SEAL_MAPS: Final = (
    "seals",
    "daemons",
    "daemon_argvs",
    "protected_files",
    "own_objects",
    "harmless_names",
)
"""Of the tier `lsm`: what a sealed gate keeps (gate/seal.py)."""

LSM_MAPS: Final = (
    *SEAL_MAPS,
    "pending_execs",
    "blank_pendings",
    "applicants",
    "attempt_rates",
    "daemon_scratches",
)
"""Of the tier `lsm`; what is not a seal's, user space reads never."""


def tracepoints_of(tier: Tier) -> dict[str, str]:
    """Every program of a tier that is attached to a raw tracepoint, and to which."""
    guard = SKIP_GUARDS if can_skip() else {}
    return {**TRACEPOINTS, **guard, **(LSM_TRACEPOINTS if tier is Tier.LSM else {})}


def can_skip(release: str | None = None) -> bool:
    """Whether a kernel, this one when none is named, can skip a program at a tracepoint."""
    release = os.uname().release if release is None else release
    return int(release.split(".", maxsplit=1)[0]) >= _SKIPS_FROM


def links_of(tier: Tier) -> dict[str, str]:
    """Every program that is attached on a tier, and where."""
    return {**tracepoints_of(tier), **(HOOKS if tier is Tier.LSM else {})}


def called_of(tier: Tier) -> tuple[str, ...]:
    """Every program of a tier that user space runs."""
    return (*CALLED, *LSM_CALLED) if tier is Tier.LSM else CALLED


def function_of(program: str) -> str:
    """The C function that a program is."""
    return SHARED.get(program, program)


def programs_of(tier: Tier) -> tuple[str, ...]:
    """Every program of a tier."""
    return (*links_of(tier), *called_of(tier))
