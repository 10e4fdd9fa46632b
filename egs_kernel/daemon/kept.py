"""What a sealed gate keeps: the instance's folders, the pins, and everything that the daemon's program consists of.

The program is an interpreter and what it loads: the folders that it imports from, the libraries that are mapped, and the
few files that decide which libraries those are. A daemon that starts while the gate is sealed may open nothing else until
it is known to be the daemon (bpf/protect.bpf.c).
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import EgsError
from egs_kernel.gate.abi import Protection
from egs_kernel.gate.seal import Kept
from egs_kernel.gate.source import source_folder
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.seal import Seal
    from egs_kernel.model import FileIdentity
    from egs_kernel.paths import Paths

READ_AT_START: Final = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
    "/usr/share/locale/locale.alias",
    "/usr/lib/locale",
)
"""Read by C library, OpenSSL and interpreter before a line of ours runs; the first says which libraries are loaded."""

_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT: Final = 4
"""proc(5), /proc/PID/mountinfo: the fifth field."""


@dataclass(frozen=True)
class Wanted:
    """What is to be kept, by path: folders with everything below them, and files. `code`: those mapped as code."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    code: tuple[Path, ...]

    @property
    def guarded(self) -> tuple[Path, ...]:
        """Folders in which nothing may be mounted over what is there."""
        return tuple(sorted({*self.folders, *(path.parent for path in self.code)}))


def wanted(paths: Paths) -> Wanted:
    """What this process and this instance consist of."""
    mapped = list(_mapped(Path("/proc/self/maps").read_text()))
    started = [path for path in map(Path, READ_AT_START) if path.exists()]
    interpreter = Path(sys.executable)
    return Wanted(
        folders=_resolved(
            [*_own_folders(paths), *_import_folders(), *(path for path in started if path.is_dir())]
        ),
        files=_resolved(
            [interpreter, *(path for path, _ in mapped), *(path for path in started if path.is_file())]
        ),
        code=_resolved([interpreter, *(path for path, executable in mapped if executable)]),
    )


def collect(paths: Paths, gate: Gate) -> Kept:
    """Everything that `Seal.register` wants to know. Looks at every file below the folders: for a thread.

    Raises:
        OSError: something of it cannot be inspected.
    """
    parts = wanted(paths)
    found: dict[tuple[int, int], Protection] = {}

    def keep(path: Path, protection: Protection) -> None:
        identity = _identify(gate, path)
        key = identity.inode, identity.device
        found[key] = found.get(key, Protection(0)) | protection

    for path in (*parts.folders, *parts.files, *_hard_linked(parts.folders, paths.pins)):
        keep(path, Protection.CONTENT)
    for folder in {above for path in (*parts.folders, *parts.files) for above in path.parents}:
        keep(folder, Protection.PLACE)
    return Kept(
        files=found,
        program=_identify(gate, Path(sys.executable).resolve()),
        argv=tuple(Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]),
        task=TaskIdentity(os.getpid(), start_ticks(os.getpid())),
        namespace=_namespace("self"),
        host_namespace=_namespace("1"),
    )


def require_own_view(paths: Paths, seal: Seal) -> None:
    """The paths of a daemon that started while the gate was sealed lead where the gate says that they do.

    Raises:
        EgsError: PATH_UNSAFE; something else is mounted over them in this mount namespace.
    """
    parts = wanted(paths)
    mounts = [Path(point) for point in _mount_points(Path("/proc/self/mountinfo").read_text())]
    for folder in parts.folders:
        _require(folder, Protection.CONTENT in _protection(seal, folder))
    for folder in parts.guarded:
        for mount in mounts:
            if mount.is_relative_to(folder) or folder.is_relative_to(mount):
                _require(mount, bool(_protection(seal, mount)))


def _require(path: Path, kept: bool) -> None:  # noqa: FBT001 - reads as a sentence where it is called
    if not kept:
        raise EgsError(
            Reason.PATH_UNSAFE,
            f"the gate is sealed, and {path} is not what was there when it was",
            f"Look what is mounted there: findmnt -T {path}. If it belongs there: egs unseal FILE",
        )


def _own_folders(paths: Paths) -> list[Path]:
    return [paths.config_dir, paths.state_dir, paths.run_dir, paths.pins]


def _import_folders() -> list[Path]:
    """Where this process imports from, its virtual environment, and the C that `egs gate load` compiles."""
    folders = [Path(entry) for entry in sys.path if entry and Path(entry).is_dir()]
    if sys.prefix != sys.base_prefix:
        folders.append(Path(sys.prefix))
    return [*folders, Path(__file__).parents[1], source_folder()]


def _resolved(found: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted({path.resolve() for path in found if path.exists()}))


def _mapped(maps: str) -> Iterator[tuple[Path, bool]]:
    """The files in a /proc/PID/maps, and whether each is mapped as code. What was replaced since is meant by its name."""
    for line in maps.splitlines():
        _, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if int(inode) and name:
            yield Path(name[0].removesuffix(" (deleted)")), "x" in permissions


def _mount_points(mountinfo: str) -> Iterator[str]:
    for line in mountinfo.splitlines():
        yield _OCTAL.sub(lambda match: chr(int(match[1], 8)), line.split()[_MOUNT_POINT])


def _hard_linked(folders: tuple[Path, ...], without: Path) -> Iterator[Path]:
    """Files with another name, which may be anywhere."""
    outermost = [
        folder for folder in folders if folder != without and not any(up in folders for up in folder.parents)
    ]
    for folder in outermost:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if path.lstat().st_nlink > 1:
                    yield path


def _identify(gate: Gate, path: Path) -> FileIdentity:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return gate.identify(descriptor)
    finally:
        os.close(descriptor)


def _protection(seal: Seal, path: Path) -> Protection:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return seal.protection(descriptor)
    finally:
        os.close(descriptor)


def _namespace(process: str) -> int:
    return Path(f"/proc/{process}/ns/mnt").stat().st_ino
