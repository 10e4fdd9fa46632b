"""Revocation, with the real gate and daemon: each kind denies the next exec, ends what runs, and outlasts a restart."""

from __future__ import annotations

import hashlib
import itertools
import json
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final

import pytest

from egs_kernel.audit.entries import FindingEntry, ResponseEntry, Revocation, RevocationListChange
from egs_kernel.cli.client import ask
from egs_kernel.daemon import protocol
from egs_kernel.findings import Finding
from egs_kernel.model import Tier, Verdict
from tests.harness import PATIENCE, Instance
from tests.refusals import REFUSED, TIER
from tests.running import SECONDS, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(int(180 * PATIENCE))]

NUMBERS: Final = itertools.count(1)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running system that trusts the key `revoker` for lists of its scope."""
    folder = tmp_path_factory.mktemp("revocation")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    instance = Instance.create(folder / "egs")
    try:
        (folder / "work").mkdir(mode=0o755)
        running = Running(instance, folder / "work")
        try:
            trust(running, "revoker", "revoker")
            yield running
        finally:
            running.close()
    finally:
        instance.close()


def trust(system: Running, name: str, role: str) -> str:
    """A new key with this role; its id."""
    system.instance.egs("keys", "generate", "--name", name, "--out", str(system.folder))
    public = str(system.folder / f"{name}.pub")
    added = system.instance.egs("trust", "add", public, "--role", role, "--scope", "test", "--json")
    system.instance.egs("reload")
    return str(json.loads(added.stdout)["keyid"])


@contextmanager
def started(system: Running, *command: str | Path, word: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process in the scope, once it runs: it has said the word, or what it was told."""
    with subprocess.Popen(
        [str(part) for part in command],
        preexec_fn=system.instance.cgroup.enter,
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as process:
        system.instance.reap_also(process.pid)
        try:
            if word:
                assert hears(process) == f"{word}\n"
            else:
                repeats(process, "word")
            yield process
        finally:
            process.kill()


def repeats(process: subprocess.Popen[str], word: str) -> None:
    """It runs: it repeats what it is told."""
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    assert hears(process) == f"{word}\n"


def hears(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0]
    return process.stdout.readline()


def standing(system: Running, name: str, *more: str, key: str = "issuer") -> tuple[Path, str]:
    """A copy of cat, with other bytes than every other one, that may run in the scope; and its artifact's id."""
    program = system.copy("/bin/cat", name)
    with program.open("ab") as file:
        file.write(name.encode())
    return program, system.add(system.issue(program, *more, name=f"{name}.json", key=key))


def of(system: Running, kind: type[Any], artifact_id: str) -> list[Any]:
    """The entries of a type that are about this artifact."""
    return [entry for entry in system.entries(kind) if entry.artifact_id == artifact_id]


@pytest.mark.parametrize("kind", ["artifact", "key", "subject", "policy"])
def test_each_kind_denies_the_next_exec_and_ends_what_runs(system: Running, kind: str) -> None:
    status = json.loads(system.instance.egs("status", "--json").stdout)
    policy = str(status["details"]["policy_digest"])
    keyid = trust(system, f"signs-{kind}", "issuer")
    program, artifact_id = standing(
        system, f"by-{kind}", *(("--policy-digest", policy) if kind == "policy" else ()), key=f"signs-{kind}"
    )
    things = {
        "artifact": artifact_id,
        "key": f"key:{keyid}",
        "subject": f"subject:{hashlib.sha256(program.read_bytes()).hexdigest()}",
        "policy": f"policy:{policy}",
    }
    beside, _ = standing(system, f"beside-{kind}")
    with started(system, program) as process, started(system, beside) as other:
        answer = system.instance.egs("revoke", things[kind], "--why", "a drill")
        # It is over when the command returns: neither the process nor the grant is waited for.
        assert process.poll() == -signal.SIGKILL
        assert "1 processes ran by it" in answer.stdout
        assert system.inside(str(program), "--version") == REFUSED.code
        repeats(other, "what is not revoked goes on")
        assert system.inside(str(beside), "--version") == 0
    refused = system.run("--artifact", str(system.folder / f"by-{kind}.json"), str(program))
    assert (refused.returncode, "[revoked]" in refused.stderr) == (126, True), refused.stderr
    entry = system.entries(Revocation)[-1]
    assert (entry.kind, entry.why, entry.peer is not None) == (kind, "a drill", True)
    (finding,) = of(system, FindingEntry, artifact_id)
    (response,) = of(system, ResponseEntry, artifact_id)
    assert finding.finding is (Finding.KEY_REVOKED if kind == "key" else Finding.ARTIFACT_REVOKED)
    assert (finding.response, finding.rule) == ("terminate", "default")
    assert (response.verified, response.processes, response.number) == (True, 1, finding.number)


def test_a_revoked_host_runs_nothing_and_no_restart_revives_anything(running: Running) -> None:
    program, artifact_id = standing(running, "program")
    assert running.inside(str(program), "--version") == 0
    running.instance.egs("revoke", "host:test-host")
    assert running.inside(str(program), "--version") == REFUSED.code
    running.stop(signal.SIGKILL)
    running.start()
    assert running.inside(str(program), "--version") == REFUSED.code
    item = running.artifacts()[artifact_id]
    assert (item["state"], "this host (test-host) was revoked at" in item["message"]) == ("revoked", True)


def test_in_a_scope_that_only_observes_nothing_is_ended(system: Running) -> None:
    program, artifact_id = standing(system, "observed")
    system.instance.configure(mode="observe")
    system.instance.egs("reload")
    with started(system, program) as process:
        system.instance.egs("revoke", artifact_id)
        repeats(process, "still here")
    system.instance.configure()
    system.instance.egs("reload")
    (response,) = of(system, ResponseEntry, artifact_id)
    assert (response.response, response.processes) == ("alert", 1)


def test_a_key_that_is_revoked_in_the_trust_folder_ends_what_runs_at_the_reload(system: Running) -> None:
    keyid = trust(system, "in-store", "issuer")
    program, artifact_id = standing(system, "in-store-program", key="in-store")
    with started(system, program) as process:
        system.instance.egs("trust", "revoke", keyid)
        system.instance.egs("reload")
        assert process.poll() == -signal.SIGKILL
    (finding,) = of(system, FindingEntry, artifact_id)
    assert finding.finding is Finding.KEY_REVOKED


def test_a_whole_tree_ends_and_nobody_else(system: Running) -> None:
    """What runs under an artifact of its own, what was started by something that has ended, and what left the session."""
    leaf, _ = standing(system, "leaf")
    setsid = system.copy("/usr/bin/setsid", "setsid")
    system.add(system.issue(setsid, name="setsid.json"))
    shell = system.copy("/bin/sh", "shell")
    script = f"exec 3<&0; ({leaf} <&3 & {leaf} <&3 &); {setsid} {leaf} <&3 & echo started; wait"
    bound = [word for part in (str(shell), "-c", script) for word in ("--argv", part)]
    shell_id = system.add(system.issue(shell, *bound, name="shell.json"))
    beside = started(system, leaf)
    with beside as other, started(system, shell, "-c", script, word="started") as tree:
        system.wait_for_exec(leaf, Verdict.ALLOW, 4)
        system.instance.egs("revoke", shell_id)
        assert tree.poll() == -signal.SIGKILL
        repeats(other, "still here")
        alive = {int(pid) for pid in system.instance.cgroup.procs.read_text().split()}
        assert alive == {other.pid}
    (response,) = of(system, ResponseEntry, shell_id)
    assert (response.verified, response.response, response.processes >= 4) == (True, "terminate", True)


@pytest.mark.parametrize(
    "constraints", ["", "[resources]\nwallSeconds = 600\n"], ids=["", "in its own cgroup"]
)
def test_an_execution_that_was_launched_ends_after_a_restart_of_the_daemon(
    system: Running, constraints: str
) -> None:
    """Its artifact was presented, and is in no folder: the next daemon finds it in the record."""
    program = system.copy("/bin/cat", f"launched-{bool(constraints)}")
    with program.open("ab") as grown:
        grown.write(program.name.encode())
    file = system.folder / "launched.toml"
    file.write_text(constraints)
    more = ("--constraints", str(file)) if constraints else ()
    artifact = system.issue(program, *more, name="launched.json")
    egs = str(Path(sys.executable).with_name("egs"))
    command = [egs, "run", "--artifact", str(artifact), "--", str(program)]
    with subprocess.Popen(
        command, env=system.instance.environment, stdin=PIPE, stdout=PIPE, text=True
    ) as launched:
        repeats(launched, "word")
        system.stop()
        system.start()
        system.instance.egs("revoke", f"subject:{program}")
        assert launched.wait(SECONDS) == -signal.SIGKILL
    response = system.entries(ResponseEntry)[-1]
    assert (response.response, response.verified) == ("terminate", True)


# -- lists -------------------------------------------------------------------------------------------


def listed(system: Running, *more: str, key: str = "revoker") -> Path:
    """The next list of the scope."""
    number = next(NUMBERS)
    out = system.folder / f"list-{number}.json"
    system.instance.egs(
        *("revocations", "issue", "--key", str(system.folder / f"{key}.key"), "--scope", "test"),
        *("--number", str(number), "--out", str(out), *more),
    )
    return out


def refusal(system: Running, path: Path) -> str:
    done = system.instance.egs("revocations", "add", str(path), check=False)
    assert done.returncode == 1, done
    return done.stderr


def test_a_list_revokes_in_one_push_and_the_next_takes_its_place(system: Running) -> None:
    program, artifact_id = standing(system, "listed")
    first = listed(system, "--revoke", artifact_id)
    with started(system, program) as process:
        system.instance.egs("revocations", "add", str(first))
        assert process.poll() == -signal.SIGKILL
    assert system.inside(str(program), "--version") == REFUSED.code
    assert "already" in system.instance.egs("revocations", "add", str(first)).stdout
    second = listed(system, "--after", str(first), "--drop", artifact_id)
    system.instance.egs("revocations", "add", str(second))
    settled(system, artifact_id, "standing")
    assert system.inside(str(program), "--version") == 0
    assert "[revocation_list_rolled_back]" in refusal(system, first)
    (shown,) = json.loads(system.instance.egs("revocations", "show", "--json").stdout)["lists"]
    assert (shown["scope"], shown["count"]) == ("test", 0)
    system.stop(signal.SIGKILL)
    system.start()
    assert "[revocation_list_rolled_back]" in refusal(system, first)
    assert system.inside(str(program), "--version") == 0
    changes = [entry.action for entry in system.entries(RevocationListChange)]
    assert changes == ["added", "added", "refused", "refused"]


def test_a_list_of_somebody_else_is_refused_and_recorded(system: Running) -> None:
    system.instance.egs("keys", "generate", "--name", "stranger", "--out", str(system.folder))
    garbage = system.folder / "garbage.json"
    garbage.write_text("{}")
    expected = {
        listed(system, key="issuer"): "key_role_mismatch",
        listed(system, key="stranger"): "key_untrusted",
        garbage: "artifact_malformed",
    }
    for path, reason in expected.items():
        assert f"[{reason}]" in refusal(system, path)
    recorded = [entry.reason.code for entry in system.entries(RevocationListChange)]
    assert recorded[-3:] == list(expected.values())
    trust(system, "other", "revoker")
    system.instance.egs("revoke", f"key:{system.folder / 'other.pub'}")
    assert "[key_not_valid_now]" in refusal(system, listed(system, key="other"))


def test_a_scope_that_demands_a_list_refuses_everything_without_a_new_one(running: Running) -> None:
    """And a list that is lost, and, with the daemon stopped, one that gets too old: the grant itself ends with it."""
    trust(running, "revoker", "revoker")
    program, artifact_id = standing(running, "program")
    assert running.inside(str(program), "--version") == 0
    running.instance.configure(more='[revocation]\nmax_age = "1h"\n')
    running.instance.egs("reload")
    settled(running, artifact_id, "refused")
    assert running.inside(str(program), "--version") == REFUSED.code
    assert running.artifacts()[artifact_id]["reason"] == "revocation_list_stale"
    assert "no list for this scope" in running.instance.egs("status").stdout
    doctor = json.loads(running.instance.egs("doctor", "--json").stdout)
    assert "no list" in doctor["stale_revocations"]["test"]
    path = listed(running)
    running.instance.egs("revocations", "add", str(path))
    settled(running, artifact_id, "standing")
    assert running.inside(str(program), "--version") == 0
    assert "known well enough" not in running.instance.egs("status").stdout

    running.stop()
    kept = running.instance.paths.revocations / "list-test.json"
    kept.unlink()
    running.start()
    assert running.inside(str(program), "--version") == REFUSED.code
    assert "for the scope test is missing" in running.artifacts()[artifact_id]["message"]
    running.instance.egs("revocations", "add", str(path))
    settled(running, artifact_id, "standing")

    running.instance.egs("revocations", "add", str(listed(running, "--valid-for", "2s")))
    until = time.time() + 2
    with running.paused():
        while time.time() < until + 1:
            select.select([], [], [], 0.1)
        assert running.inside(str(program), "--version") == REFUSED.code
    settled(running, artifact_id, "refused")


def settled(system: Running, artifact_id: str, state: str) -> None:
    """The artifact is in this state, soon."""
    deadline = time.monotonic() + SECONDS
    while system.artifacts()[artifact_id]["state"] != state:
        assert time.monotonic() < deadline, system.artifacts()[artifact_id]


# -- what an artifact says is done -------------------------------------------------------------------


def drifting(system: Running, program: Path, response: str, *more: str) -> str:
    """The id of a standing artifact that says what is done when it is revoked; somebody has to watch for that."""
    ask(system.instance.paths, protocol.DriftRequest(), protocol.Done)
    constraints = system.folder / f"{response}.toml"
    constraints.write_text(f'[drift]\non = {{ artifact_revoked = "{response}" }}\n')
    name = f"{program.name}.json"
    return system.add(system.issue(program, "--constraints", str(constraints), *more, name=name))


@pytest.mark.parametrize("response", ["alert", "suspend", "quarantine"])
def test_what_its_artifact_says_is_done_and_seen_to_be_so(system: Running, response: str) -> None:
    shell = system.copy("/bin/sh", f"shell-{response}")
    program, _ = standing(system, f"starts-{response}")
    artifact_id = drifting(system, shell, response, "--argv", str(shell))
    with subprocess.Popen(
        [str(shell)], preexec_fn=system.instance.cgroup.enter, stdin=PIPE, stdout=PIPE, text=True
    ) as process:
        try:
            assert says(process, f"{program} --version >/dev/null; echo $?") == "0\n"
            answer = system.instance.egs("revoke", artifact_id)
            assert "1 processes ran by it" in answer.stdout
            assert process.poll() is None
            if response == "suspend":
                assert "\nState:\tT" in Path(f"/proc/{process.pid}/status").read_text()
                continued(process)
            else:
                ran = response == "alert"
                command = f"{program} --version >/dev/null 2>&1; echo $?"
                assert (says(process, command) == "0\n") is ran
        finally:
            process.kill()
    (entry,) = of(system, ResponseEntry, artifact_id)
    assert (entry.response, entry.verified, entry.processes) == (response, True, 1)
    (finding,) = of(system, FindingEntry, artifact_id)
    assert finding.rule == "artifact"
    if response != "alert":
        return
    system.wait_for_metric(f'response="{response}",verified="true"')


def continued(process: subprocess.Popen[str]) -> None:
    """Whoever continues what is suspended ends it; on the tier lsm nobody may."""
    if TIER is Tier.LSM:
        with pytest.raises(PermissionError):
            process.send_signal(signal.SIGCONT)
    else:
        process.send_signal(signal.SIGCONT)
        assert process.wait(SECONDS) == -signal.SIGKILL


def says(process: subprocess.Popen[str], command: str) -> str:
    """What a shell says to a command."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return hears(process)
