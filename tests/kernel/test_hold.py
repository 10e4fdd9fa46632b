"""What is held waits, stopped, and runs by an artifact alone: the real gate, daemon and commands."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Decision, Outcome, PostureEntry, Request
from egs_kernel.gate.parts import GUARDS
from egs_kernel.model import GrantKind, Reason, Tier, Verdict
from tests.harness import BIN, PATIENCE, Instance
from tests.holding import HOLD, Waiting, execute, holding_system, holds, wait_until_held
from tests.refusals import KILLED, REFUSED, TIER
from tests.running import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(int(180 * PATIENCE))]

RAN: Final = (0, b"word\n")
DIED: Final = (KILLED.code, b"")


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hold")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    instance = Instance.create(folder / "egs")
    try:
        with holding_system(instance, folder / "work") as running:
            yield running
    finally:
        instance.close()


@pytest.fixture
def system(_shared: Running) -> Iterator[Running]:
    """A whole system whose scope holds; afterwards nothing is held or authorized there."""
    yield _shared
    for artifact in _shared.artifacts():
        _shared.instance.egs("artifacts", "remove", artifact)
    waiting = [hold["id"] for hold in holds(_shared).values()]
    if waiting:
        _shared.instance.egs("holds", "deny", *waiting)


@pytest.fixture
def fresh(instance: Instance, tmp_path: Path) -> Iterator[Running]:
    """One for a test that changes more than that."""
    with holding_system(instance, tmp_path / "work") as running:
        yield running


def held(system: Running, program: Path, *arguments: str) -> tuple[Waiting, str]:
    """A process that is held, and the id of its hold."""
    waiting = execute(system.instance, program, *arguments or ("word",))
    return waiting, wait_until_held(system, waiting)[0]


def decision_on(system: Running, hold: str, reason: Reason) -> Decision:
    """The decision on a hold, when it is in the record."""
    return system.wait_for(Decision, lambda entry: entry.request == hold and entry.reason is reason)


# -- approved ----------------------------------------------------------------------------------------


def test_an_artifact_that_is_added_lets_it_go(system: Running) -> None:
    """And everything that tells of an execution tells of this one."""
    echo = system.copy("/bin/echo", "echo")
    waiting, hold = held(system, echo)
    asked = system.wait_for(Request, lambda entry: entry.request == hold)
    assert asked.intent.argv == (str(echo), "word")
    artifact = system.add(system.issue(echo))
    assert waiting.end() == RAN
    decision = decision_on(system, hold, Reason.AUTHORIZED)
    assert (decision.verdict, decision.artifact_id) == (Verdict.ALLOW, artifact)
    assert decision.grant_kind is GrantKind.ARMED
    outcome = system.wait_for(Outcome, lambda entry: str(entry.event.execution) == hold)
    assert outcome.event.status == 0
    assert holds(system) == {}


def test_egs_ps_shows_it_held_and_then_authorized(system: Running) -> None:
    sleep = system.copy("/bin/sleep", "sleep")
    waiting, hold = held(system, sleep, "100")
    listed = processes(system)[waiting.pid]
    assert (listed["held"], listed["execution"], listed["artifact"]) == (True, hold, "")
    artifact = system.add(system.issue(sleep, "--argv", str(sleep), "--argv", "100"))
    assert waiting.goes_on()
    listed = processes(system)[waiting.pid]
    assert (listed["held"], listed["execution"], listed["artifact"]) == (False, hold, artifact)
    system.stop(signal.SIGKILL)
    system.start()
    assert processes(system)[waiting.pid]["artifact"] == artifact
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.end() == (-signal.SIGTERM, b"")


def processes(system: Running) -> dict[int, dict[str, object]]:
    """What `egs ps` says, by process id."""
    listed = json.loads(system.instance.egs("ps", "--json").stdout)["processes"]
    return {process["pid"]: process for process in listed}


def test_a_person_approves_with_an_artifact(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    waiting, hold = held(system, echo)
    other = system.issue(echo, "--argv", str(echo), "--argv", "another", name="other.json")
    refused = system.instance.egs("holds", "approve", hold, "--artifact", str(other), "--json", check=False)
    assert refused.returncode == 1
    assert "argv_mismatch" in refused.stdout
    decision_on(system, hold, Reason.ARGV_MISMATCH)
    fitting = system.issue(echo, "--argv", str(echo), "--argv", "word")
    system.instance.egs("holds", "approve", hold, "--artifact", str(fitting))
    assert waiting.end() == RAN
    assert system.artifacts() == {}


def test_a_person_approves_with_a_key(system: Running) -> None:
    """What is issued authorizes this exec once, and nothing else."""
    echo = system.copy("/bin/echo", "echo")
    first, hold = held(system, echo)
    system.wait_for(Request, lambda entry: entry.request == hold)
    key = str(system.folder / "issuer.key")
    system.instance.egs("holds", "approve", hold, "--key", key)
    assert first.end() == RAN
    assert decision_on(system, hold, Reason.AUTHORIZED).use_until is not None
    second, _ = held(system, echo)
    system.instance.egs("keys", "generate", "--name", "stranger", "--out", str(system.folder))
    refused = system.instance.egs(
        *("holds", "approve", holds(system)[second.pid]["id"]),
        *("--key", str(system.folder / "stranger.key"), "--json"),
        check=False,
    )
    assert "key_untrusted" in refused.stdout
    assert second.pid in holds(system)


def test_a_script_runs_by_an_artifact_that_names_it(system: Running) -> None:
    """What waits is its interpreter; on the tier lsm an artifact for that alone lets nobody go."""
    path = system.folder / "script"
    argv = [word for argument in ("/bin/sh", "-eu", str(path), "word") for word in ("--argv", argument)]
    path.unlink(missing_ok=True)
    unnamed = system.issue(Path("/bin/sh").resolve(), *argv, name="unnamed.json")
    path.write_text('#!/bin/sh -eu\necho "$1"\n')
    path.chmod(0o755)
    waiting, hold = held(system, path)
    approved = system.instance.egs("holds", "approve", hold, "--artifact", str(unnamed), check=False)
    if TIER is Tier.LSM:
        assert (approved.returncode, "[script_unauthorized]" in approved.stderr) == (1, True)
        system.add(system.issue(path, "--argv", str(path), "--argv", "word", name="script.json"))
    assert waiting.end() == RAN


def test_only_root_lists_approves_and_denies(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    waiting, hold = held(system, echo)
    artifact = str(system.issue(echo))
    for command in ((), ("deny", hold), ("approve", hold, "--artifact", artifact)):
        refused = system.as_nobody(str(BIN / "egs"), "holds", *command)
        assert (refused.returncode, "not_permitted" in refused.stderr) == (1, True)
    assert waiting.pid in holds(system)


def in_the_scope(system: Running, work: Callable[[], int]) -> int:
    """Do this in a process inside the scope, which has executed nothing; what it returns."""
    child = os.fork()
    if child == 0:
        result = 250
        try:
            system.instance.cgroup.enter()
            result = work()
        finally:
            os._exit(result)
    system.instance.reap_also(child)
    return child


def by_fork(path: str) -> int:
    child = os.fork()
    if child == 0:
        os.execv(path, [path, "word"])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def by_posix_spawn(path: str) -> int:
    child = os.posix_spawn(path, [path, "word"], {})
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def by_vfork(path: str) -> int:
    return subprocess.run([path, "word"], check=False, close_fds=False, stdout=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("spawn", [by_fork, by_posix_spawn, by_vfork])
def test_the_parent_sees_a_delay_and_nothing_else(system: Running, spawn: Callable[[str], int]) -> None:
    true = system.copy("/bin/true", spawn.__name__)
    parent = in_the_scope(system, lambda: spawn(str(true)))
    event = system.wait_for_exec(true, Verdict.HOLD)[0].event
    assert os.waitpid(parent, os.WNOHANG) == (0, 0)
    system.add(system.issue(true))
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 0
    assert event.parent_pid == parent


def test_a_thread_that_executes_becomes_the_process_that_is_held(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")

    def execute_in_a_thread() -> None:
        thread = threading.Thread(target=os.execv, args=(echo, [str(echo), "word"]))
        thread.start()
        thread.join()

    waiting = execute(system.instance, echo, before=execute_in_a_thread)
    wait_until_held(system, waiting)
    system.add(system.issue(echo))
    assert waiting.end() == RAN


# -- not approved ------------------------------------------------------------------------------------


def test_denied(system: Running) -> None:
    waiting, hold = held(system, system.copy("/bin/echo", "echo"))
    system.instance.egs("holds", "deny", hold, "--why", "not today")
    assert waiting.end() == DIED
    decision = decision_on(system, hold, Reason.HOLD_DENIED)
    assert decision.verdict is Verdict.KILL
    assert "not today" in decision.detail
    again = system.instance.egs("holds", "deny", hold, check=False)
    assert (again.returncode, "is held" in again.stderr) == (2, True)


def test_nobody_decides_in_time(fresh: Running) -> None:
    fresh.instance.configure(scope=f'{HOLD}\nhold_timeout = "2s"')
    fresh.instance.egs("reload")
    waiting, hold = held(fresh, fresh.copy("/bin/echo", "echo"))
    listed = holds(fresh).get(waiting.pid)
    assert waiting.end() == DIED
    assert decision_on(fresh, hold, Reason.HOLD_EXPIRED).verdict is Verdict.KILL
    assert listed is None or listed["until"] - listed["since"] == pytest.approx(2, abs=0.01)


def test_it_is_killed_from_outside(system: Running) -> None:
    waiting, hold = held(system, system.copy("/bin/echo", "echo"))
    os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.end() == DIED
    decision_on(system, hold, Reason.HOLD_LOST)
    assert holds(system) == {}


def test_an_owner_who_continues_it_frees_it_not(system: Running) -> None:
    """A guard ends it; on the tier lsm the signal is refused before."""
    before = broken_holds(system)
    waiting, hold = held(system, system.copy("/bin/echo", "echo"))
    assert waiting.freed() == DIED
    decision_on(system, hold, Reason.HOLD_LOST)
    assert broken_holds(system) == before + (TIER is Tier.TRACEPOINT)


@pytest.mark.lsm
def test_an_owner_who_may_not_continue_it_keeps_it(system: Running) -> None:
    """The signal that was refused costs nothing: an artifact lets it go afterwards."""
    echo = system.copy("/bin/echo", "echo")
    waiting, _ = held(system, echo)
    with pytest.raises(PermissionError):
        waiting.let_go()
    system.add(system.issue(echo))
    assert waiting.end() == RAN


def broken_holds(system: Running) -> int:
    """How many the gate has killed because somebody else let them go."""
    status = json.loads(system.instance.egs("status", "--json").stdout)
    return int(status["details"]["failures"].get("hold_broken", 0))


def test_a_revoked_artifact_lets_nobody_go(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    artifact = system.issue(echo)
    artifact_id = system.add(artifact)
    system.instance.egs("artifacts", "remove", artifact_id)
    waiting, hold = held(system, echo)
    system.instance.egs("revoke", artifact_id)
    for command in (
        ("artifacts", "add", str(artifact)),
        ("holds", "approve", hold, "--artifact", str(artifact)),
    ):
        refused = system.instance.egs(*command, check=False)
        assert (refused.returncode, "[revoked]" in refused.stderr) == (1, True)
    assert waiting.pid in holds(system)


def test_a_program_that_was_touched_meanwhile(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    waiting, hold = held(system, echo)
    echo.chmod(0o700)
    artifact = system.issue(echo)
    refused = system.instance.egs("holds", "approve", hold, "--artifact", str(artifact), check=False)
    assert (refused.returncode, "[file_changed]" in refused.stderr) == (1, True)
    system.add(artifact)
    assert waiting.pid in holds(system)
    system.instance.egs("holds", "deny", hold)
    assert waiting.end() == DIED


def test_an_artifact_for_another_scope_or_user_or_with_constraints(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    waiting, hold = held(system, echo)
    words = (
        '[syscalls]\nprofile = "default"\n',
        '[process]\numask = "0077"\n',
        "[resources]\nopenFiles = 64\n",
        '[network]\nmode = "none"\n',
    )
    constrained = []
    for number, text in enumerate(words):
        file = system.folder / f"constraints{number}.toml"
        file.write_text(text)
        constrained.append(("constraint_not_attested", ("--constraints", str(file))))
    for reason, options in (
        ("identity_mismatch", ("--uid", "12345")),
        *constrained,
        ("cwd_mismatch", ("--cwd", "/nowhere")),
    ):
        artifact = system.issue(echo, *options)
        refused = system.instance.egs("holds", "approve", hold, "--artifact", str(artifact), check=False)
        assert (refused.returncode, f"[{reason}]" in refused.stderr) == (1, True), refused.stderr
    assert waiting.pid in holds(system)


def test_uses_that_are_spent_let_nobody_go(system: Running) -> None:
    """Two wait, and the artifact is for one."""
    echo = system.copy("/bin/echo", "echo")
    first, second = (execute(system.instance, echo, "word") for _ in range(2))
    wait_until_held(system, first, second)
    system.instance.egs("artifacts", "add", str(system.issue(echo, "--max-uses", "1")), check=False)
    readable, _, _ = select.select([first.output, second.output], [], [], SECONDS)
    ran, waits = (first, second) if first.output in readable else (second, first)
    assert ran.end() == RAN
    assert set(holds(system)) == {waits.pid}
    os.kill(waits.pid, signal.SIGKILL)
    assert waits.end() == DIED


# -- the daemon and the configuration ----------------------------------------------------------------


def test_while_no_daemon_runs_nobody_does(system: Running) -> None:
    """And the next daemon finds who waits."""
    echo = system.copy("/bin/echo", "echo")
    freed, _ = held(system, echo)
    kept, hold = held(system, echo)
    system.stop(signal.SIGKILL)
    assert freed.freed() == DIED
    system.start()
    assert set(holds(system)) == {kept.pid}
    assert holds(system)[kept.pid]["id"] == hold
    system.add(system.issue(echo))
    assert kept.end() == RAN


def test_a_daemon_that_stops_leaves_who_waits_stopped(system: Running) -> None:
    echo = system.copy("/bin/echo", "echo")
    waiting, _ = held(system, echo)
    assert system.stop() == 0
    assert waiting.is_waiting()
    system.start()
    system.add(system.issue(echo))
    assert waiting.end() == RAN


def test_guards_are_attached_while_a_scope_holds(fresh: Running) -> None:
    """Who waits in a scope that does not hold any more is killed: nothing would guard it."""
    links = [fresh.instance.paths.pins / f"link_{name}" for name in GUARDS]
    assert all(link.exists() for link in links)
    waiting, hold = held(fresh, fresh.copy("/bin/echo", "echo"))
    fresh.instance.configure()
    fresh.instance.egs("reload")
    assert waiting.end() == DIED
    decision_on(fresh, hold, Reason.HOLD_LOST)
    assert not any(link.exists() for link in links)
    assert fresh.inside("/bin/true") == REFUSED.code
    fresh.instance.configure(scope=HOLD)
    fresh.instance.egs("gate", "load")
    assert all(link.exists() for link in links)


def test_a_scope_that_is_removed_frees_nobody(fresh: Running) -> None:
    waiting, _ = held(fresh, fresh.copy("/bin/echo", "echo"))
    config = fresh.instance.paths.config
    config.write_text(config.read_text().replace('name = "test"', 'name = "other"'))
    fresh.instance.egs("reload")
    assert waiting.freed() == DIED


def test_unloading_the_gate_frees_nobody(fresh: Running) -> None:
    waiting, _ = held(fresh, fresh.copy("/bin/echo", "echo"))
    fresh.instance.egs("gate", "unload")
    assert waiting.end() == DIED


def test_a_guard_that_is_gone_is_a_problem_of_the_host(fresh: Running) -> None:
    (fresh.instance.paths.pins / "link_guard_return").unlink()
    fresh.wait_for(PostureEntry, lambda entry: bool(entry.posture.problems))
    status = json.loads(fresh.instance.egs("status", "--json").stdout)
    assert (status["healthy"], "guard_return" in status["details"]["problems"][0]) == (False, True)


# -- many ---------------------------------------------------------------------------------------------

MANY: Final = 1000


def test_of_many_exactly_those_run_that_are_approved(fresh: Running) -> None:
    """A thousand are held; an artifact for the arguments of every other one is added; the others are denied."""
    fresh.instance.configure(scope=f'{HOLD}\nhold_timeout = "10m"')
    fresh.instance.egs("reload")
    echo = fresh.copy("/bin/echo", "echo")
    waiting = [execute(fresh.instance, echo, ("no", "yes")[index % 2]) for index in range(MANY)]
    fresh.wait_for_exec(echo, Verdict.HOLD, MANY)
    begun = time.monotonic()
    fresh.add(fresh.issue(echo, "--argv", str(echo), "--argv", "yes"))
    ran = Counter(process.end() for process in waiting[1::2])
    seconds = time.monotonic() - begun
    assert ran == {(0, b"yes\n"): MANY // 2}
    left = holds(fresh)
    assert set(left) == {process.pid for process in waiting[::2]}
    fresh.instance.egs("holds", "deny", *(hold["id"] for hold in left.values()))
    assert Counter(process.end() for process in waiting[::2]) == {DIED: MANY // 2}
    assert len([d for d in fresh.entries(Decision) if d.reason is Reason.HOLD_DENIED]) == MANY // 2
    assert seconds < 30 * PATIENCE
