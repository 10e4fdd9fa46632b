"""Attacker's goal: run on, or run again, by what was revoked.

Claims T-32 and T-33 of docs/threat-model.md. tests/kernel/test_revocation.py has every kind of revocation, tests/unit/test_revocations.py
every rule of a list.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import ResponseEntry, Revocation
from egs_kernel.gate.cgroups import cgroup_mount
from tests.harness import BIN, PATIENCE, compile_program
from tests.refusals import REFUSED
from tests.running import SECONDS, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(int(180 * PATIENCE))]

_PTRACE_SEIZE: Final = 0x4206
NUMBERS: Final = itertools.count(1)


@contextlib.contextmanager
def running(system: Running, program: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the scope that has said a line, or repeated one: it runs."""
    with subprocess.Popen(
        [str(program), *arguments],
        preexec_fn=system.instance.cgroup.enter,
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as process:
        system.instance.reap_also(process.pid)
        try:
            repeats(process)
            yield process
        finally:
            process.kill()


def repeats(process: subprocess.Popen[str]) -> None:
    """It says a line, or repeats the one that it is told."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("word\n")
        process.stdin.flush()
    assert select.select([process.stdout], [], [], SECONDS)[0]
    assert process.stdout.readline()


def permitted(system: Running, name: str = "cat") -> tuple[Path, str]:
    """A copy of cat of its own, and the id of the artifact by which it may run."""
    program = system.copy("/bin/cat", f"{name}-{next(NUMBERS)}")
    with program.open("ab") as file:
        file.write(program.name.encode())
    return program, system.add(system.issue(program, name=f"{program.name}.json"))


def inside(system: Running) -> set[int]:
    return {int(pid) for pid in system.instance.cgroup.procs.read_text().split()}


def test_who_flees_by_forking_is_ended_and_who_flees_by_another_artifact_is_not(system: Running) -> None:
    """Four processes that fork and exit for ever, ignore every signal, and leave their session; beside them four others."""
    flee = compile_program("flee", system.folder)
    other = system.copy(str(flee), "other")
    with other.open("ab") as file:
        file.write(b"other")
    fleeing, _ = (system.add(system.issue(program, name=f"{program.name}.json")) for program in (flee, other))
    with running(system, other, "4"):
        with running(system, flee, "4"):
            assert len(inside(system)) >= 8
            system.instance.egs("revoke", fleeing)
        response = [entry for entry in system.entries(ResponseEntry) if entry.artifact_id == fleeing][-1]
        assert (response.verified, response.processes >= 4) == (True, True)
        left = {exe(pid) for _ in range(20) for pid in inside(system)}
        assert left - {""} == {str(other)}
        system.instance.clear_cgroup()


def exe(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


@pytest.mark.parametrize("hiding", ["stopped", "in another cgroup", "traced"])
def test_wherever_it_hides(system: Running, hiding: str) -> None:
    program, artifact_id = permitted(system)
    with running(system, program) as process, contextlib.ExitStack() as stack:
        if hiding == "stopped":
            process.send_signal(signal.SIGSTOP)
        elif hiding == "traced":
            assert ctypes.CDLL(None).ptrace(_PTRACE_SEIZE, process.pid, 0, 0) == 0
        else:
            elsewhere = cgroup_mount() / f"egs-elsewhere-{os.getpid()}"
            elsewhere.mkdir()
            stack.callback(elsewhere.rmdir)
            stack.callback(process.wait)
            (elsewhere / "cgroup.procs").write_text(f"{process.pid}\n")
        system.instance.egs("revoke", artifact_id)
        assert process.wait(SECONDS) == -signal.SIGKILL


def test_nobody_is_ended_who_only_bears_a_number(system: Running) -> None:
    """Processes come and go beside while one artifact after the other is revoked; none of them dies of it."""
    stop = threading.Event()
    ends: list[int] = []

    def churn() -> None:
        while not stop.is_set():
            ends.append(subprocess.run(["/bin/true"], check=False).returncode)

    churners = [threading.Thread(target=churn) for _ in range(2)]
    for churner in churners:
        churner.start()
    try:
        for _ in range(3):
            program, artifact_id = permitted(system)
            with running(system, program) as process:
                system.instance.egs("revoke", artifact_id)
                assert process.wait(SECONDS) == -signal.SIGKILL
    finally:
        stop.set()
        for churner in churners:
            churner.join()
    assert ends
    assert set(ends) == {0}


def test_a_launch_that_is_under_way(system: Running) -> None:
    """Launches come all the while; when the command has returned, none of them runs."""
    program = system.copy("/bin/cat", "launched")
    artifact = system.issue(program, name="launched.json")
    identifier = json.loads(system.instance.egs("show", str(artifact), "--json").stdout)["id"]
    command = [str(BIN / "egs"), "run", "--artifact", str(artifact), "--", str(program)]
    launches: list[subprocess.Popen[bytes]] = []
    for number in range(6):
        launches.append(
            subprocess.Popen(command, env=system.instance.environment, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        )
        if number == 0:
            assert launches[0].stdin is not None
            assert launches[0].stdout is not None
            launches[0].stdin.write(b"word\n")
            launches[0].stdin.flush()
            assert launches[0].stdout.readline() == b"word\n"
    system.instance.egs("revoke", identifier)
    assert not [pid for pid in inside(system) if exe(pid) == str(program)]
    outcomes = set()
    for launch in launches:
        launch.communicate(timeout=SECONDS)
        outcomes.add(launch.returncode)
    assert outcomes <= {-signal.SIGKILL, 126}
    assert launches[0].returncode == -signal.SIGKILL


def test_killing_the_daemon_in_the_middle(system: Running) -> None:
    """Once the record says it, no crash takes it back: the next daemon ends what the last one did not."""
    program, artifact_id = permitted(system)
    with running(system, program) as process:
        os.kill(system.pid, signal.SIGSTOP)
        revoke = subprocess.Popen(
            [str(BIN / "egs"), "revoke", artifact_id], env=system.instance.environment, stderr=PIPE
        )
        os.kill(system.pid, signal.SIGCONT)
        system.wait_for(Revocation, lambda entry: entry.thing == artifact_id)
        system.stop(signal.SIGKILL)
        revoke.communicate(timeout=SECONDS)
        system.start()
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert system.inside(str(program), "--version") == REFUSED.code


def test_the_same_by_another_key_another_file_or_another_name(system: Running) -> None:
    program, artifact_id = permitted(system)
    system.instance.egs("keys", "generate", "--name", "again", "--out", str(system.folder))
    public = str(system.folder / "again.pub")
    system.instance.egs("trust", "add", public, "--role", "issuer", "--scope", "test")
    system.instance.egs("reload")
    system.instance.egs("revoke", artifact_id)
    file = system.folder / f"{program.name}.json"
    system.instance.egs("sign", str(file), "--key", str(system.folder / "again.key"))
    refused = system.run("--artifact", str(file), str(program), "--version")
    assert (refused.returncode, "[revoked]" in refused.stderr) == (126, True)

    system.instance.egs("revoke", f"subject:{program}")
    copied = Path(shutil.copy2(program, system.folder / "by-another-name"))
    fresh = system.issue(copied, name="fresh.json", key="again")
    refused = system.run("--artifact", str(fresh), str(copied), "--version")
    assert (refused.returncode, "[revoked]" in refused.stderr) == (126, True)


def test_an_older_list_however_it_comes(system: Running) -> None:
    """By the command it is refused; in the place of the newer one, as from a backup, it stops everything in its scope."""
    system.instance.egs("keys", "generate", "--name", "revoker", "--out", str(system.folder))
    public = str(system.folder / "revoker.pub")
    system.instance.egs("trust", "add", public, "--role", "revoker", "--scope", "test")
    system.instance.egs("reload")
    revoked, artifact_id = permitted(system)
    other, other_id = permitted(system)
    key = str(system.folder / "revoker.key")
    old, new = system.folder / "old.json", system.folder / "new.json"
    system.instance.egs("revocations", "issue", "--key", key, "--scope", "test", "--out", str(old))
    system.instance.egs(
        *("revocations", "issue", "--key", key, "--after", str(old)),
        *("--revoke", artifact_id, "--out", str(new)),
    )
    system.instance.egs("revocations", "add", str(old))
    kept = system.instance.paths.revocations / "list-test.json"
    backup = kept.read_bytes()
    system.instance.egs("revocations", "add", str(new))
    assert system.inside(str(revoked), "--version") == REFUSED.code
    assert system.inside(str(other), "--version") == 0
    assert system.instance.egs("revocations", "add", str(old), check=False).returncode == 1
    system.stop()
    kept.write_bytes(backup)
    system.start()
    for program in (revoked, other):
        assert system.inside(str(program), "--version") == REFUSED.code
    assert "missing" in system.artifacts()[other_id]["message"]
    system.instance.egs("revocations", "add", str(new))
    deadline = time.monotonic() + SECONDS
    while system.artifacts()[other_id]["state"] != "standing":
        assert time.monotonic() < deadline
    assert system.inside(str(other), "--version") == 0
    assert system.inside(str(revoked), "--version") == REFUSED.code
