"""Attacker's goal: make the daemon fail, hang, tell secrets or serve somebody as somebody else, by its socket.

Claims T-7 and T-10 of docs/threat-model.md. tests/unit/test_server.py has clients that never read, half messages and descriptors;
tests/kernel/test_launch.py has launchers that lie.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.daemon import protocol
from egs_kernel.daemon.server import CONNECTIONS_PER_USER, READ_SECONDS
from egs_kernel.gate.pins import Gate
from tests.adversarial.arena import EVIDENCE, NOBODY, clone, compile_word, execute, read_to_end
from tests.harness import BIN
from tests.running import Running, ask_raw

pytestmark = pytest.mark.kernel

CONNECTIONS: Final = 1000


def as_user(uid: int, act: Callable[[], int]) -> int:
    """Do something in a process of another user; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            code = act()
        except BaseException:  # noqa: BLE001 - a forked test process must not go on as a second pytest
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def answer_of(client: socket.socket) -> protocol.Answer:
    reader = protocol.FrameReader()
    while (content := reader.next_frame()) is None:
        data = client.recv(65536)
        assert data, "the daemon hung up without an answer"
        reader.feed(data)
    return protocol.decode_answer(content)


def serves(system: Running) -> bool:
    return json.loads(system.instance.egs("status", "--json").stdout)["healthy"] is True


def test_garbage(system: Running) -> None:
    """500 messages of every kind of nonsense, each answered or hung up on, none of them harmful."""
    source = random.Random(7)  # noqa: S311 - the same nonsense every time
    good = protocol.encode(protocol.StatusRequest())
    memory = json.loads(system.instance.egs("status", "--json").stdout)["details"]["resident_bytes"]
    for number in range(500):
        content = bytearray(good if number % 2 else source.randbytes(source.randrange(1, 200)))
        for _ in range(source.randrange(1, 6)):
            content[source.randrange(len(content))] = source.randrange(256)
        client = ask_raw(system.instance.paths.socket, bytes(content))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
        client.close()
    assert serves(system)
    after = json.loads(system.instance.egs("status", "--json").stdout)["details"]["resident_bytes"]
    assert after - memory < 4_000_000


@pytest.mark.parametrize(
    "content",
    [
        b'{"op":"status","op":"reload"}',
        b'{"op":"status","as":"root"}',
        b'{"op":"launch","program":"/bin/true","argv":["true"],"uid":0}',
        b'{"op":"launch","program":"/bin/true","argv":"true"}',
        b'{"op":"ready"}',
        b"[" * 100_000,
    ],
)
def test_requests_that_say_more_than_they_may(system: Running, content: bytes) -> None:
    client = ask_raw(system.instance.paths.socket, protocol.frame(content))
    answer = answer_of(client)
    client.close()
    assert isinstance(answer, protocol.Failure)
    assert answer.reason == "protocol_error"


def test_a_thousand_connections(system: Running) -> None:
    """One user takes what one user may have. Root and other users are served meanwhile."""
    path = system.instance.paths.socket

    def connect_often() -> int:
        clients = []
        began = time.monotonic()
        for _ in range(CONNECTIONS):
            clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            clients[-1].connect(str(path))  # waits while the daemon has not accepted those before
        # On a slow machine the first have said nothing for so long that others may take their places.
        rounds = 1 + int((time.monotonic() - began) / READ_SECONDS)
        refused = 0
        for client in clients[CONNECTIONS_PER_USER:]:
            answer = answer_of(client)
            refused += isinstance(answer, protocol.Failure) and answer.reason == "not_permitted"
        os.write(full, b"1")
        os.read(go_on, 1)
        return 0 if refused >= CONNECTIONS - CONNECTIONS_PER_USER * rounds else 3

    filled, full = os.pipe()
    go_on, done = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(as_user(NOBODY, connect_often))
    os.close(full)
    try:
        assert os.read(filled, 1) == b"1"
        assert serves(system)
        ask = protocol.encode(protocol.StatusRequest())

        def ask_status() -> int:
            return 0 if isinstance(answer_of(ask_raw(path, ask)), protocol.StatusAnswer) else 3

        assert as_user(NOBODY - 1, ask_status) == 0
    finally:
        os.write(done, b"1")
        _, status = os.waitpid(child, 0)
        for descriptor in (filled, go_on, done):
            os.close(descriptor)
    assert os.waitstatus_to_exitcode(status) == 0


def test_what_is_root_s_is_refused_to_others_whatever_they_say(system: Running) -> None:
    """Who asks is the kernel's word: there is no field in which one could say to be somebody else."""
    program = system.copy("/bin/true", "stands")
    artifact = system.add(system.issue(program))
    for request in (
        protocol.RevokeRequest(id=artifact),
        protocol.RemoveArtifactRequest(id=artifact),
        protocol.AddArtifactRequest(artifact=b"{}"),
        protocol.ReloadRequest(),
        protocol.ArtifactsRequest(),
    ):
        content = protocol.encode(request)

        def ask(content: bytes = content) -> int:
            answer = answer_of(ask_raw(system.instance.paths.socket, content))
            return 0 if isinstance(answer, protocol.Failure) and answer.reason == "not_permitted" else 3

        assert as_user(NOBODY, ask) == 0, request
    assert system.inside(str(program)) == 0


def test_the_daemon_does_not_hash_for_others_what_they_may_not_read(system: Running) -> None:
    """A descriptor opened with O_PATH proves no right to read, and the digest of a short secret is the secret."""
    secret = system.folder / "secret"
    secret.write_text("1234")
    descriptor = os.open(secret, os.O_PATH)
    secret.chmod(0o600)
    request = protocol.encode(protocol.LaunchRequest(program=str(secret), argv=("x",)))

    def ask() -> int:
        answer = answer_of(ask_raw(system.instance.paths.socket, request, [descriptor]))
        assert isinstance(answer, protocol.Failure)
        return 0 if "03ac6742" not in answer.message and answer.reason == "not_permitted" else 3

    assert as_user(NOBODY, ask) == 0
    os.close(descriptor)


def test_launchers_that_vanish_leave_no_trap_for_others(system: Running) -> None:
    """Whoever gets the number of a launcher that died at once is no more governed than anybody."""
    program, evil = system.copy("/bin/true", "vanishing"), compile_word("evil", system.folder / "bystander")
    artifact = system.issue(program).read_bytes()
    request = protocol.LaunchRequest(program=str(program), argv=(str(program),), artifact=artifact)
    descriptor = os.open(program, os.O_PATH)
    numbers = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            ask_raw(system.instance.paths.socket, protocol.encode(request), [descriptor])
            os._exit(0)
        os.waitpid(child, 0)
        numbers.append(child)
    os.close(descriptor)
    assert serves(system)
    reading, writing = os.pipe()
    for number in numbers:
        if (child := clone(0, set_tid=number)) == 0:
            os.dup2(writing, EVIDENCE)
            execute(evil)
        os.waitpid(child, 0)
    os.close(writing)
    ran = read_to_end(reading)
    os.close(reading)
    assert ran == b"evil" * len(numbers)
    gate = Gate.open(system.instance.paths.pins)
    assert not gate.armed()
    gate.close()


def test_a_user_s_launches_run_as_that_user_only(system: Running) -> None:
    """An artifact without a user is for whoever asks; its grant is for nobody else."""
    program = system.copy("/usr/bin/id", "id")
    artifact = system.issue(program)
    done = system.as_nobody(str(BIN / "egs"), "run", "--artifact", str(artifact), str(program), "-u")
    assert (done.returncode, done.stdout) == (0, f"{NOBODY}\n"), done.stderr
    assert Path(program).stat().st_uid == 0
