"""Which tier this host offers, why, and what is missing: found by trying, not by reading a version.

`probe` tries on the running kernel, `diagnose` decides from what was found and is pure.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel.constraints.attest import require_attestation
from egs_kernel.errors import EgsError
from egs_kernel.gate import btf
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.libbpf import libbpf
from egs_kernel.gate.pins import TRACEPOINTS
from egs_kernel.model import Tier

_MAP_TYPE_RINGBUF: Final = 27
_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_PROG_TYPE_LSM: Final = 29
_ATTACH_LSM_MAC: Final = 27
_RETURN_ZERO: Final = bytes.fromhex("b700000000000000 9500000000000000")
"""r0 = 0; exit"""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a tier needs. `cure` says how to get it, when it is missing."""

    name: str
    present: bool
    detail: str = ""
    cure: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What this host can do. `tier` None: nothing can be enforced here."""

    tier: Tier | None
    why: str
    kernel: str
    findings: tuple[Finding, ...]

    @property
    def missing(self) -> tuple[Finding, ...]:
        """What stands in the way of the tracepoint tier."""
        return tuple(found for found in self.findings if not found.present and found.name in _REQUIRED)


_REQUIRED: Final = frozenset(
    {
        "root",
        "byte order",
        "bcc",
        "libbpf",
        "libseccomp",
        "kernel types (BTF)",
        "kernel tracepoints",
        "kernel fields",
        "raw tracepoint programs",
        "ring buffer",
        "kernel memory readable",
        "preemption model",
        "cgroup v2",
        "seccomp read-back",
    }
)
_LSM: Final = "BPF LSM"


def diagnose(kernel: str, findings: tuple[Finding, ...]) -> Diagnosis:
    """Decide the tier. A finding that was not made counts as missing."""
    present = {found.name for found in findings if found.present}
    missing = sorted(_REQUIRED - present)
    if missing:
        return Diagnosis(tier=None, why=f"missing: {', '.join(missing)}", kernel=kernel, findings=findings)
    lsm = next((found for found in findings if found.name == _LSM), None)
    if lsm is not None and lsm.present:
        why = "the kernel would take BPF LSM programs; this version of egs-kernel enforces at the tracepoint"
    else:
        why = (
            f"no BPF LSM programs here ({lsm.detail if lsm else 'not tried'}): an exec is killed, not refused"
        )
    return Diagnosis(tier=Tier.TRACEPOINT, why=why, kernel=kernel, findings=findings)


def probe() -> tuple[Finding, ...]:
    """Try everything on the running kernel. Loads tiny programs and leaves nothing behind."""
    findings = [
        _root(),
        Finding(
            name="byte order",
            present=sys.byteorder == "little",
            detail=sys.byteorder,
            cure="The gate's argument comparison is written for little-endian machines.",
        ),
        _package("bcc", "python3-bpfcc", _find_bcc),
        _package("libbpf", "libbpf1", lambda: ctypes.CDLL("libbpf.so.1")),
        _package("libseccomp", "libseccomp2", lambda: ctypes.CDLL("libseccomp.so.2")),
    ]
    if all(found.present for found in findings):
        findings += [*_kernel_types(), *_programs(), _memory_readable(), _seccomp_read_back()]
    return (*findings, _preemption(), _cgroups(), _lockdown())


def _root() -> Finding:
    return Finding(
        name="root",
        present=os.geteuid() == 0,
        detail=f"user {os.geteuid()}",
        cure="Run as root: the kernel tells nobody else what it would accept.",
    )


def _find_bcc() -> None:
    """Not an import: that would load LLVM."""
    if importlib.util.find_spec("bcc") is None:
        raise ImportError("no module named bcc")


def _package(name: str, package: str, load: Callable[[], object]) -> Finding:
    cure = f"Run: apt-get install {package}"
    try:
        load()
    except (ImportError, OSError) as error:
        return Finding(name=name, present=False, detail=str(error), cure=cure)
    return Finding(name=name, present=True)


def _kernel_types() -> list[Finding]:
    try:
        types = btf.KernelTypes()
    except EgsError as error:
        return [Finding(name="kernel types (BTF)", present=False, detail=error.message, cure=error.next_step)]
    try:
        return [Finding(name="kernel types (BTF)", present=True), _fields(types), _tracepoints(types)]
    finally:
        types.close()


def _fields(types: btf.KernelTypes) -> Finding:
    try:
        offsets = btf.gate_offsets(types)
    except EgsError as error:
        return Finding(name="kernel fields", present=False, detail=error.message, cure=error.next_step)
    return Finding(name="kernel fields", present=True, detail=f"{len(offsets)} offsets")


def _tracepoints(types: btf.KernelTypes) -> Finding:
    missing = [name for name in TRACEPOINTS.values() if not types.has_tracepoint(name)]
    return Finding(
        name="kernel tracepoints",
        present=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else "",
        cure="Boot a kernel with CONFIG_CGROUPS=y and CONFIG_TRACEPOINTS=y.",
    )


def _programs() -> list[Finding]:
    return [
        Finding(
            name="raw tracepoint programs",
            present=libbpf.libbpf_probe_bpf_prog_type(_PROG_TYPE_RAW_TRACEPOINT, None) == 1,
            cure="Boot a kernel of 4.17 or later with CONFIG_BPF_SYSCALL=y and CONFIG_BPF_EVENTS=y.",
        ),
        Finding(
            name="ring buffer",
            present=libbpf.libbpf_probe_bpf_map_type(_MAP_TYPE_RINGBUF, None) == 1,
            cure="Boot a kernel of 5.8 or later.",
        ),
        _lsm(),
    ]


class _LoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0, up to what we set."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
    )


def _lsm() -> Finding:
    """Load and attach an LSM program that permits everything; the list of LSMs alone proves nothing."""
    active = _read(Path("/sys/kernel/security/lsm"))
    if active is not None and "bpf" not in active.split(","):
        return Finding(
            name=_LSM,
            present=False,
            detail=f"not active; the kernel's list is {active}",
            cure=f"Add the boot parameter lsm={active},bpf",
        )
    hook = libbpf.libbpf_find_vmlinux_btf_id(b"bprm_check_security", _ATTACH_LSM_MAC)
    if hook <= 0:
        return Finding(
            name=_LSM, present=False, detail="not compiled in", cure="Boot a kernel with CONFIG_BPF_LSM=y."
        )
    opts = _LoadOpts(sz=ctypes.sizeof(_LoadOpts), expected_attach_type=_ATTACH_LSM_MAC, attach_btf_id=hook)
    program = libbpf.bpf_prog_load(
        _PROG_TYPE_LSM, b"egs_probe", b"GPL", _RETURN_ZERO, len(_RETURN_ZERO) // 8, ctypes.byref(opts)
    )
    if program < 0:
        return _lsm_refused("load", ctypes.get_errno())
    try:
        link = libbpf.bpf_raw_tracepoint_open(None, program)
        if link < 0:
            return _lsm_refused("attach", ctypes.get_errno())
        os.close(link)
    finally:
        os.close(program)
    return Finding(name=_LSM, present=True)


def _lsm_refused(step: str, code: int) -> Finding:
    return Finding(
        name=_LSM,
        present=False,
        detail=f"the kernel refuses to {step} such a program: {os.strerror(code)}",
        cure="BPF trampolines are blocked; the hypervisor or the kernel's configuration must allow them.",
    )


def _memory_readable() -> Finding:
    lockdown = _read(Path("/sys/kernel/security/lockdown")) or ""
    return Finding(
        name="kernel memory readable",
        present="[confidentiality]" not in lockdown,
        detail=lockdown,
        cure="Boot with lockdown=integrity.",
    )


def _preemption() -> Finding:
    """The gate's room is per CPU, and the kernel skips a program that another task runs on the same CPU."""
    realtime = _read(Path("/sys/kernel/realtime")) == "1"
    return Finding(
        name="preemption model",
        present=not realtime,
        detail="PREEMPT_RT: an exec could pass while the gate decides another one" if realtime else "",
        cure="Boot a kernel without PREEMPT_RT.",
    )


def _lockdown() -> Finding:
    lockdown = _read(Path("/sys/kernel/security/lockdown"))
    return Finding(
        name="lockdown",
        present=lockdown is not None and "[none]" not in lockdown,
        detail=lockdown or "securityfs is not mounted, or the kernel has no lockdown",
        cure="Boot with lockdown=integrity, so that root cannot patch the running kernel.",
    )


def _seccomp_read_back() -> Finding:
    try:
        require_attestation()
    except EgsError as error:
        return Finding(name="seccomp read-back", present=False, detail=error.message, cure=error.next_step)
    return Finding(name="seccomp read-back", present=True)


def _cgroups() -> Finding:
    try:
        mount = cgroup_mount()
    except EgsError as error:
        return Finding(name="cgroup v2", present=False, detail=error.message, cure=error.next_step)
    return Finding(name="cgroup v2", present=True, detail=str(mount))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # securityfs is not mounted: unknown, and shown as such
