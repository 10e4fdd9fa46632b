"""Goal: have a process run that is held (T-21), without an authorization.

The attacker owns the process, may signal and trace it, and has made its image. Each attack is also made without the
guards, and then frees it: so it is the guards that hold. On the tier lsm the signal is refused besides; there each attack is
made three times: with all of it, with the guards alone, and with neither.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.gate import libbpf
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.parts import GUARDS, can_skip
from egs_kernel.model import ExecEvent, Reason, Tier, Verdict
from tests.harness import PATIENCE, Instance
from tests.holding import HOLD, Waiting, execute
from tests.images import PROGRAM, WORD, filled_image, plain_image, stack_image
from tests.refusals import TIER
from tests.running import SECONDS, disk_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egs_kernel.gate.pins import Gate

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="holding takes x86"),
]

KILLED: Final = (-signal.SIGKILL, b"")
FREE: Final = (0, WORD)
SIGNALS: Final = ("keep_signal", "keep_sigio")
"""What refuses the signal, on the tier lsm."""
ADDR_NO_RANDOMIZE: Final = 0x0040000
PTRACE_TRACEME, PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE = 0, 7, 17, 0x4206
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Prison:
    """A gate whose scope holds, and no daemon that would let anybody go."""

    def __init__(self, folder: Path, instance: Instance, gate: Gate) -> None:
        self.folder = folder
        self.instance = instance
        self.gate = gate
        self.refuses = False
        self._links: list[int] = []

    def guard_with(self, *names: str) -> None:
        """Have these guards attached, and no others; by links of our own, which go at once when they are closed."""
        for link in self._links:
            os.close(link)
        self._links = []
        for name in names:
            program = libbpf.open_pin(self.instance.paths.pins / name)
            if name in GUARDS:
                self._links.append(libbpf.attach_raw_tracepoint(GUARDS[name], program))
            else:
                self._links.append(libbpf.attach_lsm(program))
            os.close(program)
        self.refuses = any(name in SIGNALS for name in names)

    def wait_until_unguarded(self) -> None:
        """The kernel lets go of a link that is no longer pinned later, by itself: try until somebody gets away."""
        self.gate.holds.detach_guards()
        if TIER is Tier.LSM:
            for name in SIGNALS:
                (self.instance.paths.pins / f"link_{name}").unlink()
        image = plain_image(self.folder / "canary")
        deadline = time.monotonic() + SECONDS
        ended = KILLED
        while ended != FREE:
            assert time.monotonic() < deadline
            waiting = self.hold(image)
            try:
                waiting.let_go()
            except PermissionError:
                os.kill(waiting.pid, signal.SIGKILL)
            ended = waiting.end()

    def free(self, waiting: Waiting) -> None:
        """What the attacks come down to: its owner continues it. Who is refused that can still end it."""
        if not self.refuses:
            waiting.let_go()
            return
        with pytest.raises(PermissionError):
            waiting.let_go()
        assert waiting.is_waiting()
        assert waiting.pid in {task.pid for task in self.gate.holds.held()}
        os.kill(waiting.pid, signal.SIGKILL)

    def hold(self, image: Path, *arguments: str, before: Callable[[], object] = lambda: None) -> Waiting:
        """A process that is held."""
        self.gate.beat()
        waiting = execute(self.instance, image, *arguments, before=before)
        assert waiting.is_stopped()
        return waiting

    def events(self) -> list[ExecEvent]:
        """What the gate decided."""
        events: list[ExecEvent] = []
        self.gate.drain(lambda event: events.append(event) if isinstance(event, ExecEvent) else None)
        return events


@pytest.fixture(scope="module")
def _built() -> Iterator[Prison]:
    with disk_folder() as folder:
        instance = Instance.create(folder / "egs", grace="300s")
        instance.configure(grace="300s", scope=HOLD)
        try:
            gate = instance.load_gate()
            built = Prison(folder, instance, gate)
            built.wait_until_unguarded()
            yield built
            built.guard_with()
            gate.close()
        finally:
            instance.close()


@pytest.fixture
def prison(_built: Prison) -> Iterator[Prison]:
    """The prison, empty, with its guards."""
    _built.guard_with(*GUARDS)
    yield _built
    _built.instance.clear_cgroup()  # whom a test left that failed
    deadline = time.monotonic() + SECONDS
    while can_skip() and _built.gate.holds.held() and time.monotonic() < deadline:
        os.sched_yield()  # an end that the kernel skipped is seen a moment later
    assert _built.gate.holds.held() == []
    assert can_skip() or _built.gate.counters().missed == 0


@pytest.fixture(params=[pytest.param("refused", marks=pytest.mark.lsm), "guarded", "unguarded"])
def expected(request: pytest.FixtureRequest, prison: Prison) -> tuple[int, bytes]:
    """What comes of an attack, with the guards and without."""
    prison.guard_with(*{"refused": (*GUARDS, *SIGNALS), "guarded": GUARDS, "unguarded": ()}[request.param])
    return FREE if request.param == "unguarded" else KILLED


def read_image(pid: int) -> None:
    """Bring what it could execute into its memory, as whoever may trace it can."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in maps:
            span, modes = line.split()[:2]
            if "x" in modes and "[vsyscall]" not in line:
                start, end = (int(edge, 16) for edge in span.split("-"))
                memory.seek(start)
                memory.read(end - start)


def test_the_owner_continues_it(prison: Prison, expected: tuple[int, bytes]) -> None:
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    prison.free(waiting)
    assert waiting.end() == expected


def test_the_owner_continues_it_with_its_pages_in_memory(prison: Prison, expected: tuple[int, bytes]) -> None:
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    read_image(waiting.pid)
    prison.free(waiting)
    assert waiting.end() == expected


def test_a_descriptor_continues_it(prison: Prison, expected: tuple[int, bytes]) -> None:
    """F_SETOWN and F_SETSIG: the kernel sends it when the pipe can be read, in the name of whoever wrote."""
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, waiting.pid)
    fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGCONT)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writing, b"x")
    if prison.refuses:
        assert waiting.is_waiting()
        os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.end() == expected
    os.close(reading)
    os.close(writing)


def test_an_image_whose_first_page_the_kernel_fills(prison: Prison, expected: tuple[int, bytes]) -> None:
    waiting = prison.hold(filled_image(prison.folder / "filled"))
    prison.free(waiting)
    assert waiting.end() == expected


def test_an_image_that_begins_in_its_arguments(prison: Prison, expected: tuple[int, bytes]) -> None:
    def settle_the_stack() -> None:
        libc.personality(ctypes.c_ulong(ADDR_NO_RANDOMIZE))
        libc.clearenv()  # the environment would lie above the arguments

    image = stack_image(prison.folder / "stack", PROGRAM)
    waiting = prison.hold(image, os.fsdecode(PROGRAM), before=settle_the_stack)
    prison.free(waiting)
    assert waiting.end() == expected


@pytest.mark.parametrize("attack", ["filled", "read"])
def test_the_page_fault_guard_alone_is_not_enough(prison: Prison, attack: str) -> None:
    """Why there is another one."""
    prison.guard_with("guard_fault")
    make = filled_image if attack == "filled" else plain_image
    waiting = prison.hold(make(prison.folder / attack))
    if attack == "read":
        read_image(waiting.pid)
    prison.free(waiting)
    assert waiting.end() == FREE


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_kills_what_has_to_fault_in_its_first_page(prison: Prison, guard: str) -> None:
    prison.guard_with(guard)
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    prison.free(waiting)
    assert waiting.end() == KILLED


def test_a_tracer_that_was_there_before(prison: Prison, expected: tuple[int, bytes]) -> None:
    """It suppresses the stop."""
    prison.gate.beat()
    waiting = execute(
        prison.instance,
        plain_image(prison.folder / "plain"),
        before=lambda: libc.ptrace(PTRACE_TRACEME, 0, None, None),
    )
    assert stopped_by(waiting.pid) == signal.SIGTRAP
    libc.ptrace(PTRACE_CONT, waiting.pid, None, None)
    assert stopped_by(waiting.pid) == signal.SIGSTOP
    libc.ptrace(PTRACE_CONT, waiting.pid, None, None)
    assert waiting.end() == expected


def test_a_tracer_that_comes_and_detaches(prison: Prison, expected: tuple[int, bytes]) -> None:
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    assert libc.ptrace(PTRACE_SEIZE, waiting.pid, None, None) == 0
    prison.free(waiting)
    seen = os.waitid(os.P_PID, waiting.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if seen is not None and seen.si_code != os.CLD_KILLED:
        libc.ptrace(PTRACE_DETACH, waiting.pid, None, None)
    assert waiting.end() == expected


def stopped_by(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), status
    return os.WSTOPSIG(status)


def test_a_storm_of_continues_frees_none(prison: Prison) -> None:
    """Before, while and after it is stopped: hundreds of execs under as many SIGCONT as fit.

    They go to a process group: to the number of a process they could only go as long as nobody waited for it.
    """
    image, ends = plain_image(prison.folder / "plain"), Counter[tuple[int, bytes]]()
    rounds = 30 if PATIENCE <= 1 else 5  # an emulated exec takes long enough to be hit
    with subprocess.Popen(["sh", "-c", "while :; do kill -CONT 0; done"], process_group=0) as storm:
        prison.instance.reap_also(storm.pid)

        def join() -> None:
            os.setpgid(0, storm.pid)

        try:
            for _ in range(rounds):
                prison.gate.beat()
                waiting = [execute(prison.instance, image, before=join) for _ in range(10)]
                ends.update(process.end() for process in waiting)
                prison.gate.drain(lambda _event: None)
        finally:
            storm.kill()
    assert ends == {KILLED: rounds * 10}


@pytest.mark.lsm
def test_a_storm_of_continues_is_refused(prison: Prison) -> None:
    """Whoever is held when it begins waits on: no guard has to kill anybody.

    A signal that was permitted before the hold, and arrives after it, cannot be refused any more; that is the guards' (the
    storm above).
    """
    prison.guard_with(*GUARDS, *SIGNALS)
    before = prison.gate.counters().failures["hold_broken"]
    for _ in range(10):
        waiting = prison.hold(plain_image(prison.folder / "plain"))
        for _ in range(100):
            with pytest.raises(PermissionError):
                waiting.let_go()
        assert waiting.is_waiting()
        os.kill(waiting.pid, signal.SIGKILL)
        assert waiting.end() == KILLED
    assert prison.gate.counters().failures["hold_broken"] == before


def test_the_kernel_continues_it(prison: Prison, expected: tuple[int, bytes]) -> None:
    """As it does with a stopped process group that is orphaned: a signal that nobody is asked about."""
    image = plain_image(prison.folder / "plain")
    prison.gate.beat()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reading, writing = os.pipe()

    def in_a_group_of_its_own() -> None:
        os.dup2(writing, 1)
        os.setpgid(0, 0)

    parent = os.fork()
    if parent == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which comes along
            waiting = execute(prison.instance, image, before=in_a_group_of_its_own)
            assert waiting.is_stopped()
            os.write(writing, f"{waiting.pid}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(parent, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    said = b""
    while chunk := os.read(reading, 4096):
        said += chunk
    os.close(reading)
    pid, _, wrote = said.partition(b"\n")
    assert (os.waitstatus_to_exitcode(os.waitpid(int(pid), 0)[1]), wrote) == expected


def test_a_cgroup_that_is_frozen_and_thawed(prison: Prison) -> None:
    """Thawing wakes who was stopped, and it stops again."""
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    freeze = prison.instance.cgroup.folder / "cgroup.freeze"
    freeze.write_text("1")
    freeze.write_text("0")
    assert prison.gate.holds.held()[0].pid == waiting.pid
    prison.free(waiting)
    assert waiting.end() == KILLED


def test_a_way_out_of_the_cgroup(prison: Prison) -> None:
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    (cgroup_mount() / "cgroup.procs").write_text(str(waiting.pid))
    prison.free(waiting)
    assert waiting.end() == KILLED


def test_the_init_of_a_pid_namespace(prison: Prison, expected: tuple[int, bytes]) -> None:
    """Which ignores the signals that it did not ask for; but not this one."""
    image = plain_image(prison.folder / "plain")
    prison.gate.beat()
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            os.close(reading)
            prison.instance.cgroup.enter()
            libc.unshare(0x20000000)
            child = os.fork()
            if child == 0:
                os.dup2(writing, 1)
                os.execv(image, [str(image)])
            _, status = os.waitpid(child, os.WUNTRACED)
            stopped = os.WIFSTOPPED(status)
            os.kill(child, signal.SIGKILL if prison.refuses else signal.SIGCONT)
            _, status = os.waitpid(child, 0)
            os._exit(stopped << 6 | (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))
        finally:
            os._exit(120)
    os.close(writing)
    wrote = os.read(reading, 100)
    os.close(reading)
    _, status = os.waitpid(parent, 0)
    assert os.WEXITSTATUS(status) == 1 << 6 | -expected[0]
    assert wrote == expected[1]


def test_what_is_held_is_stopped_and_told(prison: Prison) -> None:
    """The control of all of these: the gate held them, for want of a grant."""
    prison.events()
    waiting = prison.hold(plain_image(prison.folder / "plain"))
    (event,) = prison.events()
    assert (event.verdict, event.reason, event.enforced) == (Verdict.HOLD, Reason.NO_GRANT, True)
    assert prison.gate.holds.held()[0].execution == event.execution
    os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.end() == KILLED
