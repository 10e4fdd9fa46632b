"""Offsets of kernel struct fields, from the running kernel's own BTF (/sys/kernel/btf/vmlinux).

The gate reads every kernel field at an offset found here, so one source is right on every kernel with
BTF and needs no kernel headers (docs/architecture.md, "bcc without kernel headers").
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from egs_kernel.errors import GateError
from egs_kernel.gate.libbpf import libbpf
from egs_kernel.model import Reason

_KIND_STRUCT: Final = 4
_KIND_UNION: Final = 5
_KIND_TYPEDEF: Final = 8
_KIND_FUNC: Final = 12
_KIND_FLAG: Final = 1 << 31

FIELDS: Final = (
    "cgroup.kn",
    "cgroup.root",
    "cgroup.self",
    "cgroup_root.hierarchy_id",
    "cgroup_subsys_state.parent",
    "cred.euid",
    "cred.gid",
    "cred.uid",
    "css_set.dfl_cgrp",
    "dentry.d_inode",
    "dentry.d_name",
    "dentry.d_parent",
    "fdtable.fd",
    "fdtable.max_fds",
    "file.f_inode",
    "file.f_path",
    "files_struct.fdt",
    "inode.i_generation",
    "inode.i_ino",
    "inode.i_sb",
    "inode.i_size",
    "kernfs_node.id",
    "linux_binprm.file",
    "linux_binprm.filename",
    "mm_struct.arg_end",
    "mm_struct.arg_start",
    "mm_struct.env_end",
    "mm_struct.env_start",
    "mm_struct.exe_file",
    "path.dentry",
    "qstr.name",
    "sched_entity.sum_exec_runtime",
    "seccomp.filter_count",
    "seccomp.mode",
    "signal_struct.flags",
    "signal_struct.group_exit_code",
    "signal_struct.live",
    "signal_struct.maxrss",
    "signal_struct.sum_sched_runtime",
    "super_block.s_dev",
    "task_struct.atomic_flags",
    "task_struct.cgroups",
    "task_struct.cred",
    "task_struct.exit_code",
    "task_struct.files",
    "task_struct.group_leader",
    "task_struct.mm",
    "task_struct.pid",
    "task_struct.real_parent",
    "task_struct.se",
    "task_struct.seccomp",
    "task_struct.self_exec_id",
    "task_struct.signal",
    "task_struct.start_boottime",
    "task_struct.tgid",
)

LSM_FIELDS: Final = (
    "bpf_link.id",
    "bpf_map.id",
    "bpf_prog.aux",
    "bpf_prog_aux.id",
    "dentry.d_sb",
    "file.f_mode",
    "file.private_data",
    "inode.i_mode",
    "inode.i_uid",
    "linux_binprm.buf",
    "linux_binprm.interp",
    "mnt_namespace.ns",
    "mount.mnt",
    "mount.mnt_ns",
    "mount.mnt_share",
    "mount.mnt_slave_list",
    "ns_common.inum",
    "nsproxy.mnt_ns",
    "path.mnt",
    "super_block.s_magic",
    "task_struct.nsproxy",
    "task_struct.ptrace",
    "vfsmount.mnt_root",
    "vm_area_struct.anon_vma",
    "vm_area_struct.vm_file",
)
"""What the hooks of the tier `lsm` read besides."""

DRIFT_FIELDS: Final = (
    "bpf_map.id",
    "bpf_prog.aux",
    "bpf_prog_aux.id",
    "cred.cap_effective",
    "cred.cap_permitted",
    "cred.egid",
    "file.f_mode",
    "file.private_data",
    "idr.idr_rt",
    "inode.i_nlink",
    "pid.level",
    "pid.numbers",
    "pid.tasks",
    "pid_namespace.idr",
    "proc_inode.pid",
    "proc_inode.vfs_inode",
    "pt_regs.bx",
    "pt_regs.cx",
    "pt_regs.di",
    "pt_regs.dx",
    "pt_regs.orig_ax",
    "pt_regs.r10",
    "pt_regs.r8",
    "pt_regs.si",
    "super_block.s_magic",
    "task_struct.parent",
    "task_struct.pid_links",
    "task_struct.ptrace_entry",
    "task_struct.ptraced",
    "task_struct.thread_info",
    "task_struct.thread_pid",
    "thread_info.status",
    "upid.ns",
    "xa_node.shift",
    "xa_node.slots",
    "xarray.xa_head",
)
"""What the drift programs read besides `FIELDS`. The registers are x86's."""


class _Type(ctypes.Structure):
    """struct btf_type (include/uapi/linux/btf.h)."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """struct btf_member."""

    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class KernelTypes:
    """The running kernel's struct layouts."""

    def __init__(self) -> None:
        """Parse the kernel's BTF.

        Raises:
            GateError: this kernel offers none.
        """
        self._btf = libbpf.btf__load_vmlinux_btf()
        if not self._btf:
            error = os.strerror(ctypes.get_errno())
            raise GateError(
                Reason.KERNEL_UNSUPPORTED,
                f"this kernel offers no BTF (/sys/kernel/btf/vmlinux: {error})",
                "Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every Debian kernel since 11 has it).",
            )

    def close(self) -> None:
        """Free the parsed BTF."""
        libbpf.btf__free(self._btf)

    def offset(self, field: str) -> int:
        """Byte offset of `struct.member`, members of anonymous structs and unions included.

        Raises:
            GateError: this kernel has no such field.
        """
        found = self.find(field)
        if found is None:
            raise _unknown(f"field {field}")
        return found

    def find(self, field: str) -> int | None:
        """As `offset`, but None when there is no such field."""
        struct, member = field.split(".")
        type_id = libbpf.btf__find_by_name_kind(self._btf, struct.encode(), _KIND_STRUCT)
        return None if type_id < 0 else self._member_offset(type_id, member.encode())

    def size(self, struct: str) -> int:
        """Bytes of a struct.

        Raises:
            GateError: this kernel has no such struct.
        """
        type_id = libbpf.btf__find_by_name_kind(self._btf, struct.encode(), _KIND_STRUCT)
        if type_id < 0:
            raise _unknown(f"struct {struct}")
        return int(_Type.from_address(libbpf.btf__type_by_id(self._btf, type_id)).size)

    def has_tracepoint(self, name: str) -> bool:
        """Whether this kernel has a raw tracepoint of that name."""
        return bool(libbpf.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _KIND_TYPEDEF) > 0)

    def arguments(self, hook: str) -> int | None:
        """How many arguments an LSM hook has here; None when there is no such hook for BPF."""
        type_id = libbpf.btf__find_by_name_kind(self._btf, f"bpf_lsm_{hook}".encode(), _KIND_FUNC)
        if type_id < 0:
            return None
        function = _Type.from_address(libbpf.btf__type_by_id(self._btf, type_id))
        prototype = _Type.from_address(libbpf.btf__type_by_id(self._btf, function.size))
        return int(prototype.info & 0xFFFF)

    def _member_offset(self, type_id: int, wanted: bytes) -> int | None:
        address = libbpf.btf__type_by_id(self._btf, type_id)
        if not address:
            return None
        kind = _Type.from_address(address)
        if (kind.info >> 24) & 0x1F not in (_KIND_STRUCT, _KIND_UNION):
            return None
        members = (_Member * (kind.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        for member in members:
            bits = member.offset & 0xFFFFFF if kind.info & _KIND_FLAG else member.offset
            name = libbpf.btf__name_by_offset(self._btf, member.name_off)
            if name == wanted:
                return int(bits) // 8
            if not name:
                inner = self._member_offset(member.type, wanted)
                if inner is not None:
                    return int(bits) // 8 + inner
        return None


def _unknown(what: str) -> GateError:
    return GateError(
        Reason.KERNEL_UNSUPPORTED,
        f"this kernel's BTF has no {what}",
        "This kernel is newer or older than the gate knows; see docs/kernels.md.",
    )


def gate_offsets(types: KernelTypes) -> dict[str, int]:
    """Every offset that the gate asks for, by the name of its macro.

    Raises:
        GateError: a field is missing.
    """
    offsets = {f"OFF_{field.replace('.', '_')}": types.offset(field) for field in (*FIELDS, *LSM_FIELDS)}
    # inode_setattr got the mount's idmap before its two arguments (Linux 6.9).
    arguments = {"ARG_inode_setattr_dentry": (types.arguments("inode_setattr") or 2) - 2}
    return offsets | _ctime_offsets(types) | arguments


def drift_offsets(types: KernelTypes) -> dict[str, int]:
    """As `gate_offsets`, for the drift programs.

    Raises:
        GateError: a field is missing.
    """
    fields = (*FIELDS, *DRIFT_FIELDS)
    offsets = {f"OFF_{field.replace('.', '_')}": types.offset(field) for field in fields}
    module = types.find("module.name")  # a kernel without modules has none
    return (
        offsets
        | _ctime_offsets(types)
        | {"SIZE_upid": types.size("upid")}
        | ({} if module is None else {"OFF_module_name": module})
    )


def _ctime_offsets(types: KernelTypes) -> dict[str, int]:
    """The change time moved: i_ctime until 6.6, __i_ctime until 6.11, then two plain fields (3aa63a569c64)."""
    seconds = types.find("inode.i_ctime_sec")
    if seconds is not None:
        return {"OFF_inode_ctime_sec": seconds, "OFF_inode_ctime_nsec": types.offset("inode.i_ctime_nsec")}
    both = types.find("inode.__i_ctime")
    if both is None:
        both = types.offset("inode.i_ctime")
    return {
        "OFF_inode_ctime_sec": both + types.offset("timespec64.tv_sec"),
        "OFF_inode_ctime_nsec": both + types.offset("timespec64.tv_nsec"),
    }
