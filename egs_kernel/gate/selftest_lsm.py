"""The self-test of the tier `lsm`: scripts, code, and files that are opened for writing.

A folder of our own is made a trusted library root for it; what lies beside it is not trusted. What a process may map
is asked of processes that run under an artifact of ours and try it.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from egs_kernel.gate import abi
from egs_kernel.gate.grants import raw_identity
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.specimen import (
    EXIT_CODE,
    REFUSED,
    SHELL,
    Child,
    arm,
    drain,
    exec_event,
    fail,
    read_file,
    same,
)
from egs_kernel.model import FileIdentity, Reason, Verdict

_ARTIFACT: Final = "e5" * 32
_KEY: Final = int.from_bytes(bytes.fromhex(_ARTIFACT)[:8], "little")
_FOLDERS: Final = ("/var/tmp", "/tmp", "/dev/shm", "/root")  # noqa: S108 - a folder of our own is made there, if one executes
_SCRIPT: Final = f"#!{SHELL}\nexit {EXIT_CODE}\n"
_CODE: Final = b"\xc3" * mmap.PAGESIZE
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_SOMEBODY: Final = 1
_MAPPED: Final = 31
"""Exit code of a specimen that was let map what it asked for."""


def _check_scripts(gate: Gate) -> Iterator[str]:
    """The same grant for the shell: refused for a script that the artifact does not name, and given for one it does."""
    with _folder() as place:
        folder = Path(place)
        script = folder / "script"
        script.write_text(_SCRIPT)
        script.chmod(0o700)
        _same_end(gate, script, REFUSED, (Verdict.DENY, Reason.SCRIPT_UNAUTHORIZED))
        yield "a script that the artifact does not name is refused"
        _name(gate, script)
        _same_end(gate, script, EXIT_CODE, (Verdict.ALLOW, Reason.AUTHORIZED))
        yield "a script that it names runs"


def _same_end(gate: Gate, script: Path, end: int, verdict: tuple[Verdict, Reason]) -> None:
    with Child(command=(str(script), str(script))) as child:
        arm(gate, child, artifact=_ARTIFACT, argv=None)
        status, _ = child.finish()
    event = exec_event(gate, child.pid)
    gate.disarm(child.pid)
    gate.forget(event.grant_id)
    same("verdict on a script", (event.verdict, event.reason), verdict)
    same("end of a script", os.waitstatus_to_exitcode(status), end)


def _check_code(gate: Gate) -> Iterator[str]:
    with _folder() as place:
        folder = Path(place)
        trusted, other = folder / "trusted", folder / "other"
        for root in (trusted, other):
            (root / "below").mkdir(parents=True)
            (root / "below/code").write_bytes(_CODE)
        open_to_all = trusted / "open"
        open_to_all.write_bytes(_CODE)
        open_to_all.chmod(0o666)
        owned = trusted / "owned"
        _write_as_somebody(owned)
        key = _key(_identity(gate, trusted))
        gate.library_folders.put(key, ctypes.c_uint32(1))
        try:
            yield from _check_mappings(
                gate, trusted / "below/code", (other / "below/code", open_to_all, owned)
            )
        finally:
            gate.library_folders.delete(key)
    yield from _check_memory(gate)


def _write_as_somebody(file: Path) -> None:
    """A file of another user's. Not by chown(2): egs-gate.service may become somebody, and may not give away files."""
    file.parent.chmod(0o777)
    folder = os.open(file.parent, os.O_PATH | os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(_SOMEBODY)
            os.write(os.open(file.name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=folder), _CODE)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(folder)
    same("a file of another user's", (os.waitpid(child, 0)[1], file.stat().st_uid), (0, _SOMEBODY))


def _check_mappings(gate: Gate, library: Path, others: tuple[Path, ...]) -> Iterator[str]:
    same("code below a library root", _try(gate, lambda: _map(library)), _MAPPED)
    yield "code below a library root is mapped"
    for other in others:
        same(f"code at {other.name}", _try(gate, lambda path=other: _map(path)), REFUSED)  # type: ignore[misc]
        same(f"code at {other.name}, by mprotect", _try(gate, lambda path=other: _protect(path)), REFUSED)  # type: ignore[misc]
    yield "other code is refused"
    _name(gate, others[0])
    same("code that the artifact names", _try(gate, lambda: _map(others[0])), _MAPPED)
    yield "code that the artifact names is mapped"


def _check_memory(gate: Gate) -> Iterator[str]:
    same("memory of no file", _try(gate, lambda: _map(None)), _MAPPED)
    refuse = abi.TaskFlag.REFUSE_ANONYMOUS_CODE
    same("refused memory of no file", _try(gate, lambda: _map(None), refuse), REFUSED)
    same("refused memory of no file, by mprotect", _try(gate, lambda: _protect(None), refuse), REFUSED)
    same("a changed page of a library", _try(gate, _change_library, refuse), REFUSED)
    same("an unchanged page of a library", _try(gate, lambda: _protect(_library()), refuse), _MAPPED)
    yield "executable memory of no file is refused where the artifact refuses it"


def _check_writers(gate: Gate) -> Iterator[str]:
    with _folder() as place:
        folder = Path(place)
        file = folder / "measured"
        file.write_bytes(_CODE)
        key = _key(_identity(gate, file))
        gate.measured_files.put(key, ctypes.c_uint64(0))
        try:
            file.read_bytes()
            same("a measured file that was read", _opened(gate, key), 0)
            file.open("ab").close()
            same("a measured file that was opened for writing", _opened(gate, key) > 0, True)
        finally:
            gate.measured_files.delete(key)
    yield "a measured file that is opened for writing is noticed"


def check_lsm(gate: Gate) -> Iterator[str]:
    """What this tier has beside the tracepoint; each check in words.

    Raises:
        GateError: SELF_TEST_FAILED, with the first difference.
    """
    try:
        for check in (_check_scripts, _check_code, _check_writers):
            yield from check(gate)
    finally:
        _forget(gate)


def _name(gate: Gate, path: Path) -> None:
    """Let our artifact name a file."""
    identity = _identity(gate, path)
    digest = (ctypes.c_uint8 * 32)(*bytes.fromhex(_digest(path)))
    gate.measured_files.put(_key(identity), ctypes.c_uint64(0))
    gate.subjects.put(
        abi.SubjectKey(artifact=_KEY, inode=identity.inode, device=identity.device),
        abi.Subject(file=raw_identity(identity), digest=digest, measured=1),
    )


def _forget(gate: Gate) -> None:
    """Leave nothing of our artifact in the gate."""
    for key in gate.subjects.keys():  # noqa: SIM118 - no dict
        if key.artifact == _KEY:
            gate.subjects.delete(key)
            gate.measured_files.delete(abi.FileKey(inode=key.inode, device=key.device))


def _try(gate: Gate, attempt: Callable[[], bool], flags: int = 0) -> int:
    """The exit code of a process that runs under our artifact and tries that."""

    def and_tell() -> None:
        os._exit(_MAPPED if attempt() else REFUSED)

    with Child(before_exec=and_tell) as child:
        gate.govern_slot(child.pid, abi.SCOPE_SELF_TEST_ENFORCE)
        gate.assume(child.pid, artifact=_KEY, flags=flags)
        status, _ = child.finish()
    drain(gate)
    return os.waitstatus_to_exitcode(status)


def _map(path: Path | None) -> bool:
    return _mmap(path, mmap.PROT_READ | mmap.PROT_EXEC) is not None


def _protect(path: Path | None) -> bool:
    address = _mmap(path, mmap.PROT_READ)
    return address is not None and _mprotect(address, mmap.PROT_READ | mmap.PROT_EXEC)


def _change_library() -> bool:
    """As text relocation does."""
    address = _mmap(_library(), mmap.PROT_READ | mmap.PROT_WRITE)
    if address is None:
        return False
    ctypes.memset(address, 0xC3, 1)
    return _mprotect(address, mmap.PROT_READ | mmap.PROT_EXEC)


def _library() -> Path:
    """The C library, which is mapped into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.rsplit(maxsplit=1)[-1])
        if path.name.startswith("libc.so"):
            return path
    return fail("no C library is mapped into the loader")


def _mmap(path: Path | None, protection: int) -> int | None:
    """The address of one private page; None when it is not permitted."""
    flags = mmap.MAP_PRIVATE if path else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    address = _LIBC.mmap(None, mmap.PAGESIZE, protection, flags, descriptor, 0)
    return None if address == _MAP_FAILED else int(address)


def _mprotect(address: int, protection: int) -> bool:
    _LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(_LIBC.mprotect(address, mmap.PAGESIZE, protection) == 0)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder on a file system from which programs may be executed."""
    for place in _FOLDERS:
        if Path(place).is_dir() and not os.statvfs(place).f_flag & os.ST_NOEXEC:
            return tempfile.TemporaryDirectory(prefix="egs-self-test-", dir=place)
    return fail(f"all of {', '.join(_FOLDERS)} are mounted noexec: there is nowhere to put a script")


def _identity(gate: Gate, path: Path) -> FileIdentity:
    return read_file(gate, str(path)).identity


def _key(identity: FileIdentity) -> abi.FileKey:
    return abi.FileKey(inode=identity.inode, device=identity.device)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _opened(gate: Gate, key: abi.FileKey) -> int:
    opened = gate.measured_files.get(key)
    return opened.value if opened is not None else -1
