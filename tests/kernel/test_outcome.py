"""An outcome tells how a process ended and what it used, as wait4(2) tells its parent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from egs_kernel.audit.entries import ArtifactChange, Exec, Outcome
from egs_kernel.model import Verdict
from tests.harness import compile_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.running import Running

pytestmark = pytest.mark.kernel


@pytest.fixture
def program(running: Running) -> Path:
    compiled = compile_program("use", running.folder, "-pthread")
    running.add(running.issue(compiled))
    return compiled


def start(running: Running, *command: str) -> int:
    """A governed process, as a child of this one."""
    pid = os.fork()
    if pid == 0:
        try:
            running.instance.cgroup.enter()
            os.execv(command[0], command)
        finally:
            os._exit(99)
    running.instance.reap_also(pid)
    return pid


def outcome_of(running: Running, pid: int) -> Outcome:
    return running.wait_for(Outcome, lambda entry: entry.event.pid == pid)


def test_exit_code_signal_time_and_memory(running: Running, program: Path) -> None:
    pid = start(running, str(program), "64", "60")
    _, status, used = os.wait4(pid, 0)
    ended = outcome_of(running, pid)
    assert (ended.exit_code, ended.signal, ended.event.status) == (3, None, status)
    assert ended.event.max_rss_bytes == used.ru_maxrss * 1024 > 64 << 20
    assert ended.event.cpu_nanoseconds > 110_000_000  # of both threads
    assert ended.event.cpu_nanoseconds / 1e9 == pytest.approx(used.ru_utime + used.ru_stime, abs=0.03)

    pid = start(running, str(program), "1", "60000")
    running.wait_for(Exec, lambda entry: entry.event.pid == pid and entry.event.verdict is Verdict.ALLOW)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    ended = outcome_of(running, pid)
    assert (ended.exit_code, ended.signal) == (None, "SIGKILL")


def test_an_artifact_that_came_with_a_launch_is_in_the_record_once(running: Running) -> None:
    """Who verifies the decision later needs it."""
    artifact = running.issue(running.copy("/bin/true", "program"))
    for _ in range(2):
        assert running.run("--artifact", str(artifact), "--", str(running.folder / "program")).returncode == 0
    presented = [entry for entry in running.entries(ArtifactChange) if entry.action == "presented"]
    assert [entry.envelope for entry in presented] == [artifact.read_text()]
