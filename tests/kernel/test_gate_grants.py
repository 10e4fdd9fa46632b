"""Every reason of the gate, each from a real exec: the grant that permits it, one thing off, and the refusal."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.model import ExecEvent, ExitEvent, GateEvent, Grant, GrantKind, Reason, TaskIdentity, Verdict
from egs_kernel.processes import start_ticks
from tests.harness import PATIENCE
from tests.refusals import KILLED, REFUSED, Refusal, refusal, start

if TYPE_CHECKING:
    from egs_kernel.gate.pins import Gate
    from tests.harness import Instance

pytestmark = pytest.mark.kernel

FOREVER: Final = 2**62
SECONDS: Final = 30 * PATIENCE
NOBODY: Final = 65534
CLOCK_REALTIME_COARSE: Final = 5
"""clock_gettime(2); Python names it nowhere."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A real program of our own that we may tamper with, reachable by any user."""
    copy = tmp_path / "echo"
    shutil.copy("/bin/echo", copy)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    # A change within the same tick of the coarse clock would not show: measure.py waits, and so do we.
    changed = copy.stat().st_ctime_ns
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= changed:
        os.sched_yield()
    return copy


@pytest.fixture
def grant(gate: Gate, program: Path) -> Grant:
    """What permits `program` in scope `test`, to anybody, with any arguments, for ever."""
    return Grant(
        artifact_id="ab" * 32,
        scope="test",
        file=identity(gate, program),
        digest=hashlib.sha256(program.read_bytes()).hexdigest(),
        not_before=0,
        not_after=FOREVER,
    )


def identity(gate: Gate, path: Path) -> Any:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return gate.identify(descriptor)
    finally:
        os.close(descriptor)


class Run:
    """One exec in the scope: how it ended and what the gate said of it."""

    def __init__(self, gate: Gate, instance: Instance, *command: str | Path, **options: Any) -> None:
        def prepare() -> None:
            instance.cgroup.enter()
            also()

        also: Callable[[], None] = options.pop("prepare", lambda: None)
        process = start(command, prepare, stdout=subprocess.PIPE, **options)
        out, _ = process.communicate(timeout=SECONDS)
        events: list[GateEvent] = []
        gate.drain(events.append)
        self.code = process.returncode
        self.out = out
        self.events = [event for event in events if event.pid == process.pid]

    @property
    def event(self) -> ExecEvent:
        executed = [event for event in self.events if isinstance(event, ExecEvent)]
        assert len(executed) == 1
        return executed[0]

    @property
    def reason(self) -> Reason:
        return self.event.reason


@pytest.fixture
def run(gate: Gate, instance: Instance) -> Callable[..., Run]:
    return lambda *command, **options: Run(gate, instance, *command, **options)


def refused(run: Run, reason: Reason, end: Refusal | None = None) -> None:
    """It ended before it said anything, for that reason; as one that is refused for it ends, or so."""
    end = end or refusal(reason)
    assert (run.reason, run.event.verdict, run.code, run.out) == (reason, end.verdict, end.code, b"")


def test_a_granted_program_runs_and_its_outcome_is_reported(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    grant_id = gate.install(grant)

    done = run(program, "hello")

    assert (done.code, done.out) == (0, b"hello\n")
    event, ended = done.events
    assert isinstance(event, ExecEvent)
    assert isinstance(ended, ExitEvent)
    assert (event.verdict, event.reason, event.grant_kind) == (
        Verdict.ALLOW,
        Reason.AUTHORIZED,
        GrantKind.STANDING,
    )
    assert (event.grant_id, event.artifact_id, event.scope) == (grant_id, grant.artifact_id, "test")
    assert (event.argv, event.filename, event.file) == ((str(program), "hello"), str(program), grant.file)
    assert (ended.execution, ended.status) == (event.execution, 0)


def test_without_a_grant(run: Callable[..., Run], program: Path) -> None:
    refused(run(program), Reason.NO_GRANT)


def test_a_withdrawn_grant(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.withdraw(gate.install(grant))
    refused(run(program), Reason.NO_GRANT)


def test_a_stale_daemon(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(grant)
    gate.stop_beating()
    refused(run(program), Reason.DAEMON_STALE)


def test_a_touched_file(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(grant)
    os.utime(program)
    refused(run(program), Reason.FILE_CHANGED)


def test_a_tampered_file_with_its_times_set_back(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    gate.install(grant)
    before = program.stat()
    with program.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(run(program), Reason.FILE_CHANGED)


def test_another_file_at_the_same_path(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    gate.install(grant)
    other = program.with_name("other")
    shutil.copy(program, other)
    other.rename(program)
    refused(run(program), Reason.NO_GRANT)


def test_before_the_window(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(msgspec.structs.replace(grant, not_before=FOREVER - 1))
    refused(run(program), Reason.NOT_YET_VALID)


def test_after_the_window(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(msgspec.structs.replace(grant, not_after=time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
    refused(run(program), Reason.EXPIRED)


def test_another_user(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(msgspec.structs.replace(grant, uid=NOBODY))
    refused(run(program), Reason.IDENTITY_MISMATCH)
    assert run(program, prepare=lambda: os.setresuid(NOBODY, NOBODY, NOBODY)).code == 0


def test_a_set_user_id_program_is_somebody_else(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    program.chmod(0o4755)
    gate.install(msgspec.structs.replace(grant, uid=NOBODY, file=identity(gate, program)))
    done = run(program, prepare=lambda: os.setresuid(NOBODY, NOBODY, NOBODY))
    refused(done, Reason.IDENTITY_MISMATCH, KILLED)  # who it becomes is known at the tracepoint


def test_another_cgroup(
    gate: Gate, instance: Instance, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    place = instance.cgroup.child("place")
    gate.install(msgspec.structs.replace(grant, cgroup_id=place.id))
    refused(run(program), Reason.CGROUP_MISMATCH)
    assert run(program, prepare=place.enter).code == 0


def test_without_no_new_privs(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(msgspec.structs.replace(grant, no_new_privs=True))
    refused(run(program), Reason.NO_NEW_PRIVS_MISSING)
    assert run(program, prepare=set_no_new_privs).code == 0


def test_without_the_seccomp_filter(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    inherited = int(proc_status("Seccomp_filters"))
    gate.install(msgspec.structs.replace(grant, seccomp_filters=inherited + 1))
    refused(run(program, prepare=set_no_new_privs), Reason.SECCOMP_MISSING)
    assert run(program, prepare=install_filter).code == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("one",),
        ("one", "two", ""),
        ("one", "twO"),
        ("one two",),
        ("one\x01two",),
        ("one", "two", "three"),
        (),
    ],
)
def test_other_arguments(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path, argv: tuple[str, ...]
) -> None:
    gate.install(msgspec.structs.replace(grant, argv=(bytes(program), b"one", b"two")))
    refused(run(program, *argv), Reason.ARGV_MISMATCH)
    assert run(program, "one", "two").out == b"one two\n"


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 200, 255, 256, 257, 1000, 4000])
def test_arguments_of_every_length_are_compared_to_the_last_byte(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path, length: int
) -> None:
    word = "a" * length
    gate.install(msgspec.structs.replace(grant, argv=(bytes(program), word.encode() + b"b")))
    refused(run(program, word + "c"), Reason.ARGV_MISMATCH)
    done = run(program, word + "b")
    assert (done.code, done.event.argv) == (0, (str(program), word + "b"))


def test_arguments_beyond_what_can_be_bound(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    with pytest.raises(GateError, match="bound argv"):
        gate.install(msgspec.structs.replace(grant, argv=(b"a" * abi.ARGV_MAX,)))
    gate.install(msgspec.structs.replace(grant, argv=(bytes(program), b"a")))
    done = run(program, "a" * 100_000)
    refused(done, Reason.ARGV_MISMATCH)
    assert done.event.argv_truncated


def test_an_empty_argv(gate: Gate, instance: Instance, grant: Grant, program: Path) -> None:
    """Linux makes argv[0] an empty string (dcd46d897adb): no grant for another argv covers it."""
    gate.install(msgspec.structs.replace(grant, argv=(bytes(program),)))
    process = subprocess.Popen([""], executable=program, preexec_fn=instance.cgroup.enter)
    assert process.wait(SECONDS) == KILLED.code
    (event,) = events_of(gate, process.pid)
    assert (event.reason, event.verdict) == (Reason.ARGV_MISMATCH, KILLED.verdict)


PLAIN: Final = {"PATH": "/bin", "LONG": "l" * 9000, "EMPTY": "", "XLD_PRELOAD": "x", "ENVY": "e", "LD": "l"}


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_X", "GCONV_PATH", "ENV", "BASH_FUNC_ls%%", "PYTHONPATH", "_JAVA_OPTIONS"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_variable_that_makes_programs_load_code(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path, name: str, *, first: bool
) -> None:
    gate.install(grant)
    variable = {name: "x"}
    refused(run(program, env=variable | PLAIN if first else PLAIN | variable), Reason.ENVIRONMENT_REFUSED)
    assert run(program, env=PLAIN).code == 0
    gate.install(msgspec.structs.replace(grant, code_variables=True))
    assert run(program, env=PLAIN | variable).code == 0


def test_more_variables_than_the_gate_looks_at(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    gate.install(grant)
    many = {f"V{number}": "" for number in range(abi.ENV_STRINGS - 1)}
    assert run(program, env=many).code == 0
    refused(run(program, env=many | {"ONE_MORE": ""}), Reason.ENVIRONMENT_UNREADABLE)


def test_the_pieces_of_a_long_variable_are_no_hiding_place(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    """Whatever the length of what comes before, the variable after it is seen."""
    gate.install(grant)
    for length in (*range(4085, 4100), *range(8180, 8196)):
        refused(run(program, env={"A": "a" * length, "LD_PRELOAD": "x"}), Reason.ENVIRONMENT_REFUSED)


@pytest.mark.parametrize("length", [4092, 4093, 4094, 8188, 8189])
def test_a_long_variable_is_no_reason_to_refuse(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path, length: int
) -> None:
    """Also where a piece of it begins at its end, and is an empty string."""
    gate.install(grant)
    assert run(program, env={"A": "a" * length, "B": "b"}).code == 0


def test_an_empty_variable_is_no_reason_to_refuse(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    """A string without even a name, as execve(2) permits."""
    gate.install(grant)

    def execute() -> None:
        words = (ctypes.c_char_p * 2)(bytes(program), None)
        for variables in ((b"", b"A=b", None), (b"", b"LD_PRELOAD=x", None)):
            child = os.fork()
            if child == 0:
                ctypes.CDLL(None).execve(bytes(program), words, (ctypes.c_char_p * 3)(*variables))
                os._exit(1)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(ends == [0, KILLED.code])

    ends: list[int] = []
    assert run(program, prepare=execute).code == 1


def test_uses_run_out(gate: Gate, run: Callable[..., Run], grant: Grant, program: Path) -> None:
    gate.install(msgspec.structs.replace(grant, uses=2))
    assert [run(program).code for _ in range(2)] == [0, 0]
    refused(run(program), Reason.USES_EXHAUSTED)
    assert [state.uses_left for state in gate.standing()] == [0]


def test_a_refused_exec_costs_no_use(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    gate.install(msgspec.structs.replace(grant, uses=1, argv=(bytes(program),)))
    refused(run(program, "wrong"), Reason.ARGV_MISMATCH)
    assert run(program).code == 0


def test_reinstalling_gives_no_use_back(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    limited = msgspec.structs.replace(grant, uses=1)
    first = gate.install(limited)
    assert run(program).code == 0
    assert gate.install(limited) == first
    refused(run(program), Reason.USES_EXHAUSTED)


def test_the_last_use_is_taken_once_however_many_want_it(
    gate: Gate, instance: Instance, grant: Grant, programs: dict[str, Path], tmp_path: Path
) -> None:
    uses, tries = 50, 400
    first_write = programs["first_write"]
    digest = hashlib.sha256(first_write.read_bytes()).hexdigest()
    limited = msgspec.structs.replace(grant, uses=uses, file=identity(gate, first_write), digest=digest)
    gate.install(limited)
    output = tmp_path / "output"
    output.touch()
    command = [
        programs["burst"],
        instance.cgroup.procs,
        "fork",
        "8",
        str(tries),
        programs["first_write"],
        output,
    ]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True, timeout=2 * SECONDS
    )
    assert done.stdout == f"killed {tries - uses} denied 0 exited {uses} other 0\n"
    assert output.read_bytes() == b"x" * uses


def test_no_audit_slot_no_exec(gate: Gate, instance: Instance, grant: Grant, program: Path) -> None:
    """Nobody drains: sooner or later there is no room for an event, and then nothing runs."""
    gate.install(grant)
    limit = 2 * abi_ring_bytes() // 4096

    ran, code = execute_until_refused(instance, program, limit)

    assert (code, ran < limit) == (KILLED.code, True)
    assert gate.counters().decisions[Verdict.KILL, Reason.AUDIT_UNAVAILABLE, True] == 1
    events: list[GateEvent] = []
    gate.drain(events.append)
    assert sum(isinstance(event, ExecEvent) for event in events) == ran
    assert execute_until_refused(instance, program, 1) == (1, 0)


def execute_until_refused(instance: Instance, program: Path, most: int) -> tuple[int, int]:
    """Execute a program in the scope again and again: how often it ran, and the exit code of the last."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            instance.cgroup.enter()
            ran = code = 0
            quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
            while ran < most and code == 0:
                one = os.posix_spawn(program, [str(program), "a" * 4000], {}, file_actions=quiet)
                code = os.waitstatus_to_exitcode(os.waitpid(one, 0)[1])
                ran += code == 0
            os.write(writing, f"{ran} {code}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    said = os.read(reading, 64).split()
    os.close(reading)
    return int(said[0]), int(said[1])


def test_several_artifacts_for_one_file(
    gate: Gate, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    for number in range(abi.GRANTS_PER_FILE):
        artifact = msgspec.structs.replace(
            grant, artifact_id=f"{number:064x}", argv=(bytes(program), str(number).encode())
        )
        gate.install(artifact)
    with pytest.raises(GateError, match="standing artifacts"):
        gate.install(grant)
    assert [run(program, str(number)).out for number in range(abi.GRANTS_PER_FILE)] == [
        f"{number}\n".encode() for number in range(abi.GRANTS_PER_FILE)
    ]
    refused(run(program, "9"), Reason.ARGV_MISMATCH)


class Armed:
    """A process in the scope that waits, so that it can be armed, and then executes."""

    def __init__(self, instance: Instance, *command: str | Path) -> None:
        self._read, self._write = os.pipe()
        ready, running = threading.Event(), self._read
        self.process: subprocess.Popen[bytes]

        def wait_for_go() -> None:
            instance.cgroup.enter()
            os.close(self._write)
            os.write(1, b"?")
            os.read(running, 1)

        def begin() -> None:
            self.process = start(command, wait_for_go, stdout=output, stdin=subprocess.DEVNULL)
            ready.set()

        self._output, output = os.pipe()
        # Popen returns only after the exec: the process id comes from the scope instead.
        self._thread = threading.Thread(target=begin)
        self._thread.start()
        assert os.read(self._output, 1) == b"?"
        os.close(output)
        self._ready = ready
        self.pid = int(instance.cgroup.procs.read_text().split()[-1])

    @property
    def task(self) -> TaskIdentity:
        return TaskIdentity(self.pid, start_ticks(self.pid))

    def go(self) -> tuple[int, bytes]:
        os.close(self._write)
        os.close(self._read)
        self._thread.join(timeout=SECONDS)
        out = b""
        while chunk := os.read(self._output, 65536):
            out += chunk
        os.close(self._output)
        return self.process.wait(timeout=SECONDS), out


def events_of(gate: Gate, pid: int) -> list[ExecEvent]:
    events: list[GateEvent] = []
    gate.drain(events.append)
    return [event for event in events if isinstance(event, ExecEvent) and event.pid == pid]


def test_an_armed_grant_is_for_one_exec_of_one_process(
    gate: Gate, instance: Instance, run: Callable[..., Run], grant: Grant, program: Path
) -> None:
    waiting = Armed(instance, program, "once")
    gate.arm(grant, waiting.task)
    refused(run(program, "somebody else"), Reason.NO_GRANT)
    assert waiting.go() == (0, b"once\n")
    assert [event.grant_kind for event in events_of(gate, waiting.pid)] == [GrantKind.ARMED]
    assert gate.armed() == {}


def test_an_armed_process_executes_what_it_was_armed_for_or_nothing(
    gate: Gate, instance: Instance, grant: Grant, program: Path
) -> None:
    gate.install(msgspec.structs.replace(grant, file=identity(gate, Path("/bin/cat"))))
    waiting = Armed(instance, "/bin/cat", "/dev/null")
    gate.arm(grant, waiting.task)
    assert waiting.go() == (REFUSED.code, b"")
    assert [event.reason for event in events_of(gate, waiting.pid)] == [Reason.SUBJECT_MISMATCH]


def test_a_grant_armed_for_an_earlier_process_of_that_number(
    gate: Gate, instance: Instance, grant: Grant, program: Path
) -> None:
    waiting = Armed(instance, program)
    gate.arm(grant, TaskIdentity(waiting.pid, waiting.task.start_ticks - 1))
    assert waiting.go() == (REFUSED.code, b"")
    assert [event.reason for event in events_of(gate, waiting.pid)] == [Reason.IDENTITY_MISMATCH]


def test_a_disarmed_process(gate: Gate, instance: Instance, grant: Grant, program: Path) -> None:
    waiting = Armed(instance, program)
    gate.arm(grant, waiting.task)
    gate.disarm(waiting.pid)
    assert waiting.go() == (REFUSED.code, b"")


def test_nothing_of_an_armed_grant_is_left_however_it_ends(
    gate: Gate, instance: Instance, grant: Grant, program: Path
) -> None:
    bound = msgspec.structs.replace(grant, argv=(bytes(program),), uses=1)

    def leftovers() -> int:
        return len(gate.grants.argvs.keys()) + len(gate.grants.uses.keys()) + len(gate.armed())

    executed = Armed(instance, program)
    grant_id = gate.arm(bound, executed.task)
    assert executed.go()[0] == 0
    gate.forget(grant_id)
    assert leftovers() == 0
    died = Armed(instance, program)
    gate.arm(bound, died.task)
    os.kill(died.pid, signal.SIGKILL)
    died.go()
    gate.disarm(died.pid)
    assert leftovers() == 0
    orphaned = Armed(instance, program)
    gate.arm(bound, orphaned.task)
    assert orphaned.go()[0] == 0
    gate.install(msgspec.structs.replace(bound, artifact_id="cd" * 32))
    gate.collect()
    assert leftovers() == 2


def test_observe_records_and_refuses_nothing(instance: Instance, program: Path) -> None:
    instance.configure(mode="observe")
    gate = instance.load_gate()
    try:
        gate.beat()
        done = Run(gate, instance, program, "hello")
        assert (done.code, done.out) == (0, b"hello\n")
        assert (done.event.verdict, done.reason, done.event.enforced) == (
            Verdict.KILL,
            Reason.NO_GRANT,
            False,
        )
    finally:
        gate.close()


def set_no_new_privs() -> None:
    assert ctypes.CDLL(None).prctl(38, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) == 0


def install_filter() -> None:
    """One instruction: allow."""
    set_no_new_privs()
    code = ctypes.create_string_buffer(bytes.fromhex("060000000000ff7f"))
    program = ctypes.create_string_buffer(16)
    ctypes.c_uint16.from_buffer(program).value = 1
    ctypes.c_uint64.from_buffer(program, 8).value = ctypes.addressof(code)
    zero = ctypes.c_ulong(0)
    assert ctypes.CDLL(None).prctl(22, ctypes.c_ulong(2), ctypes.byref(program), zero, zero) == 0


def proc_status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{field}:"))


def abi_ring_bytes() -> int:
    """EGS_RING_PAGES of 4 KiB."""
    return 1024 * 4096
