"""Which tier this host offers, why, and what is missing: found by trying, not by reading a version.

`probe` tries on the running kernel, `diagnose` decides from what was found and is pure.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel.constraints.attest import require_attestation
from egs_kernel.constraints.confinement import require_landlock, require_namespaces
from egs_kernel.constraints.kernel_messages import open_messages, require_landlock_news
from egs_kernel.errors import EgsError
from egs_kernel.gate import btf
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.drift import TRACEPOINTS as DRIFT_TRACEPOINTS
from egs_kernel.gate.holds import given_up
from egs_kernel.gate.libbpf import (
    attach_lsm,
    attach_raw_tracepoint,
    libbpf,
    load_lsm,
    load_raw_tracepoint,
)
from egs_kernel.gate.parts import GUARDS, tracepoints_of
from egs_kernel.model import Tier

_MAP_TYPE_RINGBUF: Final = 27
_PROG_TYPE_RAW_TRACEPOINT: Final = 17
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
_IMA: Final = "IMA digests"
_HOLDING: Final = "holding"
_NO_SKIPPING: Final = (6, 2)


def diagnose(kernel: str, findings: tuple[Finding, ...]) -> Diagnosis:
    """Decide the tier. A finding that was not made counts as missing."""
    present = {found.name for found in findings if found.present}
    missing = sorted(_REQUIRED - present)
    if missing:
        return Diagnosis(tier=None, why=f"missing: {', '.join(missing)}", kernel=kernel, findings=findings)
    lsm = next((found for found in findings if found.name == _LSM), None)
    if lsm is not None and lsm.present:
        why = "an exec without a grant fails in its caller"
        return Diagnosis(tier=Tier.LSM, why=why, kernel=kernel, findings=findings)
    why = f"no BPF LSM programs here ({lsm.detail if lsm else 'not tried'}): an exec is killed, not refused"
    return Diagnosis(tier=Tier.TRACEPOINT, why=why, kernel=kernel, findings=findings)


def probe(pins: Path) -> tuple[Finding, ...]:
    """Try everything on the running kernel. Loads tiny programs and leaves nothing behind.

    Args:
        pins: the gate's folder, as what is loaded there may know more: its self-test has held a process.
    """
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
        findings += [*_kernel_types(), *_programs(), hold_finding(pins)]
        findings += [
            _memory_readable(),
            _tried("seccomp read-back", require_attestation),
            *_constraints(),
            *_refusals_seen(),
        ]
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
        present = Finding(name="kernel types (BTF)", present=True)
        return [present, _fields(types), _tracepoints(types), _drift(types)]
    finally:
        types.close()


def _fields(types: btf.KernelTypes) -> Finding:
    try:
        offsets = btf.gate_offsets(types)
    except EgsError as error:
        return Finding(name="kernel fields", present=False, detail=error.message, cure=error.next_step)
    return Finding(name="kernel fields", present=True, detail=f"{len(offsets)} offsets")


def _tracepoints(types: btf.KernelTypes) -> Finding:
    missing = [name for name in tracepoints_of(Tier.TRACEPOINT).values() if not types.has_tracepoint(name)]
    return Finding(
        name="kernel tracepoints",
        present=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else "",
        cure="Boot a kernel with CONFIG_CGROUPS=y and CONFIG_TRACEPOINTS=y.",
    )


def _drift(types: btf.KernelTypes) -> Finding:
    """Whether the kernel has what the drift programs are attached to, and read. They are no part of a tier."""
    cure = "Boot an x86 kernel with CONFIG_FTRACE_SYSCALLS=y; without it drift is found by sweeps alone."
    missing = [name for name in DRIFT_TRACEPOINTS.values() if not types.has_tracepoint(name)]
    if missing:
        return Finding(
            name="drift events", present=False, detail=f"no tracepoint {', '.join(missing)}", cure=cure
        )
    try:
        btf.drift_offsets(types)
    except EgsError as error:
        return Finding(name="drift events", present=False, detail=error.message, cure=cure)
    return Finding(name="drift events", present=True)


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
        lsm_finding(),
        digest_finding(),
    ]


def lsm_finding() -> Finding:
    """Load and attach an LSM program that permits everything; the list of LSMs alone proves nothing."""
    active = _read(Path("/sys/kernel/security/lsm"))
    if active is not None and "bpf" not in active.split(","):
        return Finding(
            name=_LSM,
            present=False,
            detail=f"not active; the kernel's list is {active}",
            cure=f"Add the boot parameter lsm={active},bpf",
        )
    try:
        program = load_lsm("egs_probe", "bprm_check_security", _RETURN_ZERO)
    except OSError as error:
        return _lsm_refused("load", error)
    try:
        os.close(attach_lsm(program))
    except OSError as error:
        return _lsm_refused("attach", error)
    finally:
        os.close(program)
    return Finding(name=_LSM, present=True)


def digest_finding() -> Finding:
    """Whether the kernel hashes a file for the gate at its exec.

    Before Linux 6.2 a program that sleeps, as one that hashes does, makes the kernel skip it for others on the same
    CPU (271de525e1d7).
    """
    cure = "Boot a kernel of 6.2 or later with CONFIG_IMA=y and the boot parameter ima_hash=sha256."
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release < _NO_SKIPPING:
        return Finding(
            name=_IMA,
            present=False,
            detail="this kernel skips programs that sleep; files are recognized",
            cure=cure,
        )
    if _read(Path("/sys/kernel/security/ima/runtime_measurements_count")) is None:
        return Finding(name=_IMA, present=False, detail="no IMA, or securityfs is not mounted", cure=cure)
    return Finding(name=_IMA, present=True)


def hold_finding(pins: Path) -> Finding:
    """Whether a scope may hold (on_missing = "hold"): the guards' tracepoints are there, and no gate here gave up on them.

    Args:
        pins: the gate's folder.
    """
    cure = 'Use on_missing = "kill" in every scope: holding takes an x86 kernel with CONFIG_TRACEPOINTS=y.'
    try:
        program = load_raw_tracepoint("egs_probe", _RETURN_ZERO)
    except OSError as error:
        return Finding(
            name=_HOLDING, present=False, detail=f"no program for its guards: {error.strerror}", cure=cure
        )
    try:
        for tracepoint in GUARDS.values():
            os.close(attach_raw_tracepoint(tracepoint, program))
    except OSError as error:
        missing = f"no tracepoint {error.filename}"
        detail = missing if error.errno == errno.ENOENT else f"{error.filename}: {error.strerror}"
        return Finding(name=_HOLDING, present=False, detail=detail, cure=cure)
    finally:
        os.close(program)
    if given_up(pins):
        return Finding(
            name=_HOLDING,
            present=False,
            detail="the gate that is loaded found at its self-test that what is held gets away here",
            cure='Use on_missing = "kill" in every scope, and report this kernel.',
        )
    return Finding(name=_HOLDING, present=True)


def _lsm_refused(step: str, error: OSError) -> Finding:
    if error.errno == errno.ENOENT:
        cure = "Boot a kernel with CONFIG_BPF_LSM=y."
        return Finding(name=_LSM, present=False, detail="not compiled in", cure=cure)
    return Finding(
        name=_LSM,
        present=False,
        detail=f"the kernel refuses to {step} such a program: {os.strerror(error.errno or 0)}",
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


def _constraints() -> list[Finding]:
    """What constraints this host can enforce."""
    return [_tried("Landlock", require_landlock), _tried("namespaces for launches", require_namespaces)]


def _refusals_seen() -> list[Finding]:
    """Whether the kernel reports what constraints refuse. They are enforced in any case."""
    return [
        _tried("refusals seen", lambda: open_messages().close()),
        _tried("refusals by Landlock seen", require_landlock_news),
    ]


def _tried(name: str, what: Callable[[], None]) -> Finding:
    try:
        what()
    except EgsError as error:
        return Finding(name=name, present=False, detail=error.message, cure=error.next_step)
    return Finding(name=name, present=True)


def _lockdown() -> Finding:
    lockdown = _read(Path("/sys/kernel/security/lockdown"))
    return Finding(
        name="lockdown",
        present=lockdown is not None and "[none]" not in lockdown,
        detail=lockdown or "securityfs is not mounted, or the kernel has no lockdown",
        cure="Boot with lockdown=integrity, so that root cannot patch the running kernel.",
    )


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
