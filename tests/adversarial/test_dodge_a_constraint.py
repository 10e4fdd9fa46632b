"""T-14, T-23, T-28, O-16, O-17: who skips a constraint, does a weaker one or takes it back, is not armed, or dies before its program runs."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec
from egs_kernel.model import Reason, Verdict
from tests.constraining import Acts, compile_acts
from tests.harness import BIN, PATIENCE, REPOSITORY
from tests.landlock import HERE
from tests.refusals import REFUSED, refusal
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

ALL: Final = """
[resources]
openFiles = 32
cpuSeconds = 60
coreSize = 0

[process]
umask = "0077"
capabilities = ["chown"]
newPrivileges = "refused"
"""

BEFORE_READY: Final = {
    "no step at all": "apply.apply = lambda answer: None",
    "no limits": "from egs_kernel.apply import limits; limits.apply = lambda step: None",
    "a higher limit": """
from egs_kernel.apply import limits
do = limits.apply
limits.apply = lambda step: do({"values": step["values"] | {"nofile": 33}})
""",
    "the soft half alone": """
from egs_kernel.apply import limits
limits.apply = lambda step: [
    resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, 4096))
    for name, value in step["values"].items()
]
""",
    "another umask": "from egs_kernel.apply import umask; umask.apply = lambda step: os.umask(0o27)",
    "no capability given up": "from egs_kernel.apply import capabilities; capabilities.apply = lambda step: None",
    "one capability kept": """
from egs_kernel.apply import capabilities
do = capabilities.apply
capabilities.apply = lambda step: do({"kept": step["kept"] | 2})
""",
    "no no_new_privs": """
from egs_kernel.apply import no_new_privs
no_new_privs.apply = lambda step: None
""",
    "a second thread": """
do = apply.apply
def apply_and_thread(answer):
    do(answer)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
apply.apply = apply_and_thread
""",
    "a tracer of its own": """
libc = ctypes.CDLL(None)
launcher, (told, tell) = os.getpid(), os.pipe()
if os.fork() == 0:
    libc.ptrace(0x4206, launcher, None, None)  # PTRACE_SEIZE
    os.write(tell, b"x")
    while os.getppid() == launcher:
        time.sleep(0.01)
    os._exit(0)
os.read(told, 1)
""",
    "a child does the steps and goes on": """
do = apply.apply
def apply_in_a_child(answer):
    if os.fork():
        os.wait()
    else:
        do(answer)
apply.apply = apply_in_a_child
""",
}
"""Launchers that do not what they say."""

BEFORE_EXEC: Final = {
    "the umask again": "os.umask(0)",
    "a thread that shares it": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "an exec that fails, and then the umask": """
try: os.execv("/nonexistent", ["x"])
except FileNotFoundError: pass
os.umask(0)
""",
    "a child that shares its folder and umask": """
libc = ctypes.CDLL(None)
if libc.syscall(56, 0x200 | 17, 0, 0, 0, 0) == 0:  # clone(CLONE_FS | SIGCHLD)
    os.umask(0)
    os._exit(0)
os.wait()
""",
    "an exec by a thread that nobody traces": """
libc = ctypes.CDLL(None)
def execute_there():
    os.umask(0)
    os.execv(given[0], given[1])
threading.Thread(target=execute_there).start()
time.sleep(60)
""",
}
"""What launchers do between "go" and their exec, which could undo what was attested."""

HELPER: Final = """
libc, launcher = ctypes.CDLL(None), os.getpid()
(told, tell), (answered, answer) = os.pipe(), os.pipe()
helper = os.fork()
if helper == 0:
    os.close(tell)  # else it would not end with the launcher
    {first}
    os.write(answer, b"x")
    if os.read(told, 1):
        {then}
        os.write(answer, b"x")
    os._exit(0)
os.close(answer)
os.read(answered, 1)
"""
"""A process that the launcher makes before it is restricted, and that it asks for something later."""

NAMESPACE: Final = (
    HELPER.format(first="assert libc.unshare(0x10000000) == 0", then="pass")
    + """
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{helper}/{name}", "w") as file:
        file.write("0 0 4294967295")
namespace = os.open(f"/proc/{helper}/ns/user", os.O_RDONLY)
"""
)
"""Its user namespace: root has all capabilities there, whatever it gave up outside."""

FIXED: Final = {
    "another folder": ("--cwd", 'os.chdir("/")'),
    "another environment": ("--env", 'os.environ["MORE"] = "1"'),
    "another value": ("--env", 'os.environ["PATH"] = "/tmp"'),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One system for all of them."""
    with running_on_disk() as system:
        yield system


@pytest.fixture(scope="module")
def acts(running: Running) -> Acts:
    return Acts(running, compile_acts(running.folder))


def outcomes(running: Running) -> int:
    """How many programs ran."""
    return len([entry for entry in running.entries(Exec) if entry.event.verdict is Verdict.ALLOW])


def test_an_honest_launcher_passes(running: Running, acts: Acts) -> None:
    done = acts.lie(acts.issue(ALL), "", "files", "1")
    assert (done.returncode, done.stdout) == (0, "done\n"), (done, running.log())
    running.wait_for_exec(acts.program, Verdict.ALLOW)


@pytest.mark.parametrize("lie", BEFORE_READY, ids=str)
def test_what_was_not_done_is_seen(running: Running, acts: Acts, lie: str) -> None:
    before = outcomes(running)
    done = acts.lie(acts.issue(ALL), BEFORE_READY[lie], "files", "1")
    assert done.stdout == "", done
    assert done.returncode != 0
    assert "[constraint_not_attested]" in done.stderr or done.returncode < 0, done
    running.wait_for_decisions(Reason.CONSTRAINT_NOT_ATTESTED)
    assert outcomes(running) == before


@pytest.mark.parametrize("lie", BEFORE_EXEC, ids=str)
def test_what_is_undone_before_the_exec_is_seen(acts: Acts, lie: str) -> None:
    done = acts.lie(acts.issue(ALL), _before_exec(BEFORE_EXEC[lie]), "files", "1")
    never_armed = done.returncode == refusal(Reason.NO_GRANT).code
    assert (done.returncode < 0 or never_armed, done.stdout) == (True, ""), done


def test_who_has_all_capabilities_again_before_the_exec_is_seen(running: Running, acts: Acts) -> None:
    lie = NAMESPACE + _before_exec("assert libc.setns(namespace, 0x10000000) == 0")
    free = acts.lie(acts.issue('[process]\numask = "0077"\n'), lie, "files", "1")
    assert (free.returncode, free.stdout) == (0, "done\n"), free
    done = acts.lie(acts.issue('[process]\numask = "0077"\ncapabilities = "none"\n'), lie, "files", "1")
    assert (done.returncode, done.stdout) == (-9, ""), done
    running.wait_for_decisions(Reason.CONSTRAINT_NOT_ATTESTED)


def test_who_leaves_its_cgroup_before_the_exec_does_not_execute(running: Running, acts: Acts) -> None:
    away = running.instance.cgroup.child("elsewhere")
    before = HELPER.format(
        first="pass", then=f'print(launcher, file=open({str(away.procs)!r}, "w"), flush=True)'
    )
    act = 'os.write(tell, b"x")\nassert os.read(answered, 1)'
    artifact = acts.issue("[resources]\nwallSeconds = 600\n")
    done = acts.lie(artifact, before + _before_exec(act), "files", "1")
    assert (done.returncode, done.stdout) == (refusal(Reason.CGROUP_MISMATCH).code, ""), done
    running.wait_for_refusal(acts.program, Reason.CGROUP_MISMATCH)
    away.folder.rmdir()
    honest = acts.lie(artifact, before, "files", "1")
    assert (honest.returncode, honest.stdout) == (0, "done\n"), honest


@pytest.mark.parametrize("lie", FIXED, ids=str)
def test_folder_and_environment_are_those_of_the_new_image(running: Running, acts: Acts, lie: str) -> None:
    option, act = FIXED[lie]
    given = ["--cwd", str(running.folder)] if option == "--cwd" else []
    for name in running.instance.environment if option == "--env" else ():
        given += ["--env", f"PATH={running.instance.environment['PATH']}" if name == "PATH" else name]
    artifact = acts.issue("", *given)
    honest = running.run("--artifact", str(artifact), str(acts.program), "files", "1", cwd=running.folder)
    assert (honest.returncode, honest.stdout) == (0, "done\n"), honest
    code = "os.chdir(os.path.dirname(sys.argv[3]))\n" + _before_exec(act)
    done = acts.lie(artifact, code, "files", "1")
    assert (done.returncode, done.stdout) == (-9, ""), done


def test_who_follows_a_launcher_takes_it_along(running: Running, acts: Acts) -> None:
    """The daemon is killed between "go" and the exec: so is the launcher."""
    act = f"os.kill({running.pid}, signal.SIGKILL); time.sleep(60)"
    done = acts.lie(acts.issue(ALL), _before_exec(act), "files", "1")
    assert running.daemon is not None
    running.daemon.wait(SECONDS)
    running.start()
    assert (done.returncode, done.stdout) == (-9, ""), done


_LAUNCHES_AGAIN: Final = """
import sys
sys.path.insert(0, {repository!r})
from egs_kernel import launch
print("asks", flush=True)
sys.exit(launch.main(["--artifact", {artifact!r}, {program!r}, "files", "1"]))
"""


@pytest.mark.parametrize("children", ["", '[process]\nchildren = "none"\n'])
def test_no_launch_out_of_a_program_without_children(running: Running, acts: Acts, children: str) -> None:
    """It is a launcher itself: authorized and armed, its exec is refused all the same."""
    script, python = running.folder / "again.py", Path("/usr/bin/python3").resolve()
    artifact = acts.issue("")
    again = {"repository": str(REPOSITORY), "artifact": str(artifact), "program": str(acts.program)}
    script.write_text(_LAUNCHES_AGAIN.format(**again))
    argv = [str(python), "-I", str(script)]
    bound = [word for argument in argv for word in ("--argv", argument)]
    constraints = running.folder / "again.toml"
    constraints.write_text(children)
    more = ["--constraints", str(constraints)] if children else []
    outer = running.issue(python, *bound, "--script", str(script), *more, name="outer.json")
    done = running.run("--artifact", str(outer), *argv)
    assert done.stdout.splitlines()[:1] == ["asks"], done
    if not children:
        assert (done.returncode, done.stdout) == (0, "asks\ndone\n"), done
        return
    assert (done.returncode, done.stdout) == (REFUSED.code, "asks\n")
    running.wait_for_refusal(acts.program, Reason.CHILD_REFUSED)


def test_o16_root_leaves_its_cgroup(running: Running, acts: Acts) -> None:
    """Nothing is killed at its time that is elsewhere by then."""
    away = running.instance.cgroup.child("away")
    with subprocess.Popen(
        [
            str(BIN / "egs"),
            "run",
            "--artifact",
            str(acts.issue(f"[resources]\nwallSeconds = {int(PATIENCE)}\n")),
            str(acts.program),
            "tree",
            "0",
        ],
        env=running.instance.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"pid {process.pid}\n"
        away.procs.write_text(f"{process.pid}\n")  # what it could do itself
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(PATIENCE + 1)
        process.kill()


@HERE
def test_a_child_of_the_launcher_changes_nothing_of_the_program_later(acts: Acts) -> None:
    """Made with CLONE_FS it had the program's folder and umask, and changed them while the program runs."""
    changed = acts.program.with_name("changed")
    act = f"""
libc = ctypes.CDLL(None)
program = os.getpid()
if libc.syscall(56, 0x200 | 17, 0, 0, 0, 0) == 0:  # clone(CLONE_FS | SIGCHLD)
    while open(f"/proc/{{program}}/comm").read().strip() != "acts-copy":
        pass
    os.umask(0)
    os.close(os.open({str(changed)!r}, os.O_CREAT))
    os._exit(0)
"""
    done = acts.lie(acts.issue('[process]\numask = "0077"\n'), _before_exec(act), "waits", str(changed))
    assert changed.exists()
    assert "umask 0077" in done.stdout, done


def test_o17_another_process_of_the_same_user_lowers_a_limit(acts: Acts, running: Running) -> None:
    artifact = acts.issue("[resources]\nopenFiles = 64\n")
    command = [str(BIN / "egs"), "run", "--artifact", str(artifact), str(acts.program), "tree", "0"]
    with subprocess.Popen(
        command, env=running.instance.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"pid {process.pid}\n"
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (64, 64)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (8, 8))
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (8, 8)
        process.kill()


def _before_exec(act: str) -> str:
    indented = "\n".join(f"    {line}" for line in act.strip().splitlines())
    return (
        f"execute = launch._execute\ndef act(*given):\n{indented}\n    execute(*given)\nlaunch._execute = act"
    )
