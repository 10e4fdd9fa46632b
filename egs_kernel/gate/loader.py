"""`egs gate load`: compile with bcc, pin, prove, enforce. The only module that imports bcc.

A short-lived root process. Until the very last step everything lives in a staging folder, so a loader that
dies leaves the host as it was.

1. compile bpf/ with the offsets of the running kernel;
2. load every program (the kernel's verifier agrees) and pin maps and programs;
3. attach and pin the links; no scope exists yet, so nothing is refused;
4. self-test: what the gate sees is what user space knows, and a kill kills (selftest.py). Since the maps are pinned,
   another process has been loading the drift programs (drift_load.py), which are tested then;
5. configure the scopes; processes that are inside already become governed;
6. move the staging folder to its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.config import Config, DriftEvents
from egs_kernel.errors import EgsError, GateError, HostLacks
from egs_kernel.gate import abi, btf, libbpf, tiers
from egs_kernel.gate.drift_load import Loading, finish_drift
from egs_kernel.gate.headers import write_headers
from egs_kernel.gate.inventory import take_inventory
from egs_kernel.gate.libraries import apply_library_roots
from egs_kernel.gate.manifest import DriftManifest, Manifest, read_manifest, write_manifest
from egs_kernel.gate.parts import (
    GUARDS,
    HOOKS,
    LSM_MAPS,
    MAPS,
    SLEEPABLE,
    called_of,
    can_skip,
    function_of,
    tracepoints_of,
)
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.scopes import apply_scopes
from egs_kernel.gate.selftest import run_self_test
from egs_kernel.gate.selftest_guards import prove_exec_guard, prove_hold
from egs_kernel.gate.selftest_seal import check_seal
from egs_kernel.gate.source import gate_source, source_folder
from egs_kernel.gate.variables import variables_table
from egs_kernel.model import Reason, Tier
from egs_kernel.paths import BPFFS, Paths

if TYPE_CHECKING:
    from bcc import BPF

_BPF_FS_MAGIC: Final = 0xCAFE4A11


@dataclass(frozen=True)
class Loaded:
    """The result of a load."""

    manifest: Manifest
    already: bool
    checks: tuple[str, ...]


def load_gate(paths: Paths, config: Config) -> Loaded:
    """Load the gate, or find that this version is loaded and bring its scopes up to date.

    Raises:
        GateError: this host cannot, the self-test failed, or another version is loaded. Nothing is left behind.
    """
    if os.geteuid() != 0:
        raise GateError(Reason.NOT_PERMITTED, "only root can load the gate", "Run: sudo egs gate load")
    _require_no_realtime()
    _require_bpffs()
    if (paths.pins / "gate_configs").exists():
        return _update(paths, config)
    staging = paths.pins.with_name(paths.pins.name + "-loading")
    _discard(staging)
    staging.mkdir(mode=0o700)
    try:
        gate, checks, drift = _stage(staging, config, _plan(config))
        manifest = _manifest(gate, drift, take_inventory(staging))
        write_manifest(paths.gate_manifest, manifest)
        gate.close()
        staging.rename(paths.pins)
    except BaseException:
        _discard(staging)
        raise
    return Loaded(manifest, already=False, checks=checks)


def unload_gate(paths: Paths) -> bool:
    """Detach and remove the gate; False when none was loaded. Governed processes are governed no more."""
    staging = paths.pins.with_name(paths.pins.name + "-loading")
    _discard(staging)
    found = paths.pins.is_dir()
    _end_held(paths.pins)
    _discard(paths.pins)
    paths.gate_manifest.unlink(missing_ok=True)
    return found


def _end_held(pins: Path) -> None:
    """What waits for an authorization must not be anybody's to continue once the guards are gone."""
    try:
        gate = Gate.open(pins)
    except GateError:
        return  # no gate, or a broken or foreign one: it has to go all the same
    for task in gate.holds.held():
        gate.holds.end(task.pid, task.execution)
    gate.close()


def _update(paths: Paths, config: Config) -> Loaded:
    gate = Gate.open(paths.pins)
    try:
        _require_same_tier(gate, config)
        apply_library_roots(gate, config.library_roots)
        apply_scopes(gate, config)
        return Loaded(read_manifest(paths.gate_manifest), already=True, checks=())
    finally:
        gate.close()


def _require_same_tier(gate: Gate, config: Config) -> None:
    if config.tier not in (None, gate.tier):
        raise GateError(
            Reason.GATE_VERSION_MISMATCH,
            f"the gate is loaded on tier {gate.tier.value}, and egs.toml wants {config.tier.value}",
            "Run: egs gate unload && egs gate load",
        )


@dataclass(frozen=True)
class Plan:
    """What to load: the tier, and whether the gate has the kernel hash each file that is executed."""

    tier: Tier
    digests: bool

    @property
    def flags(self) -> list[str]:
        """For the compiler."""
        defined = {"EGS_LSM": self.tier is Tier.LSM, "EGS_IMA": self.digests, "EGS_CAN_SKIP": can_skip()}
        return [f"-D{name}=1" for name, wanted in defined.items() if wanted]

    def config(self) -> abi.Config:
        """For the gate."""
        tier = abi.Tier.LSM if self.tier is Tier.LSM else abi.Tier.TRACEPOINT
        return abi.Config(abi_version=abi.ABI_VERSION, tier=tier, digests=self.digests)


TRACEPOINT_PLAN: Final = Plan(Tier.TRACEPOINT, digests=False)


def _plan(config: Config) -> Plan:
    """The tier that is configured, or the best that the host offers.

    Raises:
        HostLacks: it offers less than what is configured.
    """
    if config.tier is Tier.TRACEPOINT:
        return TRACEPOINT_PLAN
    btf.KernelTypes().close()  # without types every other lack would be said in their stead
    lsm = tiers.lsm_finding()
    if lsm.present:
        return Plan(Tier.LSM, digests=config.exec_digest and tiers.digest_finding().present)
    if config.tier is Tier.LSM:
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            f'tier = "lsm" is configured, but this host has none: {lsm.detail}',
            lsm.cure,
        )
    return TRACEPOINT_PLAN


def _stage(staging: Path, config: Config, plan: Plan) -> tuple[Gate, tuple[str, ...], DriftManifest | None]:
    module = _compile_and_pin_maps(staging, plan)
    with contextlib.ExitStack() as stack:
        loading = None
        if config.drift.events is not DriftEvents.OFF:
            loading = stack.enter_context(Loading(staging, source_folder(), _compile_text))
        _attach_and_pin(module, staging, plan)
        gate = Gate.open(staging)
        try:
            settings = plan.config()
            settings.grace_ns = config.daemon_grace * 1_000_000_000
            gate.configs.put(ctypes.c_uint32(0), settings)
            apply_library_roots(gate, config.library_roots)
            gate.refuse_variables(variables_table())
            checks = _prove(gate, staging, config)
            drift = None
            if loading is not None:
                required = config.drift.events is DriftEvents.REQUIRED
                drift, more = finish_drift(loading, gate, staging, required=required)
                checks = (*checks, *more)
            gate.stop_beating()
            gate.reset_counters()
            apply_scopes(gate, config)
        except BaseException:
            gate.close()
            raise
    return gate, checks, drift


def _prove(gate: Gate, staging: Path, config: Config) -> tuple[str, ...]:
    try:
        return (
            *run_self_test(gate),
            *prove_exec_guard(gate, staging),
            *check_seal(gate, staging),
            *_prove_hold(gate, config),
        )
    except OSError as error:
        raise GateError(
            Reason.SELF_TEST_FAILED,
            f"the gate's self-test could not be made; nothing is enforced: {error}",
            "Run it as root, with the capabilities that egs-gate.service has; /tmp and /var/tmp must be writable.",
        ) from error


def _prove_hold(gate: Gate, config: Config) -> tuple[str, ...]:
    """A kernel on which holding does not work may enforce all the same, as long as nobody asks it to hold."""
    try:
        return (prove_hold(gate),)
    except EgsError:
        if any(scope.holds for scope in config.scopes):
            raise
        gate.holds.give_up()
        return ()


def _compile_and_pin_maps(staging: Path, plan: Plan) -> BPF:
    module = _compile(source_folder(), plan)
    for name in (*MAPS, *(LSM_MAPS if plan.tier is Tier.LSM else ())):
        libbpf.pin(module[name.encode()].map_fd, staging / name)
    return module


def _attach_and_pin(module: BPF, staging: Path, plan: Plan) -> None:
    tracepoints = tracepoints_of(plan.tier)
    for name in (*tracepoints, *GUARDS, *called_of(plan.tier)):
        program = _load_program(module, name)
        libbpf.pin(program, staging / name)
        if name in tracepoints:
            link = libbpf.attach_raw_tracepoint(tracepoints[name], program)
            libbpf.pin(link, staging / f"link_{name}")
            os.close(link)
    if plan.tier is Tier.LSM:
        _attach_hooks(module, staging, plan)
    _write_config(module, plan)
    module.cleanup()


def _attach_hooks(module: BPF, staging: Path, plan: Plan) -> None:
    for name, hook in HOOKS.items():
        sleepable = plan.digests and name in SLEEPABLE
        code = module.dump_func(function_of(name).encode())
        try:
            program = libbpf.load_lsm(name, hook, code, sleepable=sleepable)
            libbpf.pin(program, staging / name)
            link = libbpf.attach_lsm(program)
        except OSError as error:
            raise GateError(
                Reason.KERNEL_UNSUPPORTED,
                f"the kernel does not accept program {name}: {error}",
                'Set tier = "tracepoint" in egs.toml, and report this kernel.',
            ) from error
        libbpf.pin(link, staging / f"link_{name}")
        os.close(link)
        os.close(program)


def _write_config(module: BPF, plan: Plan) -> None:
    table = libbpf.Map(os.dup(module[b"gate_configs"].map_fd), ctypes.c_uint32, abi.Config)
    table.put(ctypes.c_uint32(0), plan.config())
    os.close(table.descriptor)


def _compile(source: Path, plan: Plan = TRACEPOINT_PLAN) -> BPF:
    _import_bcc()  # what is missing first is said first
    types = btf.KernelTypes()
    try:
        offsets = btf.gate_offsets(types)
    finally:
        types.close()
    flags = [*plan.flags, *(f"-D{name}={value}" for name, value in offsets.items())]
    return _compile_text(gate_source(source), flags)


def _compile_text(text: str, flags: list[str]) -> BPF:
    bpf = _import_bcc()
    with tempfile.TemporaryDirectory(prefix="egs-headers-") as headers:
        write_headers(Path(headers))
        os.environ["BCC_KERNEL_SOURCE"] = headers
        try:
            return bpf(text=text.encode(), cflags=[f"-I{source_folder()}", *flags])
        except Exception as error:  # bcc raises bare Exception
            raise GateError(
                Reason.GATE_FAILED,
                f"the gate does not compile: {error}",
                "The compiler's messages are above; report them.",
            ) from error
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def _load_program(module: BPF, name: str) -> int:
    try:
        return int(module.load_func(name.encode(), module.RAW_TRACEPOINT).fd)
    except Exception as error:  # bcc raises bare Exception
        raise GateError(
            Reason.KERNEL_UNSUPPORTED,
            f"the kernel does not accept program {name}: {error}",
            "Run: egs doctor",
        ) from error


def _import_bcc() -> type[BPF]:
    try:
        from bcc import BPF  # noqa: PLC0415 - only the loader pays for LLVM
    except ImportError as error:
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            "bcc is not installed",
            "Run: apt-get install python3-bpfcc  (PyPI's bcc is another project)",
        ) from error
    return BPF  # type: ignore[no-any-return]  # bcc ships no types


def _manifest(gate: Gate, drift: DriftManifest | None, objects: dict[str, str]) -> Manifest:
    return Manifest(
        abi_version=abi.ABI_VERSION,
        kernel=os.uname().release,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        tier=gate.tier,
        digests=gate.digests,
        programs=gate.programs(),
        drift=drift,
        objects=objects,
    )


def _require_no_realtime(flag: Path = Path("/sys/kernel/realtime")) -> None:
    """Raw tracepoints must not be preempted (bpf/gate.bpf.c, struct scratch)."""
    if flag.exists() and flag.read_text().strip() == "1":
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            "this kernel is a real-time one (PREEMPT_RT): the gate could be skipped",
            "Boot a kernel without PREEMPT_RT.",
        )


def _require_bpffs() -> None:
    """Mount /sys/fs/bpf when the system did not."""
    if BPFFS.is_dir() and _filesystem_magic(BPFFS) == _BPF_FS_MAGIC:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        error = os.strerror(ctypes.get_errno())
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            f"cannot mount bpffs at {BPFFS}: {error}",
            f"Run: mount -t bpf bpf {BPFFS}",
        )


def _filesystem_magic(path: Path) -> int:
    """statfs(2) f_type, which os.statvfs does not tell."""
    buffer = (ctypes.c_long * 32)()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        return 0
    return int(buffer[0])


def _discard(pins: Path) -> None:
    """Remove a pin folder; the last reference to a link detaches it."""
    if pins.is_dir():
        shutil.rmtree(pins)
