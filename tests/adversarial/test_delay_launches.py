"""Keep the daemon hashing, so that other people's launches wait.

Claim T-18 of docs/threat-model.md.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from egs_kernel.daemon import protocol
from egs_kernel.daemon.programs import MAX_PROGRAM
from egs_kernel.launch import main as launch
from tests.running import Running, ask_raw

pytestmark = pytest.mark.kernel

TERABYTE = 1 << 40
NOBODY = 65534
PATIENCE = 20
"""Seconds. Without the attack a launch takes some 40 ms."""


def present(system: Running, size: int, number: int) -> socket.socket:
    """Ask for a launch of a file that is one hole: it costs no disk."""
    huge = system.folder / f"huge-{number}"
    huge.touch(mode=0o755)
    os.truncate(huge, size)
    descriptor = os.open(huge, os.O_PATH)
    try:
        request = protocol.LaunchRequest(program=str(huge), argv=("huge",))
        return ask_raw(system.instance.paths.socket, protocol.encode(request), [descriptor])
    finally:
        os.close(descriptor)


def launch_as_nobody(system: Running, artifact: Path, program: Path) -> int:
    """Another user's launch: its exit code. Forked, as that user may not be able to read this checkout."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(PATIENCE)
            os.environ.update(system.instance.environment)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(launch(["--artifact", str(artifact), str(program)]))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_files_of_terabytes_are_refused_unread(system: Running) -> None:
    program = system.copy("/bin/true", "new")
    artifact = system.issue(program)
    artifact.chmod(0o644)
    clients = [present(system, 10 * TERABYTE, number) for number in range(4)]

    assert launch_as_nobody(system, artifact, program) == 0
    for client in clients:
        client.settimeout(PATIENCE)
        assert b"program_too_large" in client.recv(65536)
        client.close()


def test_a_user_with_many_large_files_waits_alone(system: Running) -> None:
    """Twelve of the largest size keep one thread busy; somebody else's launch is over before they are."""
    program = system.copy("/bin/true", "new")
    artifact = system.issue(program)
    artifact.chmod(0o644)
    clients = [present(system, MAX_PROGRAM, number) for number in range(12)]

    assert launch_as_nobody(system, artifact, program) == 0

    clients[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
        clients[-1].recv(1)
    for client in clients:
        client.close()
