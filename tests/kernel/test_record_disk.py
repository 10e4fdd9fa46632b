"""The record cannot grow: what is governed is refused, everybody else goes on, and so does the daemon when there is room.

A limit on the size of the daemon's files stands for a quota or a full disk: what fits into a file's last block would still
fit there, so a full disk refuses at no certain entry. (`tests/unit/test_record_failures.py` has full disks.)
"""

from __future__ import annotations

import resource

import pytest

from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import Outcome
from egs_kernel.audit.layout import segment_path, segments_of
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.model import Verdict
from tests.running import SECONDS, Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

DENIED = 126
"""`egs run`, when it is refused."""


def test_a_record_without_room_refuses_what_is_governed_and_nothing_else(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = str(running.issue(program))
    assert running.run("--artifact", artifact, str(program)).returncode == 0
    running.wait_for(Outcome, lambda _entry: True)  # an event that cannot be recorded ends the daemon
    folder = running.instance.paths.record
    journal = segment_path(folder, segments_of(folder)[-1])
    before = resource.prlimit(running.pid, resource.RLIMIT_FSIZE)

    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (journal.stat().st_size + 100, before[1]))
    refused = running.run("--artifact", artifact, str(program))
    assert refused.returncode == DENIED
    assert "record_unavailable" in refused.stderr
    assert running.output("/bin/true", governed=False) == (0, "")

    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, before)
    assert running.run("--artifact", artifact, str(program)).returncode == 0  # the same daemon, and no hand
    assert running.daemon is not None
    assert running.daemon.poll() is None
    running.stop()
    verify(folder, read_keys(running.instance.paths.log_keys).verifiers)


def test_what_happened_and_cannot_be_recorded_ends_the_daemon_and_the_next_one_records_it(
    running: Running,
) -> None:
    program = running.copy("/bin/true", "standing")
    running.add(running.issue(program))
    running.wait_until_standing()
    folder = running.instance.paths.record
    journal = segment_path(folder, segments_of(folder)[-1])
    before = resource.prlimit(running.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (journal.stat().st_size + 100, before[1]))

    assert running.inside(str(program)) == 0  # by its grant: nobody asks the daemon
    assert running.daemon is not None
    assert running.daemon.wait(SECONDS) != 0
    assert "record" in running.log()
    assert running.inside(str(program)) != 0  # without its heartbeat the gate refuses
    assert running.output("/bin/true", governed=False) == (0, "")

    running.start()  # as systemd does
    running.wait_for_exec(program, Verdict.ALLOW)
    running.wait_for_exec(program, Verdict.KILL)
    running.stop()
    verify(folder, read_keys(running.instance.paths.log_keys).verifiers)
