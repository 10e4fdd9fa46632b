"""The self-test of the seal: a gate that keeps one folder, its own objects and this process refuses a child.

What is sealed here goes with the staging folder, whose pins are not kept: a loader that dies in between leaves nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from egs_kernel.gate import libbpf
from egs_kernel.gate.abi import Protection
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.seal import Kept
from egs_kernel.gate.specimen import drain, fail, read_file, same
from egs_kernel.model import Attempt, AttemptEvent, TaskIdentity
from egs_kernel.processes import start_ticks

_MNT_DETACH: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def check_seal(gate: Gate, pins: Path) -> Iterator[str]:
    """Each thing that a sealed gate refuses, tried by a child: sealed, and not."""
    seal = gate.seal
    if seal is None:
        return
    with tempfile.TemporaryDirectory(prefix="egs-self-test-") as place:
        folder = Path(place)
        kept = folder / "kept"
        kept.touch()
        attempts = _attempts(folder, pins)
        identity = read_file(gate, place).identity
        seal.register(
            Kept(
                files={(identity.inode, identity.device): Protection.CONTENT},
                program=identity,
                argv=(b"self-test",),
                task=TaskIdentity(os.getpid(), start_ticks(os.getpid())),
                namespace=_namespace("self"),
                host_namespace=_namespace("self"),
            )
        )
        drain(gate)
        seal.close(_namespace("self"))
        try:
            for what, attempt in attempts.items():
                same(f"{what.name.lower()}, sealed", _tried(attempt), errno.EPERM)
        finally:
            seal.remove()
        found = {event.what for event in drain(gate) if isinstance(event, AttemptEvent)}
        same("attempts reported", found, {what.name.lower() for what in attempts})
        for what, attempt in attempts.items():
            same(f"{what.name.lower()}, not sealed", _tried(attempt), 0)
    yield f"a sealed gate refuses {len(attempts)} ways to change it, and one that is not refuses none"


def _attempts(folder: Path, pins: Path) -> dict[Attempt, Callable[[], None]]:
    kept, loader = folder / "kept", os.getpid()

    def write() -> None:
        kept.open("r+b").close()

    def open_map() -> None:
        os.close(libbpf.open_pin(pins / "heartbeats"))

    def mount() -> None:
        target = os.fsencode(folder)
        _called(_LIBC.mount(b"none", target, b"tmpfs", ctypes.c_ulong(0), None))
        _called(_LIBC.umount2(target, _MNT_DETACH))

    def rename() -> None:
        kept.rename(folder / "moved").rename(kept)

    return {
        Attempt.SIGNAL: lambda: os.kill(loader, signal.SIGCONT),
        Attempt.SCHEDULE: lambda: os.sched_setscheduler(loader, os.SCHED_OTHER, os.sched_param(0)),
        Attempt.BPF: open_map,
        Attempt.WRITE: write,
        Attempt.CREATE: (folder / "other").touch,
        Attempt.RENAME: rename,
        Attempt.LINK: lambda: (folder / "link").hardlink_to(kept),
        Attempt.REMOVE: kept.unlink,
        Attempt.ATTRIBUTES: lambda: folder.chmod(0o700),
        Attempt.MOUNT: mount,
    }


def _tried(attempt: Callable[[], None]) -> int:
    """A child tries; the error that it got, or 0."""
    child = os.fork()
    if child == 0:
        error = errno.EIO
        try:
            attempt()
            error = 0
        except OSError as raised:
            error = raised.errno or errno.EIO
        finally:
            os._exit(error)
    _, status = os.waitpid(child, 0)
    if not os.WIFEXITED(status):
        fail(f"an attempt on the seal ended with status {status}")
    return os.WEXITSTATUS(status)


def _called(answer: int) -> None:
    if answer < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _namespace(process: str) -> int:
    return Path(f"/proc/{process}/ns/mnt").stat().st_ino
