"""Who is at the other end of a Unix socket: as the kernel says, never as the message says.

A `Peer` holds a pidfd. While that is not readable the process has not exited, so a pid read before and
checked after belongs to it and not to a successor that got the same number.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from egs_kernel.errors import Refused
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks

if TYPE_CHECKING:
    from types import TracebackType

_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77  # since Linux 6.5
_CREDENTIALS: Final = struct.Struct("=iII")
_GROUPS_BUFFER: Final = 1024


@dataclass(frozen=True)
class Peer:
    """The process that connected. Close it (it is a context manager): it holds a pidfd."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    task: TaskIdentity
    pidfd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.pidfd)

    @property
    def is_root(self) -> bool:
        """Whether administration is permitted."""
        return self.uid == 0

    def alive(self) -> bool:
        """Whether the process has not exited yet."""
        return is_alive(self.pidfd)


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected this socket.

    Raises:
        Refused: it has gone, or it lives in a pid namespace that this process cannot see.
    """
    pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if pid == 0:
        raise Refused(
            Reason.NOT_PERMITTED,
            "the asking process lives in a pid namespace that the daemon cannot see",
            "Ask from the host's pid namespace.",
        )
    pidfd = _peer_pidfd(connection, pid)
    try:
        peer = Peer(uid, gid, _groups(connection, pid, gid), _task(pid), pidfd)
        _require_same_process(peer)
    except BaseException:
        os.close(pidfd)
        raise
    return peer


def _task(pid: int) -> TaskIdentity:
    try:
        return TaskIdentity(pid, start_ticks(pid))
    except ProcessLookupError as error:
        raise _gone() from error


def is_alive(pidfd: int) -> bool:
    """Whether the process of `pidfd` has not exited yet."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def _require_same_process(peer: Peer) -> None:
    """What was read under the peer's pid was the peer's, if it still lives and runs as the same user."""
    try:
        owner = (
            Path(f"/proc/{peer.task.pid}").stat().st_uid
        )  # root's, too, for a process that is not dumpable
    except OSError as error:
        raise _gone() from error
    if owner not in (peer.uid, 0) or not peer.alive():
        raise _gone()


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A pidfd of the peer; before Linux 6.5 by pid.

    By pid, a successor with the same number could be meant when the peer exited at once. `peer_of` then
    still requires that it runs as the peer's user: one could only ask in the name of one's own processes.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass  # ENOPROTOOPT before 6.5; anything else shows again below
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise _gone() from error


def _groups(connection: socket.socket, pid: int, gid: int) -> tuple[int, ...]:
    try:
        content = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BUFFER)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return _many_groups(pid, gid)
    supplementary = struct.unpack(f"={len(content) // 4}I", content)
    return tuple(sorted({gid, *supplementary}))


def _many_groups(pid: int, gid: int) -> tuple[int, ...]:
    """For a peer in more groups than fit into the buffer that Python's getsockopt can pass."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise _gone() from error
    line = next(line for line in status.splitlines() if line.startswith("Groups:"))
    return tuple(sorted({gid, *(int(group) for group in line.split()[1:])}))


def _gone() -> Refused:
    return Refused(Reason.LAUNCHER_LOST, "the asking process has gone")
