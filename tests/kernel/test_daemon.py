"""The daemon with the real gate: standing artifacts, uses, revocation, restarts, reloads."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import (
    ArtifactChange,
    ConfigurationChange,
    DaemonStarted,
    DaemonStopped,
    Decision,
    Exec,
    Outcome,
    Revocation,
)
from egs_kernel.audit.logkeys import read_keys
from egs_kernel.daemon import protocol
from egs_kernel.gate import abi
from egs_kernel.gate.pins import Gate
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.harness import BIN
from tests.refusals import KILLED, REFUSED, start
from tests.running import Running, ask_raw

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]


def test_a_standing_artifact_from_the_folder_to_the_record(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    assert running.inside(str(program)) == REFUSED.code
    artifact = running.issue(program)
    artifact_id = running.add(artifact)
    assert running.artifacts()[artifact_id]["state"] == "standing"
    assert running.inside(str(program)) == 0
    running.instance.egs("artifacts", "remove", artifact_id[:12])
    assert running.inside(str(program)) == REFUSED.code
    running.wait_for_exec(program, REFUSED.verdict, count=2)
    (allowed,) = running.wait_for_exec(program, Verdict.ALLOW)
    assert (allowed.event.artifact_id, allowed.event.grant_kind) == (artifact_id, GrantKind.STANDING)
    outcome = running.wait_for(Outcome, lambda entry: entry.event.execution == allowed.event.execution)
    assert outcome.event.status == 0
    assert [change.action for change in running.entries(ArtifactChange)] == ["added", "removed"]
    verify(running.instance.paths.record, read_keys(running.instance.paths.log_keys).verifiers)


def test_files_that_come_and_go_in_the_folder(running: Running) -> None:
    """No command, no signal: the daemon follows its folder."""
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    placed = running.instance.paths.artifacts / "mine.json"
    shutil.copy(artifact, placed)
    running.wait_for_decisions(Reason.AUTHORIZED)
    running.wait_until_standing()
    assert running.inside(str(program)) == 0
    placed.unlink()
    running.wait_for(ArtifactChange, lambda entry: entry.action == "removed")
    assert running.inside(str(program)) == REFUSED.code


def test_a_folder_that_another_takes_the_place_of(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact_id = running.add(running.issue(program))
    folder = running.instance.paths.artifacts
    folder.rename(folder.with_name("old"))
    running.wait_for_decisions(Reason.PATH_UNSAFE)
    assert running.inside(str(program)) == REFUSED.code
    folder.with_name("old").rename(folder)
    running.instance.egs("reload")
    running.wait_for_decisions(Reason.AUTHORIZED, 2)
    running.wait_until_standing()
    assert running.inside(str(program)) == 0
    (folder / f"{artifact_id}.json").unlink()
    running.wait_for(ArtifactChange, lambda entry: entry.action == "removed")
    assert running.inside(str(program)) == REFUSED.code


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("garbage.json", b"\x7fELF", "artifact_malformed"),
        ("empty.json", b"", "artifact_malformed"),
        ("large.json", b"x" * 70_000, "path_unsafe"),
    ],
)
def test_what_is_no_artifact_is_listed_with_its_reason(
    running: Running, name: str, content: bytes, reason: str
) -> None:
    (running.instance.paths.artifacts / name).write_bytes(content)
    running.wait_for(Decision, lambda entry: entry.reason.code == reason)
    (listed,) = running.artifacts().values()
    assert (listed["file"], listed["state"], listed["reason"]) == (name, "refused", reason)
    assert json.loads(running.instance.egs("status", "--json").stdout)["refused_artifacts"] == 1


def test_a_program_that_is_touched_and_one_that_is_changed(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact_id = running.add(running.issue(program))
    program.chmod(0o700)  # another change time, the same content
    running.wait_for_decisions(Reason.AUTHORIZED, 2)
    running.wait_until_it_runs(program)
    with program.open("ab") as file:
        file.write(b"\0")
    assert running.inside(str(program)) == REFUSED.code
    running.wait_for_decisions(Reason.DIGEST_MISMATCH)
    assert running.artifacts()[artifact_id]["reason"] == "digest_mismatch"
    program.unlink()
    running.wait_for_decisions(Reason.NOT_FOUND)
    running.copy("/bin/true", "program")
    running.wait_for_decisions(Reason.AUTHORIZED, 3)
    running.wait_until_standing()
    assert running.inside(str(program)) == 0


def test_a_program_that_another_takes_the_place_of(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    running.copy("/bin/false", "impostor").rename(program)
    assert running.inside(str(program)) == REFUSED.code
    running.wait_for_decisions(Reason.DIGEST_MISMATCH)


def test_uses_of_a_standing_artifact_survive_the_daemon(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program, "--max-uses", "3"))
    assert running.inside(str(program)) == 0
    running.stop(signal.SIGKILL)
    running.start()
    assert running.inside(str(program)) == 0
    running.stop()
    running.start()
    assert [running.inside(str(program)) for _ in range(3)] == [0, KILLED.code, KILLED.code]
    execs = running.wait_for_exec(program, KILLED.verdict, count=2)
    assert {entry.event.reason for entry in execs} == {Reason.USES_EXHAUSTED}


def test_uses_are_not_reset_by_a_new_gate(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program, "--max-uses", "2"))
    assert running.inside(str(program)) == 0
    running.stop()
    running.instance.egs("gate", "unload")
    running.instance.egs("gate", "load")
    running.start()
    assert json.loads(running.instance.egs("status", "--json").stdout)["healthy"]
    running.wait_for_decisions(Reason.AUTHORIZED, 2)
    running.wait_until_standing()
    assert [running.inside(str(program)) for _ in range(2)] == [0, KILLED.code]


def test_launches_and_plain_execs_spend_the_same_uses(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact_id = running.add(running.issue(program, "--max-uses", "3"))
    assert running.run(str(program)).returncode == 0
    running.instance.egs("reload")  # returns when the grant is examined again
    running.wait_for(Exec, lambda entry: entry.event.artifact_id == artifact_id)
    assert [running.inside(str(program)) for _ in range(3)] == [0, 0, KILLED.code]
    refused = running.run(str(program))
    assert (refused.returncode, "[uses_exhausted]" in refused.stderr) == (126, True)


def test_revocation_holds_for_the_next_exec_and_for_ever(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    artifact_id = running.add(artifact)
    assert running.inside(str(program)) == 0
    running.instance.egs("revoke", str(artifact))
    assert running.inside(str(program)) == REFUSED.code
    assert running.run("--artifact", str(artifact), str(program)).returncode == 126
    running.stop(signal.SIGKILL)
    (
        running.instance.paths.revocations / f"artifact-{artifact_id}"
    ).unlink()  # the record alone remembers it as well
    running.start()
    assert running.inside(str(program)) == REFUSED.code
    assert running.artifacts()[artifact_id]["state"] == "revoked"
    (revocation,) = running.entries(Revocation)
    assert (revocation.kind, revocation.thing) == ("artifact", artifact_id)
    assert revocation.peer is not None
    assert revocation.peer.uid == 0


def test_a_restarted_daemon_withdraws_what_is_no_longer_there(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact_id = running.add(running.issue(program))
    running.stop()
    (running.instance.paths.artifacts / f"{artifact_id}.json").unlink()
    assert running.inside(str(program)) == 0, "grants outlive the daemon, within its grace"
    running.start()
    assert running.inside(str(program)) == REFUSED.code


def test_nothing_that_happened_is_lost_when_the_daemon_is_killed(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    for _ in range(3):
        running.stop(signal.SIGKILL)
        assert running.inside(str(program)) == 0
        running.start()
        assert running.inside(str(program)) == 0
    execs = running.wait_for_exec(program, Verdict.ALLOW, count=6)
    assert len({entry.event.execution for entry in execs}) == len(execs) == 6
    assert len(running.entries(DaemonStarted)) == 4
    assert not running.entries(DaemonStopped)
    verify(running.instance.paths.record, read_keys(running.instance.paths.log_keys).verifiers)


def test_without_the_daemon_everything_is_refused_after_the_grace(running: Running) -> None:
    running.instance.configure(grace="1s")
    running.instance.egs("reload")
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    assert running.inside(str(program)) == 0
    os.kill(running.pid, signal.SIGSTOP)
    try:
        gate = Gate.open(running.instance.paths.pins)
        while gate.heartbeat_age() <= 1:
            pass
        gate.close()
        assert running.inside(str(program)) == REFUSED.code
    finally:
        os.kill(running.pid, signal.SIGCONT)
    running.wait_for(Exec, lambda entry: entry.event.reason is Reason.DAEMON_STALE)
    assert running.inside(str(program)) == 0


def test_a_bad_configuration_is_refused_and_the_old_one_stays(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    config = running.instance.paths.config
    good = config.read_text()
    config.write_text(good.replace("cgroup", "cgrop"))
    refused = running.instance.egs("reload", check=False)
    assert refused.returncode == 2
    assert "The old settings stay in force." in refused.stderr
    assert running.inside(str(program)) == 0
    config.write_text(good + '[[scope]]\nname = "second"\nusers = ["65533"]\n')
    running.instance.egs("reload")
    scopes = json.loads(running.instance.egs("status", "--json").stdout)["scopes"]
    assert [scope["name"] for scope in scopes] == ["second", "test"]
    started, refused_change, applied = running.entries(ConfigurationChange)
    assert (started.action, started.cause, [scope.name for scope in started.scopes]) == (
        "applied",
        "start",
        ["test"],
    )
    assert (refused_change.action, refused_change.config_digest) == ("refused", None)
    assert "config_invalid" in refused_change.detail
    assert applied.config_digest == hashlib.sha256(config.read_bytes()).hexdigest()
    assert applied.peer is not None
    assert len(applied.trusted_keys) == 1


def test_a_key_that_is_trusted_no_longer(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    for path in running.instance.paths.trust.iterdir():
        running.instance.egs("trust", "remove", path.stem)
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for_decisions(Reason.KEY_UNTRUSTED)
    assert running.inside(str(program)) == REFUSED.code


def test_a_scope_that_observes_says_so(running: Running) -> None:
    running.instance.configure(mode="observe")
    running.instance.egs("reload")
    assert running.inside("/bin/true") == 0
    said = running.instance.egs("status").stdout
    assert "not EGS-001 compliant" in said
    running.wait_for(Exec, lambda entry: not entry.event.enforced)


def test_the_gate_unloaded_under_the_daemon(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    running.instance.egs("gate", "unload")
    running.wait_for_decisions(Reason.POSTURE_FAILED)
    status = json.loads(running.instance.egs("status", "--json").stdout)
    assert not status["healthy"]
    assert "unloaded" in status["details"]["problems"][0]
    refused = running.run(str(program))
    assert (refused.returncode, "[posture_failed]" in refused.stderr) == (126, True)


def test_a_second_daemon(running: Running) -> None:
    second = running.instance.egsd()
    assert (second.returncode, "[daemon_running]" in second.stderr) == (1, True)
    assert running.instance.egs("status", check=False).returncode == 0


def test_it_stops_when_told_and_says_so_in_the_record(running: Running) -> None:
    assert running.stop() == 0
    assert running.entries(DaemonStopped)[-1].cause == "SIGTERM"
    assert not running.instance.paths.socket.exists()
    unreachable = running.instance.egs("status", check=False)
    assert (unreachable.returncode, "[daemon_unreachable]" in unreachable.stderr) == (4, True)


def test_what_others_than_root_may_ask(running: Running) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return running.as_nobody(str(BIN / "egs"), *arguments)

    assert json.loads(ask("status", "--json").stdout)["details"] is None
    assert json.loads(ask("ps", "--json").stdout) == {"processes": []}
    for arguments in (
        ("artifacts", "list"),
        ("reload",),
        ("revoke", "ab" * 32),
        ("artifacts", "remove", "ab"),
    ):
        refused = ask(*arguments)
        assert (refused.returncode, "[not_permitted]" in refused.stderr) == (1, True), arguments
    assert not running.entries(Revocation)


def test_garbage_on_the_socket_changes_nothing(running: Running) -> None:
    path = running.instance.paths.socket
    clients = [ask_raw(path, content) for content in (b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0\x05{", b"")]
    clients.append(
        ask_raw(path, protocol.encode(protocol.LaunchRequest(program="/bin/true", argv=("true",))))
    )
    reader = protocol.FrameReader()
    reader.feed(clients[-1].recv(65536))
    content = reader.next_frame()
    assert content is not None
    answer = protocol.decode_answer(content)
    assert isinstance(answer, protocol.Failure)
    assert answer.reason == "protocol_error"
    assert running.instance.egs("status").returncode == 0
    for client in clients:
        client.close()


def test_processes_are_listed_with_what_authorized_them(running: Running) -> None:
    program = running.copy("/bin/sleep", "program")
    artifact_id = running.add(running.issue(program))
    process = start([program, "60"], running.instance.cgroup.enter)
    running.instance.reap_also(process.pid)
    running.wait_for_exec(program, Verdict.ALLOW)

    def listed() -> dict[str, object]:
        processes = json.loads(running.instance.egs("ps", "--json").stdout)["processes"]
        return next(item for item in processes if item["pid"] == process.pid)

    before = listed()
    assert (before["artifact"], before["scope"], before["program"]) == (artifact_id, "test", str(program))
    assert before["command"] == [str(program), "60"]
    assert artifact_id[:16] in running.instance.egs("ps").stdout
    running.stop(signal.SIGKILL)
    running.start()
    assert listed() == before
    process.kill()
    process.wait()


def test_a_lock_that_no_user_can_take(running: Running) -> None:
    """flock(2) asks for no more than a file that can be opened for reading; whoever had it would keep egsd from starting."""
    assert running.instance.paths.daemon_lock.stat().st_mode & 0o777 == 0o600


def test_metrics_and_memory(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    assert [running.inside(str(program)) for _ in range(2)] == [0, 0]
    running.wait_for_metric("egs_decisions_total{", 'reason="authorized"', value=" 2.0")
    status = Path(f"/proc/{running.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident <= 48 * 1024, f"{resident} kB"
    assert "libssl" not in Path(f"/proc/{running.pid}/maps").read_text(), "egsd speaks no TLS"


def test_the_socket_is_for_everyone_and_the_folder_is_not(running: Running) -> None:
    assert running.instance.paths.socket.stat().st_mode & 0o777 == 0o666
    assert running.instance.paths.run_dir.stat().st_mode & 0o022 == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(running.instance.paths.socket))


def test_what_was_opened_for_writing_is_refused_and_measured_again(running: Running) -> None:
    """Nothing changed in it. On the tier tracepoint nobody notes openings, so the test does."""
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    assert running.output(program)[0] == 0
    gate = Gate.open(running.instance.paths.pins)
    descriptor = os.open(program, os.O_PATH)
    file = gate.identify(descriptor)
    os.close(descriptor)
    key = abi.FileKey(inode=file.inode, device=file.device)
    with running.paused():
        gate.measured_files.put(key, ctypes.c_uint64(time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
        assert running.output(program)[0] != 0
    gate.close()
    refused = running.wait_for(Exec, lambda entry: entry.event.reason is Reason.FILE_OPENED)
    assert refused.event.filename == str(program)
    running.wait_until_it_runs(program)


def test_a_constraint_on_code_stands_where_the_gate_can_enforce_it(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    constraints = running.folder / "constraints.toml"
    constraints.write_text('[code]\nanonymous = "refused"\n')
    artifact = running.issue(program, "--constraints", str(constraints))
    tier = json.loads(running.instance.egs("status", "--json").stdout)["tier"]
    if tier == "lsm":
        running.add(artifact)
        assert running.output(program)[0] == 0
        return
    refused = running.instance.egs("artifacts", "add", str(artifact), "--json", check=False)
    assert "code.anonymous, which takes the tier lsm" in refused.stdout + refused.stderr
    launched = running.run("--artifact", str(artifact), str(program))
    assert (launched.returncode, "[constraint_unenforceable]" in launched.stderr) == (126, True)
