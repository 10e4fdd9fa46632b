"""`egs run` with the real daemon and gate: what the program gets, what is refused, what is left behind."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egs_kernel.audit.entries import Decision, Exec, Outcome, Request, Verification
from egs_kernel.gate.pins import Gate
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.harness import BIN, COMMAND_SECONDS, compile_program
from tests.refusals import REFUSED
from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

SYSCALLS = '[syscalls]\nprofile = "default"\ndeny = ["getppid"]\n'


@pytest.fixture(scope="session")
def shows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that prints how it was started."""
    return compile_program("shows", tmp_path_factory.mktemp("shows"))


def shown(text: str, word: str) -> list[str]:
    """What the program printed under this word."""
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{word} ")]


def test_the_program_gets_what_it_would_get_without_us(running: Running, shows: Path) -> None:
    program = running.copy(str(shows), "shows")
    artifact = running.issue(program)
    environment = {"EGS_ROOT": str(running.instance.root), "PATH": "/usr/bin", "LANG": "C", "ODD": "a=b"}

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    read, write = os.pipe()
    os.set_inheritable(write, True)
    process = subprocess.Popen(
        [
            str(BIN / "egs"),
            "run",
            "--artifact",
            str(artifact),
            "--argv0",
            "-name",
            "--",
            str(program),
            "",
            "ü",
            "--x",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=block,
        pass_fds=(write,),
    )
    text, _ = process.communicate(timeout=COMMAND_SECONDS)
    os.close(read)
    os.close(write)
    assert process.returncode == 7
    assert shown(text, "pid") == [str(process.pid)]
    assert shown(text, "arg") == ["-name", "", "ü", "--x"]
    assert sorted(shown(text, "env")) == sorted(f"{name}={value}" for name, value in environment.items())
    assert shown(text, "INT") == ["default open"]
    assert shown(text, "PIPE") == ["default open"]
    assert shown(text, "XFSZ") == ["default open"]
    assert shown(text, "USR1") == ["default blocked"]
    assert shown(text, "fd") == ["0", "1", "2", str(write)]


def test_a_launch_is_in_the_record_before_it_happens(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    assert running.run("--artifact", str(artifact), str(program), "x").returncode == 0
    (executed,) = running.wait_for_exec(program, Verdict.ALLOW)
    (request,) = running.entries(Request)
    (decision,) = [entry for entry in running.entries(Decision) if entry.request == request.request]
    (verification,) = [entry for entry in running.entries(Verification) if entry.request == request.request]
    assert request.intent.argv == (str(program), "x") == executed.event.argv
    assert request.intent.environment is None
    assert (decision.verdict, decision.grant_kind) == (Verdict.ALLOW, GrantKind.ARMED)
    assert verification.passed
    assert len(verification.steps) == 15
    assert decision.task is not None
    assert (decision.task.pid, decision.task.start_ticks) == (executed.event.pid, executed.event.start_ticks)
    kinds = [type(entry) for entry in running.record()]
    assert kinds.index(Request) < kinds.index(Decision) < kinds.index(Exec)
    running.wait_for(Outcome, lambda entry: entry.event.execution == executed.event.execution)


def test_the_program_and_its_children_are_governed(running: Running) -> None:
    """What it starts needs an authorization of its own; it runs in the scope's cgroup."""
    shell = running.copy("/bin/sh", "native")  # a name that no interpreter has
    artifact = running.issue(
        shell, "--argv", "native", "--argv", "-c", "--argv", "grep ^0:: /proc/self/cgroup; exit 5"
    )
    command = ["--artifact", str(artifact), "--argv0", "native", "--", str(shell), "-c"]
    done = running.run(*command, "grep ^0:: /proc/self/cgroup; exit 5")
    assert done.returncode == 5
    assert done.stdout == ""
    killed = running.wait_for(Exec, lambda entry: entry.event.reason is Reason.NO_GRANT)
    assert killed.event.cgroup_id == running.instance.cgroup.id


@pytest.mark.parametrize(
    ("issued", "asked", "reason"),
    [
        (("--argv", "true", "--argv", "x"), ("y",), "argv_mismatch"),
        (("--uid", "12345"), (), "identity_mismatch"),
        (("--group", "12345"), (), "identity_mismatch"),
        (("--host", "another"), (), "host_mismatch"),
        (("--cwd", "/nonexistent"), (), "cwd_mismatch"),
        (("--env", "PATH"), (), "environment_mismatch"),
        (
            ("--not-before", "2998-01-01T00:00:00Z", "--not-after", "2999-01-02T00:00:00Z"),
            (),
            "not_yet_valid",
        ),
        (("--policy-digest", "ab" * 32), (), "policy_mismatch"),
        (("--cgroup", "/nonexistent"), (), "cgroup_mismatch"),
    ],
)
def test_refusals(running: Running, issued: tuple[str, ...], asked: tuple[str, ...], reason: str) -> None:
    program = running.copy("/bin/true", "true")
    artifact = running.issue(program, *issued)
    refused = running.run("--artifact", str(artifact), "--argv0", "true", "--", str(program), *asked)
    assert (refused.returncode, f"[{reason}]" in refused.stderr) == (126, True), refused.stderr
    running.wait_for(Decision, lambda entry: entry.reason.code == reason and entry.verdict is Verdict.DENY)
    assert not running.entries(Exec)


def test_a_launch_that_is_bound_to_a_cgroup(running: Running) -> None:
    inner = running.instance.cgroup.child("inner")
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--cgroup", inner.path)
    assert running.run("--artifact", str(artifact), str(program)).returncode == 0
    (executed,) = running.wait_for_exec(program, Verdict.ALLOW)
    assert executed.event.cgroup_id == inner.id
    outside = running.issue(program, "--cgroup", "/", name="outside.json")
    refused = running.run("--artifact", str(outside), str(program))
    assert (refused.returncode, "[cgroup_mismatch]" in refused.stderr) == (126, True)


def test_an_artifact_that_expires_while_everything_runs(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--valid-for", "3s")
    running.add(artifact)
    running.wait_for(Decision, lambda entry: entry.reason is Reason.EXPIRED)
    assert running.inside(str(program)) == REFUSED.code
    refused = running.run("--artifact", str(artifact), str(program))
    assert (refused.returncode, "[expired]" in refused.stderr) == (126, True)


def test_other_programs_keys_and_files(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.instance.egs("keys", "generate", "--name", "stranger", "--out", str(running.folder))
    artifact, forged = running.issue(program), running.issue(program, name="forged.json", key="stranger")
    other = running.copy("/bin/false", "other")
    script = running.folder / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    secret = running.folder / "secret"
    secret.write_text("not to be hashed for everybody")
    for command, reason in (
        (("--artifact", str(artifact), str(other)), "digest_mismatch"),
        (("--artifact", str(forged), str(program)), "key_untrusted"),
        (("--artifact", str(script), str(program)), "artifact_malformed"),
        ((str(program),), "no_grant"),
        ((str(running.folder),), "not_found"),
        ((str(secret),), "not_permitted"),
        (("/dev/null",), "not_found"),
    ):
        refused = running.run(*command)
        assert (refused.returncode, f"[{reason}]" in refused.stderr) == (126, True), (command, refused.stderr)


def test_loader_variables_are_refused(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    environment = running.instance.environment | {"LD_PRELOAD": "/nonexistent.so"}
    refused = running.run("--artifact", str(artifact), str(program), env=environment)
    assert (refused.returncode, "[environment_mismatch]" in refused.stderr) == (126, True)


def test_an_artifact_from_the_folder_is_found(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program, "--argv", str(program), "--argv", "*"))
    assert running.run(str(program), "anything").returncode == 0
    refused = running.run(str(program), "two", "words")
    assert (refused.returncode, "[argv_mismatch]" in refused.stderr) == (126, True)


def test_a_seccomp_constraint_is_installed_attested_and_works(running: Running) -> None:
    constraints = running.folder / "constraints.toml"
    constraints.write_text(SYSCALLS)
    program = running.copy("/bin/sleep", "program")
    artifact = running.issue(program, "--constraints", str(constraints))
    process = subprocess.Popen(
        [str(BIN / "egs"), "run", "--artifact", str(artifact), str(program), "60"],
        env=running.instance.environment,
    )
    running.instance.reap_also(process.pid)
    (executed,) = running.wait_for_exec(program, Verdict.ALLOW)
    assert (executed.event.seccomp_mode, executed.event.seccomp_filters) == (2, 1)
    assert executed.event.no_new_privs
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    process.kill()
    process.wait()


def test_a_launcher_that_does_not_install_the_filter(running: Running) -> None:
    constraints = running.folder / "constraints.toml"
    constraints.write_text(SYSCALLS)
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--constraints", str(constraints))
    liar = (
        "import os, sys, socket\n"
        "from egs_kernel import launch\n"
        "from egs_kernel.apply import seccomp\n"
        "seccomp.apply = lambda step: None\n"
        "sys.exit(launch.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", liar, "--artifact", str(artifact), str(program)],
        env=running.instance.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "[constraint_not_attested]" in done.stderr) == (126, True), done.stderr
    running.wait_for_decisions(Reason.CONSTRAINT_NOT_ATTESTED)
    assert not running.entries(Exec)


def test_a_launcher_that_executes_something_else(running: Running) -> None:
    """Armed for one program, it executes another: that is refused, and it is not armed any more."""
    program, other = running.copy("/bin/true", "program"), running.copy("/bin/true", "other")
    running.add(running.issue(other))  # even one that may run
    artifact = running.issue(program)
    cheat = (
        "import sys, os\n"
        "from egs_kernel import launch\n"
        "execute = launch._execute\n"
        "launch._execute = lambda program, argv: execute(os.environ['OTHER'], argv)\n"
        "sys.exit(launch.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", cheat, "--artifact", str(artifact), str(program)],
        env=running.instance.environment | {"OTHER": str(other)},
        check=False,
    )
    assert done.returncode == REFUSED.code
    (executed,) = running.wait_for_exec(other, REFUSED.verdict)
    assert executed.event.reason is Reason.SUBJECT_MISMATCH


@pytest.mark.parametrize("way", ["exits", "waits"])
def test_a_launcher_that_is_lost(running: Running, way: str) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--max-uses", "2")
    lost = (
        "import sys, os, signal\n"
        "from egs_kernel import launch\n"
        "def execute(program, argv):\n"
        "    sys.stdout.write('armed'); sys.stdout.flush()\n"
        "    if os.environ['WAY'] == 'waits': signal.pause()\n"
        "    os._exit(3)\n"
        "launch._execute = execute\n"
        "sys.exit(launch.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", lost, "--artifact", str(artifact), str(program)],
        env=running.instance.environment | {"WAY": way},
        stdout=subprocess.PIPE,
    )
    running.instance.reap_also(process.pid)
    assert process.stdout is not None
    assert process.stdout.read(5) == b"armed"
    running.wait_for_decisions(Reason.LAUNCHER_LOST)
    gate = Gate.open(running.instance.paths.pins)
    assert not gate.armed()
    gate.close()
    process.kill()
    process.communicate()
    # Its use is spent: nobody could prove that it never executed.
    assert running.run("--artifact", str(artifact), str(program)).returncode == 0
    assert running.run("--artifact", str(artifact), str(program)).returncode == 126


def test_uses_of_launches_survive_the_daemon(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--max-uses", "2")
    assert running.run("--artifact", str(artifact), str(program)).returncode == 0
    running.stop(signal.SIGKILL)
    running.start()
    assert running.run("--artifact", str(artifact), str(program)).returncode == 0
    refused = running.run("--artifact", str(artifact), str(program))
    assert (refused.returncode, "[uses_exhausted]" in refused.stderr) == (126, True)


def test_the_last_use_is_spent_once(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program, "--max-uses", "3")
    command = [str(BIN / "egs"), "run", "--artifact", str(artifact), str(program)]
    processes = [
        subprocess.Popen(command, env=running.instance.environment, stderr=subprocess.DEVNULL)
        for _ in range(12)
    ]
    assert sorted(process.wait(60) for process in processes) == [0] * 3 + [126] * 9


def test_a_launcher_of_another_scope(running: Running) -> None:
    config = running.instance.paths.config
    config.write_text(
        config.read_text() + '[[scope]]\nname = "second"\nusers = ["65534"]\nmode = "observe"\n'
    )
    running.instance.egs("reload")
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    refused = running.as_nobody(str(BIN / "egs"), "run", "--artifact", str(artifact), str(program))
    assert (refused.returncode, "[scope_mismatch]" in refused.stderr) == (126, True), refused.stderr


def test_the_daemon_killed_in_the_middle(running: Running) -> None:
    """Wherever the launcher is by then: it does not execute."""
    program = running.copy("/bin/true", "program")
    artifact = running.issue(program)
    os.kill(running.pid, signal.SIGSTOP)
    process = subprocess.Popen(
        [str(BIN / "egs"), "run", "--artifact", str(artifact), str(program)],
        env=running.instance.environment,
        stderr=subprocess.PIPE,
    )
    running.stop(signal.SIGKILL)
    _, said = process.communicate(timeout=COMMAND_SECONDS)
    assert (process.returncode, b"[daemon_unreachable]" in said) == (4, True)
    running.start()
    assert not running.entries(Exec)


def test_a_wrapped_program(running: Running) -> None:
    program = running.copy("/bin/echo", "tool")
    inode = program.stat().st_ino
    real = Path(f"{program}.egs-real")
    running.instance.egs("wrap", str(program))
    assert real.stat().st_ino == inode
    running.add(running.issue(real, "--argv", str(program), "--argv", "*"))
    done = subprocess.run(
        [str(program), "hello"], env=running.instance.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    refused = subprocess.run(
        [str(program)], env=running.instance.environment, capture_output=True, check=False
    )
    assert refused.returncode == 126
    running.instance.egs("wrap", "--undo", str(program))
    assert program.stat().st_ino == inode
    assert not real.exists()


def test_a_launch_is_fast(running: Running) -> None:
    """The figure for the documents comes from scripts/bench; this notices when something slow came in."""
    program = running.copy("/bin/true", "program")
    running.add(running.issue(program))
    command = [str(BIN / "egs"), "run", str(program)]
    times = []
    for _ in range(20):
        started = time.perf_counter()
        subprocess.run(command, env=running.instance.environment, check=True)
        times.append(time.perf_counter() - started)
    assert statistics.median(times) < 0.2
