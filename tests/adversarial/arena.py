"""Where attackers are let loose: one loaded gate, a scope on one cgroup, programs that tell whether they ran.

An attack is a function that runs in a process of its own and ends by executing something. Descriptor 9 of that
process, and of all that it makes, is a pipe to the test: what an image wrote there is the evidence that it
ran. The same function runs outside of the scope as the control, so an attack that does not work says so.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from egs_kernel.gate.pins import Gate
from egs_kernel.model import (
    ExecEvent,
    FileIdentity,
    GateEvent,
    Grant,
    Measurement,
    Reason,
    TaskIdentity,
    Verdict,
)
from egs_kernel.processes import start_ticks
from tests.harness import PATIENCE, PROGRAMS, Cgroup, Instance
from tests.refusals import denied_is_the_end, refusal

EVIDENCE: Final = 9
"""Descriptor of the pipe to the test."""
SECONDS: Final = 60.0 * PATIENCE
NOBODY: Final = 65534
_FAILED: Final = 97
_FOREVER: Final = 2**62
_CLOCK_REALTIME_COARSE: Final = 5

CLONE_NEWNS, CLONE_NEWCGROUP = 0x00020000, 0x02000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
CLONE_PARENT, CLONE_INTO_CGROUP = 0x00008000, 0x200000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_SYS_CLONE3: Final = 435
_SYS_EXECVEAT: Final = {"x86_64": 322, "aarch64": 281}

libc = ctypes.CDLL(None, use_errno=True)

Attack = Callable[[], object]


@dataclass(frozen=True)
class Attempt:
    """What came of an attack: what images wrote, its process's exit code, what the gate decided meanwhile."""

    wrote: bytes
    code: int
    execs: tuple[ExecEvent, ...]

    @property
    def reasons(self) -> list[Reason]:
        """Of the gate's decisions, in their order."""
        return [event.reason for event in self.execs]


@dataclass
class Arena:
    """A loaded gate with a scope `test` on `cgroup`, and the programs `good` and `evil`.

    An attack may use `gate`, too: for what the daemon would do at that moment.
    """

    folder: Path
    instance: Instance
    gate: Gate
    good: Path
    evil: Path
    good_waits: Path
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @classmethod
    def build(cls, folder: Path, instance: Instance) -> Arena:
        """Compile the programs and load the gate."""
        good = compile_word("good", folder / "good")
        evil = compile_word("evil", folder / "evil")
        waits = compile_word("good", folder / "good_waits", "-DWAIT")
        assert good.stat().st_size == evil.stat().st_size
        return cls(folder, instance, instance.load_gate(), good, evil, waits)

    @property
    def cgroup(self) -> Cgroup:
        """The scope's."""
        return self.instance.cgroup

    def fresh(self, program: Path, folder: Path | None = None) -> Path:
        """A copy of a program that a test may do anything to, old enough to be measured."""
        copy = (folder or self.folder) / f"{program.name}-{next(self._numbers)}"
        shutil.copy(program, copy)
        wait_for_next_tick(copy)
        return copy

    def attempt(self, attack: Attack, *, governed: bool = True) -> Attempt:
        """Run an attack in a process inside the scope, or outside of it."""
        self.gate.beat()
        self._events()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._perform(attack, reading, writing, governed=governed)
        os.close(writing)
        try:
            wrote = read_to_end(reading)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(reading)
            _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code != _FAILED, "the attack itself failed: see its traceback above"
        execs = tuple(self._events())
        assert [event.verdict for event in execs] == [_verdict(event.reason) for event in execs]
        return Attempt(wrote, code, execs)

    def _perform(self, attack: Attack, reading: int, writing: int, *, governed: bool) -> None:
        try:
            os.close(reading)
            os.dup2(writing, EVIDENCE)
            if writing != EVIDENCE:
                os.close(writing)
            if governed:
                self.cgroup.enter()
            attack()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked test process must not go on as a second pytest
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(_FAILED)

    def _events(self) -> list[ExecEvent]:
        events: list[GateEvent] = []
        self.gate.drain(events.append)
        return [event for event in events if isinstance(event, ExecEvent)]

    def identity(self, path: Path) -> FileIdentity:
        """A file as the gate sees it."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return self.gate.identify(descriptor)
        finally:
            os.close(descriptor)

    def measurement(self, path: Path) -> Measurement:
        """A file as an artifact names it beside the program."""
        return Measurement(hashlib.sha256(path.read_bytes()).hexdigest(), self.identity(path))

    def grant(self, program: Path, *argv: str) -> Grant:
        """What permits a program in the scope to anybody, for ever; with exactly `argv` when it is given."""
        return Grant(
            artifact_id="ab" * 32,
            scope="test",
            file=self.identity(program),
            digest=hashlib.sha256(program.read_bytes()).hexdigest(),
            not_before=0,
            not_after=_FOREVER,
            argv=tuple(os.fsencode(argument) for argument in argv) or None,
        )

    def permit(self, program: Path, *argv: str, **changes: object) -> int:
        """Install that grant; its id."""
        return self.gate.install(msgspec.structs.replace(self.grant(program, *argv), **changes))

    def arm(self, pid: int, program: Path, *argv: str) -> int:
        """Arm a process for one exec of a program with exactly `argv`, as the daemon does for a launcher."""
        return self.gate.arm(self.grant(program, *argv), TaskIdentity(pid, start_ticks(pid)))

    def forget_grants(self) -> None:
        """Nothing is permitted any more."""
        for grant in self.gate.standing():
            self.gate.withdraw(grant.grant_id)
        for pid in self.gate.armed():
            self.gate.disarm(pid)
        self.gate.collect()


def _verdict(reason: Reason) -> Verdict:
    return Verdict.ALLOW if reason is Reason.AUTHORIZED else refusal(reason).verdict


def compile_word(word: str, binary: Path, *flags: str) -> Path:
    """Compile tests/programs/say.c."""
    options = ["-O1", "-static", "-nostdlib", "-nostartfiles", "-fno-stack-protector", f'-DWORD="{word}"']
    subprocess.run(["gcc", *options, *flags, "-o", str(binary), str(PROGRAMS / "say.c")], check=True)
    return binary


def wait_for_next_tick(path: Path) -> None:
    """Let the coarse clock pass a file's change time: a later change then has another one (measure.py)."""
    changed = path.stat().st_ctime_ns
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= changed:
        os.sched_yield()


def read_to_end(descriptor: int, seconds: float = SECONDS) -> bytes:
    """Everything until the last writer is gone.

    Raises:
        TimeoutError: somebody still holds it open.
    """
    deadline = time.monotonic() + seconds
    content = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(f"still open after {seconds:g} s; so far {content!r}")
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return content
        content += chunk


# -- what attackers do, in their own process ---------------------------------------------------------


def execute(program: Path | str | int, *argv: str) -> None:
    """Execute a program, or an open file; argv[0] is the path when none is given. Refused, the process ends."""
    with denied_is_the_end():
        os.execve(program, list(argv) or [str(program)], os.environ)


def spawn(program: Path, *argv: str) -> None:
    """Execute a program in a child, by posix_spawn(3), and wait for its end."""
    try:
        child = os.posix_spawn(program, list(argv) or [str(program)], {})
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return  # refused; the C library has waited for it
    os.waitpid(child, 0)


def check(result: int) -> int:
    """Raise the OSError that a C function left behind."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def unshare(flags: int) -> None:
    """Go into new namespaces."""
    check(libc.unshare(flags))


def mount(source: Path | str, target: Path | str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system, or bind what is mounted."""
    words = [os.fsencode(word) if word else None for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) if data else None))


def private_mounts() -> None:
    """A mount namespace whose changes nobody else sees, and which ends with its processes."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def clone(flags: int, cgroup: int = 0, set_tid: int | None = None, exit_signal: int = signal.SIGCHLD) -> int:
    """clone3(2) as fork(2) does it; the child's id, 0 in the child."""
    wanted = (ctypes.c_int32 * 1)(set_tid or 0)
    fields = (ctypes.c_uint64 * 11)(
        flags,
        0,
        0,
        0,
        exit_signal,
        0,
        0,
        0,
        ctypes.addressof(wanted) if set_tid else 0,
        1 if set_tid else 0,
        cgroup,
    )
    return check(int(libc.syscall(_SYS_CLONE3, ctypes.byref(fields), ctypes.c_size_t(ctypes.sizeof(fields)))))


def execveat(folder: int, name: str) -> None:
    """Execute a file by its name in an open folder."""
    argv = (ctypes.c_char_p * 2)(os.fsencode(name), None)
    number = _SYS_EXECVEAT[platform.machine()]
    with denied_is_the_end():
        check(int(libc.syscall(number, folder, os.fsencode(name), argv, (ctypes.c_char_p * 1)(None), 0)))


def memfd_of(program: Path) -> int:
    """A memfd with the content of a program, open for reading only: one that is open for writing is busy."""
    writable = os.memfd_create("image", os.MFD_CLOEXEC)
    os.write(writable, program.read_bytes())
    readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(writable)
    return readable
