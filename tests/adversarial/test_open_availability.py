"""Open on every tier of this version: a local user can delay other people's launches.

Point O-12 of docs/threat-model.md. The test shows that the attack works. If it fails that is good news: then the
point moves from "open" to a claim.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from egs_kernel.daemon import protocol
from tests.harness import BIN
from tests.running import Running, ask_raw

pytestmark = pytest.mark.kernel

TERABYTES = 1 << 40
PATIENCE = 3
"""Seconds. Without the attack a launch takes some 40 ms."""


def test_o12_huge_files_keep_the_daemon_hashing(system: Running) -> None:
    """A hole of ten terabytes costs no disk. What is measured already goes on; nothing new is authorized."""
    program, known = system.copy("/bin/true", "new"), system.copy("/bin/true", "known")
    artifact = system.issue(program)
    standing = system.copy("/bin/cat", "standing")
    system.add(system.issue(standing, name="standing.json"))
    launch = [str(BIN / "egs"), "run", "--artifact", str(artifact)]
    assert system.run("--artifact", str(artifact), str(known)).returncode == 0
    clients = []
    for number in range(4):
        huge = system.folder / f"huge-{number}"
        huge.touch(mode=0o755)
        os.truncate(huge, 10 * TERABYTES)
        descriptor = os.open(huge, os.O_PATH)
        request = protocol.LaunchRequest(program=str(huge), argv=("huge",))
        clients.append(ask_raw(system.instance.paths.socket, protocol.encode(request), [descriptor]))
        os.close(descriptor)

    victim = subprocess.Popen([*launch, str(program)], env=system.instance.environment)
    with pytest.raises(subprocess.TimeoutExpired):
        victim.wait(PATIENCE)

    assert system.inside(str(standing), "/dev/null") == 0, "the gate does not need the daemon's threads"
    assert system.instance.egs("status").returncode == 0
    victim.kill()
    victim.wait()
    for client in clients:
        client.close()
    system.stop(signal.SIGKILL)
    system.start()
    assert system.run("--artifact", str(artifact), str(program)).returncode == 0
