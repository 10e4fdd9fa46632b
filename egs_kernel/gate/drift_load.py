"""Loading the drift programs: beside the gate, in a process of their own, while the gate proves itself.

They come after the gate's maps are pinned, as they look up `tasks`, and before the staging folder moves to its place.
The compiler is handed in: only the loader imports bcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
from typing import TYPE_CHECKING, Final, Protocol, Self

from egs_kernel.errors import EgsError, GateError, HostLacks
from egs_kernel.gate import btf, drift_abi, libbpf
from egs_kernel.gate.drift import FOLDER, MAPS, MODULE_TRACEPOINTS, TRACEPOINTS, DriftGate
from egs_kernel.gate.drift_calls import calls_by_number
from egs_kernel.gate.inventory import note_objects
from egs_kernel.gate.manifest import DriftManifest
from egs_kernel.gate.selftest_drift import prove_drift
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from egs_kernel.gate.pins import Gate

    Compiler = Callable[[str, list[str]], "Module"]


class Descriptor(Protocol):
    """A map or a program, as bcc has it."""

    map_fd: int
    fd: int


class Module(Protocol):
    """What bcc makes of a text; which only the loader imports."""

    RAW_TRACEPOINT: int

    def __getitem__(self, name: bytes) -> Descriptor:
        """A map."""

    def load_func(self, name: bytes, kind: int) -> Descriptor:
        """A program, as the kernel has accepted it."""


SOURCE: Final = "drift.bpf.c"
_ANSWER: Final = 64 * 1024


class Loading:
    """The process that compiles and pins them; leave it as a context, and it is gone.

    Args:
        staging: the gate's folder of pins, which has its maps already.
        source: the folder of the C.
        compiler: text and flags to a module.
    """

    def __init__(self, staging: Path, source: Path, compiler: Compiler) -> None:
        self._answer, answer = os.pipe()
        self._reaped = False
        self._pid = os.fork()
        if self._pid == 0:
            _load_and_say(staging, source, compiler, answer)
        os.close(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it is not done."""
        os.close(self._answer)
        if not self._reaped:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def finish(self) -> None:
        """Wait until they are attached and pinned.

        Raises:
            HostLacks: this kernel cannot have them, and why.
        """
        said = b""
        while chunk := os.read(self._answer, _ANSWER):
            said += chunk
        os.waitpid(self._pid, 0)
        self._reaped = True
        if said != _DONE:
            message = said.decode(errors="replace") or "the process that loads them died"
            raise HostLacks(
                Reason.KERNEL_UNSUPPORTED,
                f"the drift programs cannot be loaded: {message}",
                'Set drift.events = "auto" in egs.toml to go on without them (sweeps alone), and report this kernel.',
            )


_DONE: Final = b"\0"


def finish_drift(
    loading: Loading, gate: Gate, staging: Path, *, required: bool
) -> tuple[DriftManifest, tuple[str, ...]]:
    """The drift programs, proven, and what was checked; or why there are none. The gate enforces without them.

    Args:
        loading: under way.
        gate: the staged gate, proven.
        staging: its folder of pins.
        required: there is no gate without them.

    Raises:
        GateError: they are required, and cannot be had or do not see what there is.
    """
    try:
        loading.finish()
        with contextlib.closing(DriftGate.open(staging)) as drift:
            note_objects(staging, drift)
            checks = prove_drift(gate, drift)
            drift.reset_counters()
            return DriftManifest(abi_version=drift_abi.ABI_VERSION, programs=drift.tags()), checks
    except EgsError as error:
        if required:
            raise
        shutil.rmtree(staging / FOLDER, ignore_errors=True)
        return DriftManifest(abi_version=drift_abi.ABI_VERSION, missing=error.message), ()


def _load_and_say(staging: Path, source: Path, compiler: Compiler, answer: int) -> None:
    """Load, say how it went, and end: this is a copy of the loader, whose clean-up is not for it."""
    said = b"it was interrupted"
    try:
        _load(staging, source, compiler)
        said = _DONE
    except EgsError as error:
        said = error.message.encode()
    except OSError as error:
        said = str(error).encode()
    finally:
        os.write(answer, said)
        os._exit(0)


def _load(staging: Path, source: Path, compiler: Compiler) -> None:
    types = btf.KernelTypes()
    try:
        places = btf.drift_offsets(types)
        modules = types.has_tracepoint(MODULE_TRACEPOINTS["drift_module"])
    finally:
        types.close()
    if not modules:
        places.pop("OFF_module_name", None)
    flags = [f"-D{name}={value}" for name, value in places.items()]
    module = compiler(
        f'#line 1 "{SOURCE}"\n{(source / SOURCE).read_text()}', [f'-DEGS_PINS="{staging}"', *flags]
    )
    folder = staging / FOLDER
    folder.mkdir(mode=0o700)
    for name in MAPS:
        libbpf.pin(module[name.encode()].map_fd, folder / name)
    _write_settings(module)
    for name, tracepoint in (TRACEPOINTS | (MODULE_TRACEPOINTS if modules else {})).items():
        program = _program(module, name)
        libbpf.pin(program, folder / name)
        link = libbpf.attach_raw_tracepoint(tracepoint, program)
        libbpf.pin(link, folder / f"link_{name}")
        os.close(link)


def _program(module: Module, name: str) -> int:
    try:
        return int(module.load_func(name.encode(), module.RAW_TRACEPOINT).fd)
    except Exception as error:  # bcc raises bare Exception
        raise GateError(
            Reason.KERNEL_UNSUPPORTED,
            f"the kernel does not accept program {name}: {error}",
            "Run: egs doctor",
        ) from error


def _write_settings(module: Module) -> None:
    u32 = ctypes.c_uint32
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> int:
            descriptor = os.dup(module[name.encode()].map_fd)
            stack.callback(os.close, descriptor)
            return descriptor

        config = libbpf.Map(opened("drift_configs"), u32, drift_abi.Config)
        config.put(u32(0), drift_abi.Config(abi_version=drift_abi.ABI_VERSION))
        calls = libbpf.Map(opened("drift_calls"), u32, drift_abi.Call)
        for number, call in calls_by_number().items():
            calls.put(u32(number), call)
