"""The daemon's socket against clients that do not behave. Real sockets, real credentials."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pytest

from egs_kernel import peers
from egs_kernel.daemon import protocol, server
from egs_kernel.daemon.server import Connection, Server
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.processes import parse_start_ticks, start_ticks

STATUS = protocol.encode(protocol.StatusRequest())


async def echo(connection: Connection) -> None:
    """Answers a status request with what was received."""
    request = await connection.receive(seconds=0.3)
    await connection.send(protocol.Done(message=type(request).__name__), seconds=0.3)


class Serving:
    """A server on a path, for the length of a `with`."""

    def __init__(self, path: Path, serve: server.Serve = echo) -> None:
        self.path = path
        self.server = Server(path, serve)

    async def __aenter__(self) -> Self:
        self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(self, content: bytes) -> protocol.Answer:
        reader, writer = await self.connect()
        writer.write(content)
        answer = await read_answer(reader)
        writer.close()
        return answer


async def read_answer(reader: asyncio.StreamReader) -> protocol.Answer:
    async with asyncio.timeout(10):
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        return protocol.decode_answer(await reader.readexactly(length))


def failure_reason(answer: protocol.Answer) -> str:
    assert isinstance(answer, protocol.Failure), answer
    return answer.reason


def test_a_request_is_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Serving(tmp_path / "s") as serving:
            assert await serving.ask(STATUS) == protocol.Done(message="StatusRequest")
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o666

    asyncio.run(scenario())
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\0\0\0\0",
        protocol.frame(b"{}"),
        protocol.frame(b'{"op":"nonsense"}'),
        STATUS[:-1],  # half a message, then silence
        b"",  # never says anything
    ],
)
def test_bad_clients_are_told_and_harm_nobody(tmp_path: Path, content: bytes) -> None:
    async def scenario() -> None:
        async with Serving(tmp_path / "s") as serving:
            bad, good = await asyncio.gather(serving.ask(content), serving.ask(STATUS))
            assert failure_reason(bad) == "protocol_error"
            assert isinstance(good, protocol.Done)

    asyncio.run(scenario())


def test_a_client_that_hangs_up_in_the_middle(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Serving(tmp_path / "s") as serving:
            _, writer = await serving.connect()
            writer.write(STATUS[:5])
            writer.close()
            assert isinstance(await serving.ask(STATUS), protocol.Done)

    asyncio.run(scenario())


async def send_all(connection: Connection, answers: Iterable[protocol.Answer]) -> None:
    for answer in answers:
        await connection.send(answer, seconds=0.2)


def test_a_client_that_never_reads_is_dropped(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def flood(connection: Connection) -> None:
        await connection.receive()
        answers = (protocol.Done(message="x" * 500_000) for _ in range(100))
        with pytest.raises(Refused) as refused:
            await send_all(connection, answers)
        assert refused.value.reason is Reason.LAUNCHER_LOST
        ended.set()

    async def scenario() -> None:
        async with Serving(tmp_path / "s", flood) as serving:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(serving.path))
            client.send(STATUS)
            async with asyncio.timeout(10):
                await ended.wait()
            client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [2, 200])
def test_more_than_one_descriptor_is_refused_and_none_is_kept(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with Serving(tmp_path / "s") as serving:
            read, write = os.pipe()
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(serving.path))
            socket.send_fds(client, [STATUS[:3]], [write] * count)
            os.close(write)
            reader, writer = await asyncio.open_connection(sock=client)
            assert failure_reason(await read_answer(reader)) == "protocol_error"
            async with asyncio.timeout(10):
                assert await asyncio.to_thread(os.read, read, 1) == b"", "a copy of the pipe is still open"
            os.close(read)
            writer.close()

    asyncio.run(scenario())


def test_a_user_has_so_many_connections_and_root_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_PER_USER", 2)
    asked_by = 1000

    def peer_of(connected: socket.socket) -> peers.Peer:
        peer = peers.peer_of(connected)
        return peers.Peer(asked_by, peer.gid, peer.groups, peer.task, peer.pidfd)

    monkeypatch.setattr(server, "peer_of", peer_of)

    async def scenario() -> None:
        nonlocal asked_by
        async with Serving(tmp_path / "s") as serving, contextlib.AsyncExitStack() as idle:
            for _ in range(2):
                _, writer = await serving.connect()
                idle.callback(writer.close)
            assert failure_reason(await serving.ask(STATUS)) == "not_permitted"
            asked_by = 0
            assert isinstance(await serving.ask(STATUS), protocol.Done)

    asyncio.run(scenario())


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "s"))
    stale.close()

    async def scenario() -> None:
        async with Serving(tmp_path / "s") as serving:
            assert isinstance(await serving.ask(STATUS), protocol.Done)

    asyncio.run(scenario())


def test_the_peer_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with peers.peer_of(ours) as peer:
        assert (peer.uid, peer.gid, peer.task.pid) == (os.getuid(), os.getgid(), os.getpid())
        assert set(peer.groups) == {os.getgid(), *os.getgroups()}
        assert peer.task.start_ticks == start_ticks(os.getpid())
        assert peer.alive()
    ours.close()
    theirs.close()


def test_a_peer_that_is_gone(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    child = os.fork()
    if child == 0:
        socket.socket(socket.AF_UNIX).connect(str(tmp_path / "s"))
        os._exit(0)
    connected, _ = listener.accept()
    os.waitpid(child, 0)
    with pytest.raises(Refused):
        peers.peer_of(connected)
    connected.close()
    listener.close()


@pytest.mark.parametrize("name", [b"sh", b"a) b", b"(sd-pam)", b") R 1 2"])
def test_start_times_whatever_the_name_of_the_process(name: bytes) -> None:
    fields = [b"S", *(b"%d" % number for number in range(4, 53))]
    assert parse_start_ticks(b"17 (" + name + b") " + b" ".join(fields)) == 22
