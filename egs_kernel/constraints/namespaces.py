"""A network namespace for a launcher that is held: nothing in it but a loopback, which is up.

Who is not root may make one only within a user namespace of its own, and root is put into one as well, because root
could come back otherwise. The daemon has the launcher make both (`injection.py`), so that nobody need believe it, and
writes the mapping: everybody is in it who they are outside. Nobody leaves for a namespace that they have no power in.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.proc import Status, not_attested
from egs_kernel.constraints.view import identity
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.constraints.injection import Injected

_UNSHARE: Final = 272  # on x86-64, which `injection` is for
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_GETFLAGS, _SETFLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_REQUEST: Final = struct.Struct("16sh22x")  # struct ifreq
_MOST_EXTENTS: Final = 340  # UID_GID_MAP_MAX_EXTENTS

_OVER_FILES: Final = (0, 1, 2, 3, 4, 6, 7, 21, 31)
"""CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SYS_ADMIN, SETFCAP: who has all of them is
root over everybody's files, and stays that in a user namespace that everybody is mapped in."""
NEEDED: Final = {"CAP_NET_ADMIN": 12, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETFCAP": 31}
"""What the daemon must hold to write the mapping and to bring the loopback up."""

_libc = ctypes.CDLL(None, use_errno=True)


def may_isolate() -> bool:
    """Whether this kernel has the namespaces, and this process the capabilities."""
    held = Status(os.getpid()).number("CapEff", base=16)
    there = all(Path(f"/proc/self/ns/{name}").exists() for name in ("net", "user"))
    return there and all(held >> bit & 1 for bit in NEEDED.values())


def isolate(process: Injected, meanwhile: Callable[[], None] | None = None) -> None:
    """Put the held process into user and network namespaces of its own. Irrevocable.

    Args:
        process: it.
        meanwhile: what we do while the kernel makes them, which takes it half a millisecond.

    Raises:
        Refused: the kernel permits it no user namespace, or it could not be done whole.
    """
    pid = process.pid
    status = Status(pid)
    users, groups, everybody = _mapping(status)
    answer = process.call(_UNSHARE, _NEWUSER | _NEWNET, meanwhile=meanwhile)
    if answer == -errno.EINVAL:
        raise not_attested(pid, "has several threads")
    if answer < 0:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"constraints.network.mode: this user may make no user namespace: {os.strerror(-answer)}",
            "Permit it: user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns.",
        )
    try:
        if not everybody:
            _write(pid, "setgroups", "deny")
        _write(pid, "uid_map", users)
        _write(pid, "gid_map", groups)
        with _inside(pid):
            _bring_up_loopback()
            _require_nothing_else(pid)
    except OSError as error:
        raise not_attested(
            pid, f"cannot be given a network namespace: {error.strerror}", "Run: egs doctor"
        ) from error


def network_of(pid: int) -> tuple[int, int]:
    """What the kernel knows the network namespace of a process by.

    Raises:
        Refused: it is gone.
    """
    try:
        return identity(f"/proc/{pid}/ns/net")
    except OSError as error:
        raise not_attested(pid, f"cannot be inspected: its namespaces: {error.strerror}") from error


def _mapping(status: Status) -> tuple[str, str, bool]:
    """The text of uid_map and gid_map, and whether they map everybody.

    The owner of a user namespace has all power in it, and others who are the same user outside have it as well. So it
    holds nobody but that user, unless the user is root already over everybody's files.
    """
    held = status.number("CapEff", base=16)
    users, groups = status.numbers("Uid"), status.numbers("Gid")
    if users[1] == 0 and all(held >> bit & 1 for bit in _OVER_FILES):
        whole = f"0 0 {2**32 - 1}\n"
        return whole, whole, True
    return _lines(users), _lines((*groups, *status.numbers("Groups"))), False


def _lines(numbers: tuple[int, ...]) -> str:
    distinct = sorted(set(numbers))
    if len(distinct) > _MOST_EXTENTS:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"constraints.network.mode: this user is in {len(distinct)} groups; {_MOST_EXTENTS} can be mapped",
            "Use a user that is in fewer groups.",
        )
    return "".join(f"{number} {number} 1\n" for number in distinct)


def _write(pid: int, name: str, content: str) -> None:
    Path(f"/proc/{pid}/{name}").write_text(content)


@contextlib.contextmanager
def _inside(pid: int) -> Iterator[None]:
    """This thread is in the network namespace of the process; the other threads are not."""
    with (
        Path("/proc/thread-self/ns/net").open("rb") as ours,
        Path(f"/proc/{pid}/ns/net").open("rb") as theirs,
    ):
        if os.fstat(ours.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino:
            raise not_attested(pid, "has no network namespace of its own")
        _enter(theirs.fileno())
        try:
            yield
        finally:
            _enter(ours.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SETFLAGS, _REQUEST.pack(b"lo", _UP))


def _require_nothing_else(pid: int) -> None:
    """Tunnels that the kernel puts into each namespace (sit0, tunl0) are down, and lead nowhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for _, name in socket.if_nameindex():
            answer = fcntl.ioctl(control, _GETFLAGS, _REQUEST.pack(name.encode(), 0))
            up = bool(_REQUEST.unpack(answer)[1] & _UP)
            if up != (name == "lo"):
                raise not_attested(pid, f"has a network namespace where {name} is {'up' if up else 'down'}")
