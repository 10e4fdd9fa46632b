"""The seal of a gate on the tier `lsm`: what the gate keeps while it is sealed, and who its daemon is.

The seal lives in the gate (bpf/protect.bpf.c), so it outlives the daemon. Who seals writes what is to be kept, then the
daemon, and the seal last: one write, so that nothing is ever half sealed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from egs_kernel.errors import GateError, Refused
from egs_kernel.gate import abi, libbpf
from egs_kernel.gate.grants import raw_argv
from egs_kernel.gate.parts import LSM_MAPS, MAPS, SEAL_MAPS
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from egs_kernel.model import FileIdentity, TaskIdentity

_K = TypeVar("_K")

HARMLESS_NAMES: Final = (
    "stat",
    "limits",
    "cgroup",
    "mountinfo",
    "online",
    "possible",
    "cpu.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "overcommit_memory",
)
"""Files of procfs, sysfs and cgroupfs that a starting daemon may read: nobody can choose what is in them."""

_ZERO: Final = 0


class SealState(msgspec.Struct, frozen=True):
    """Whether the gate is sealed. `lifted_until`: CLOCK_BOOTTIME nanoseconds, 0 when it is not lifted."""

    sealed: bool
    lifted_until: int

    def in_force(self, now: int) -> bool:
        """Whether the gate refuses, at that boot time in nanoseconds."""
        return self.sealed and now >= self.lifted_until

    def word(self, now: int) -> str:
        """sealed, lifted or unsealed, at that boot time."""
        if not self.sealed:
            return "unsealed"
        return "sealed" if self.in_force(now) else "lifted"


class Kept(msgspec.Struct, frozen=True):
    """What a sealed gate keeps.

    Attributes:
        files: (inode, device) → how it is kept.
        program: the daemon's program, which is its interpreter.
        argv: its arguments, as the kernel has them.
        task: its process.
        namespace: its mount namespace, by inode number.
        host_namespace: process 1's.
    """

    files: dict[tuple[int, int], abi.Protection]
    program: FileIdentity
    argv: tuple[bytes, ...]
    task: TaskIdentity
    namespace: int
    host_namespace: int


class Seal:
    """The seal of an open gate; `Gate.seal` is the one instance.

    Args:
        pins: the gate's folder of pins.
        programs: descriptors of the programs by name.
    """

    def __init__(self, pins: Path, programs: Mapping[str, int]) -> None:
        u32 = ctypes.c_uint32
        self._pins = pins
        self._read_protection = programs["read_protection"]
        fds = {name: libbpf.open_pin(pins / name) for name in SEAL_MAPS}
        self._seals = libbpf.Map(fds["seals"], u32, abi.Seal)
        self._daemons = libbpf.Map(fds["daemons"], u32, abi.Daemon)
        self._argvs = libbpf.Map(fds["daemon_argvs"], u32, abi.Argv)
        self._files = libbpf.Map(fds["protected_files"], abi.FileKey, u32)
        self._objects = libbpf.Map(fds["own_objects"], abi.ObjectKey, u32)
        self._harmless = libbpf.Map(fds["harmless_names"], abi.HarmlessKey, u32)
        self.descriptors: tuple[int, ...] = tuple(fds.values())

    def state(self) -> SealState:
        """How it is now."""
        raw = self._seals.get(ctypes.c_uint32(_ZERO)) or abi.Seal()
        return SealState(bool(raw.sealed), raw.lifted_until)

    def daemon(self) -> int:
        """The process id of the daemon that the seal knows; 0 when it is gone."""
        raw = self._daemons.get(ctypes.c_uint32(_ZERO)) or abi.Daemon()
        return int(raw.pid)

    def protection(self, fd: int) -> abi.Protection:
        """How an open file is kept, by the folders that it really lies in."""
        return abi.Protection(libbpf.run_program(self._read_protection, (fd,)))

    def register(self, kept: Kept) -> None:
        """Say what is to be kept, and who the daemon is. Nothing of it is in force before `close`.

        Raises:
            GateError: it is more than the gate has room for.
        """
        try:
            _replace(self._files, [(_file_key(*key), int(flags)) for key, flags in kept.files.items()])
            _replace(self._objects, [(key, 1) for key in self._own_objects()])
            _replace(self._harmless, [(abi.HarmlessKey(name=name.encode()), 1) for name in HARMLESS_NAMES])
            self._argvs.put(ctypes.c_uint32(_ZERO), raw_argv(kept.argv))
            self._daemons.put(
                ctypes.c_uint32(_ZERO),
                abi.Daemon(
                    program_inode=kept.program.inode,
                    program_device=kept.program.device,
                    pid=kept.task.pid,
                    start_ticks=kept.task.start_ticks,
                    namespace=kept.namespace,
                ),
            )
        except OSError as error:
            raise GateError(
                Reason.GATE_FAILED,
                f"the gate cannot keep all of it: {error}",
                f"At most {abi.PROTECTED_FILES} files and folders: install egs-kernel without hard links.",
            ) from error

    def close(self, host_namespace: int) -> None:
        """Seal: from here on only the daemon can change anything."""
        self._seals.put(ctypes.c_uint32(_ZERO), abi.Seal(sealed=1, namespace=host_namespace))

    def lift(self, until: int) -> None:
        """Refuse nothing until that boot time (nanoseconds); then the gate is sealed again by itself."""
        raw = self._seals.get(ctypes.c_uint32(_ZERO)) or abi.Seal()
        self._seals.put(
            ctypes.c_uint32(_ZERO), abi.Seal(sealed=raw.sealed, namespace=raw.namespace, lifted_until=until)
        )

    def remove(self) -> None:
        """Be not sealed at all: for the self-test, which seals what nobody uses yet."""
        self._seals.put(ctypes.c_uint32(_ZERO), abi.Seal())

    def _own_objects(self) -> list[abi.ObjectKey]:
        # Not what lies in a folder: the drift programs, which the monitor uses.
        pins = [path for path in sorted(self._pins.iterdir()) if not path.is_dir()]
        return [abi.ObjectKey(kind=_kind(path.name), id=_object_id(path)) for path in pins]


def boot_now() -> int:
    """CLOCK_BOOTTIME, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def claim(pins: Path) -> None:
    """A starting daemon's first look at the gate: when that is sealed, this makes the process its daemon.

    Raises:
        Refused: SEALED; the gate does not take it for its daemon.
    """
    try:
        os.close(libbpf.open_pin(pins / "seals"))
    except OSError as error:
        if error.errno == errno.EPERM and os.geteuid() == 0:
            raise sealed_error(
                "this process is not its daemon; another one is, or this one was started in another way, "
                "or has read something that is not kept (egs audit query --type attempt)"
            ) from error


def seal_word(pins: Path) -> str:
    """How the gate at `pins` is: sealed, lifted, unsealed; none where there is no gate that could be. For root."""
    try:
        descriptor = libbpf.open_pin(pins / "seals")
    except OSError as error:
        return "sealed" if error.errno == errno.EPERM else "none"
    table = libbpf.Map(descriptor, ctypes.c_uint32, abi.Seal)
    try:
        raw = table.get(ctypes.c_uint32(_ZERO)) or abi.Seal()
    except OSError:
        return "sealed"  # closed between the two
    finally:
        os.close(descriptor)
    return SealState(bool(raw.sealed), raw.lifted_until).word(boot_now())


def sealed_error(what: str) -> Refused:
    """The error for what a sealed gate refuses."""
    return Refused(
        Reason.SEALED,
        f"the gate is sealed: {what}",
        "Have a maintenance artifact signed (egs maintenance issue), then: egs unseal FILE",
    )


def _kind(pin: str) -> abi.ObjectKind:
    if pin.startswith("link_"):
        return abi.ObjectKind.LINK
    return abi.ObjectKind.MAP if pin in (*MAPS, *LSM_MAPS) else abi.ObjectKind.PROGRAM


def _object_id(pin: Path) -> int:
    descriptor = libbpf.open_pin(pin)
    try:
        return libbpf.object_id(descriptor)
    finally:
        os.close(descriptor)


def _file_key(inode: int, device: int) -> abi.FileKey:
    return abi.FileKey(inode=inode, device=device)


def _replace(table: libbpf.Map[_K, ctypes.c_uint32], wanted: list[tuple[_K, int]]) -> None:
    """Make a table hold these pairs, and no others."""
    present = {bytes(memoryview(key)): key for key, _ in table.items()}  # type: ignore[arg-type]  # ctypes: a buffer
    for key, value in wanted:
        present.pop(bytes(memoryview(key)), None)  # type: ignore[arg-type]  # as above
        table.put(key, ctypes.c_uint32(value))
    for key in present.values():
        table.delete(key)
