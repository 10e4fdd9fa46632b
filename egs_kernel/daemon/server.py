"""The socket's edge: accepts, limits, reads and answers; what a request means is decided elsewhere.

Every wait has a limit and every user a number of connections, so a client that sends garbage, half a
message, or never reads, costs one slot of its own user for a few seconds, and nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon import protocol
from egs_kernel.errors import EgsError, Refused, UsageError
from egs_kernel.model import Reason
from egs_kernel.peers import Peer, peer_of

if TYPE_CHECKING:
    from pathlib import Path

READ_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 5.0
CONNECTIONS_PER_USER: Final = 32
CONNECTIONS: Final = 256
_ACCEPT_PAUSE_SECONDS: Final = 0.1
_CHUNK: Final = 64 * 1024
_FDS: Final = 4


class Connection:
    """One client: its credentials, and messages both ways with time limits."""

    def __init__(self, connected: socket.socket, peer: Peer) -> None:
        self._socket = connected
        self._frames = protocol.FrameReader()
        self._descriptors: list[int] = []
        self.peer = peer

    async def receive(self, seconds: float = READ_SECONDS) -> protocol.Request:
        """The next request.

        Raises:
            Refused: none came whole within `seconds`, the client hung up, or it is not our protocol.
        """
        try:
            async with asyncio.timeout(seconds):
                content = await self._next_frame()
        except TimeoutError as error:
            raise protocol.protocol_error(f"no whole request came within {seconds:g} seconds") from error
        return protocol.decode_request(content)

    async def _next_frame(self) -> bytes:
        while (content := self._frames.next_frame()) is None:
            data = await self._receive_some()
            if not data:
                raise protocol.protocol_error("the connection ended in the middle of a message")
            self._frames.feed(data)
        return content

    async def _receive_some(self) -> bytes:
        while True:
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, _CHUNK, _FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await wait_readable(self._socket.fileno())
                continue
            except OSError as error:
                raise protocol.protocol_error(f"the connection broke: {error.strerror}") from error
            self._descriptors += descriptors
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > 1:
                raise protocol.protocol_error("a message brings at most one file descriptor")
            return data

    def take_descriptor(self) -> int | None:
        """The file descriptor that came with the messages so far; the caller closes it."""
        return self._descriptors.pop() if self._descriptors else None

    async def send(
        self, answer: protocol.Answer, descriptors: Sequence[int] = (), seconds: float = WRITE_SECONDS
    ) -> None:
        """Send an answer, and with its first byte copies of these descriptors.

        Raises:
            Refused: the client does not read it, or hung up.
        """
        loop = asyncio.get_running_loop()
        content = protocol.encode(answer)
        try:
            if descriptors:  # nothing was sent before that could fill the socket's buffer
                content = content[socket.send_fds(self._socket, [content], list(descriptors)) :]
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(self._socket, content)
        except (TimeoutError, OSError) as error:
            raise Refused(Reason.LAUNCHER_LOST, "the client went away before its answer") from error

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._socket.close()


Serve = Callable[[Connection], Awaitable[None]]


class Server:
    """Listens on the Unix socket and gives each connection to `serve`, in a task of its own.

    `serve` reads the request and answers; an `EgsError` that it raises is sent as the answer.
    """

    def __init__(self, path: Path, serve: Serve) -> None:
        self._path = path
        self._serve = serve
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._per_user: Counter[int] = Counter()

    def start(self) -> None:
        """Bind the socket and accept. The caller holds the lock of the run folder: a socket here is stale.

        Raises:
            UsageError: the path cannot be a socket's.
        """
        self._path.unlink(missing_ok=True)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"cannot listen on {self._path}: {error.strerror or error}",
                "A socket's path has at most 107 bytes: choose a shorter EGS_ROOT.",
            ) from error
        self._path.chmod(
            0o666
        )  # anyone may ask; what is permitted is decided by the kernel's word for who asks
        listener.listen(128)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def stop(self) -> None:
        """Take no more connections and end those that are open."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        if self._listener is None:
            return
        loop = asyncio.get_running_loop()
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors or memory left: those who are connected first, then the next one
            loop.remove_reader(self._listener.fileno())
            loop.call_later(_ACCEPT_PAUSE_SECONDS, self._accept_again)
            return
        connected.setblocking(False)
        task = loop.create_task(self._converse(connected))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept_again(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    async def _converse(self, connected: socket.socket) -> None:
        try:
            with peer_of(connected) as peer:
                await self._converse_with(Connection(connected, peer))
        except (Refused, OSError):
            pass  # it has gone before anything was said: there is nobody to tell
        finally:
            connected.close()

    async def _converse_with(self, connection: Connection) -> None:
        uid = connection.peer.uid
        self._per_user[uid] += 1
        try:
            self._require_room(uid)
            await self._serve(connection)
        except EgsError as error:
            with contextlib.suppress(Refused):  # a client that is not there any more has no use for the error
                await connection.send(protocol.failure(error))
        finally:
            connection.close()
            self._per_user[uid] -= 1
            if not self._per_user[uid]:
                del self._per_user[uid]

    def _require_room(self, uid: int) -> None:
        mine, all_of_them = self._per_user[uid], self._per_user.total()
        # Root is not counted out: an operator must get in when users fill the daemon.
        if uid != 0 and (mine > CONNECTIONS_PER_USER or all_of_them > CONNECTIONS):
            raise Refused(
                Reason.NOT_PERMITTED,
                f"too many connections: user {uid} has {mine - 1}, all users together {all_of_them - 1}",
                "Wait for the others to end, then try again.",
            )


async def wait_readable(descriptor: int) -> None:
    """Returns when `descriptor` is readable (a pidfd: when its process has exited)."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
