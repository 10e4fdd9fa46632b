"""What constraints refuse is seen: in the record with its execution, in the metrics, in `egs ps --why`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from egs_kernel.audit.entries import Exec, Outcome, Refusal
from egs_kernel.gate.pins import CLOCK_GRAIN
from egs_kernel.model import Reason, Verdict
from tests.adversarial.arena import clone
from tests.harness import BIN, compile_program
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

PROFILE: Final = '[syscalls]\nprofile = "default"\n'
LANDLOCK_TELLS: Final = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 15)
CALLED_OFTEN: Final = 20_000


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    with running_on_disk() as running:
        yield running


@pytest.fixture(scope="module")
def refuses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that makes a call which its constraint refuses."""
    return compile_program("refuses", tmp_path_factory.mktemp("refuses"))


class Auditing:
    """The kernel's switch for auditing, which Landlock's messages depend on. struct audit_status is 11 numbers."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)

    @property
    def enabled(self) -> int:
        self._socket.send(struct.pack("=IHHII", 16, 1000, 1, 0, 0))  # AUDIT_GET
        return int(struct.unpack_from("=I", self._socket.recv(4096), 16 + 4)[0])

    def enable(self, value: int) -> None:
        status = struct.pack("=11I", 1, value, *[0] * 9)  # AUDIT_STATUS_ENABLED
        self._socket.send(struct.pack("=IHHII", 16 + len(status), 1001, 1 | 4, 0, 0) + status)  # AUDIT_SET
        assert struct.unpack_from("=i", self._socket.recv(4096), 16)[0] == 0

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def auditing() -> Iterator[None]:
    """Enabled for one test."""
    switch = Auditing()
    before = switch.enabled
    switch.enable(1)
    try:
        yield
    finally:
        switch.enable(before)
        switch.close()


def issue(running: Running, program: Path, constraints: str) -> Path:
    file = running.folder / "constraints.toml"
    file.write_text(constraints)
    return running.issue(program, "--constraints", str(file))


def launch(
    running: Running, program: Path, *arguments: str, constraints: str = PROFILE
) -> subprocess.Popen[str]:
    """Start a program that goes on until its input ends."""
    command = [str(BIN / "egs"), "run", "--artifact", str(issue(running, program, constraints)), str(program)]
    process = subprocess.Popen(
        [*command, *arguments],
        env=running.instance.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    running.instance.reap_also(process.pid)
    return process


def execution_of(running: Running, pid: int) -> int:
    return running.wait_for(
        Exec, lambda entry: entry.event.pid == pid and entry.event.execution > 0
    ).event.execution


def ps(running: Running) -> list[dict[str, Any]]:
    processes: list[dict[str, Any]] = json.loads(running.instance.egs("ps", "--json").stdout)["processes"]
    return processes


def count(running: Running, execution: int) -> int:
    return sum(entry.count for entry in running.entries(Refusal) if entry.execution == execution)


def test_a_refusal_has_its_execution_and_shows_everywhere(system: Running, refuses: Path) -> None:
    process = launch(system, system.copy(str(refuses), "refuses"), "1")
    assert process.stdout is not None
    assert process.stdout.readline() == "EPERM\n"
    execution = execution_of(system, process.pid)
    found = system.wait_for(Refusal, lambda entry: entry.execution == execution)
    assert (found.word, found.what, found.count, found.scope) == ("syscalls", "chroot", 1, "test")
    assert found.pid == process.pid
    assert found.artifact_id
    shown = next(item for item in ps(system) if item["pid"] == process.pid)
    assert shown["refused"] == [{"word": "syscalls", "what": "chroot", "count": 1}]
    told = system.instance.egs("ps", "--why").stdout
    assert f"{execution} was refused syscalls: chroot, 1 times" in told
    assert "was refused" not in system.instance.egs("ps").stdout
    process.communicate()


def test_a_program_without_the_constraint_is_refused_nothing(system: Running, refuses: Path) -> None:
    process = launch(
        system, system.copy(str(refuses), "free"), "1", constraints='[syscalls]\ndeny = ["acct"]\n'
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    execution = execution_of(system, process.pid)
    process.communicate()
    system.wait_for(Outcome, lambda entry: entry.event.execution == execution)
    assert not count(system, execution)


def test_what_a_child_is_refused_is_its_parents_execution_even_after_both_ended(
    system: Running, refuses: Path
) -> None:
    program = system.copy(str(refuses), "forks")
    artifact = issue(system, program, f'{PROFILE}action = "kill"\n')
    done = system.run("--artifact", str(artifact), str(program), "1", "child")
    assert done.stdout == f"signal {signal.SIGSYS.value}\n"
    executed = system.wait_for_exec(program, Verdict.ALLOW)[0].event
    found = system.wait_for(Refusal, lambda entry: entry.execution == executed.execution)
    assert found.what == "chroot (killed)"
    assert found.pid != executed.pid


def test_thousands_of_refusals_are_few_entries_and_nothing_is_lost_in_the_count(
    system: Running, refuses: Path
) -> None:
    """Whoever wants to fill the disk or to hide among its own refusals."""
    process = launch(system, system.copy(str(refuses), "floods"), str(CALLED_OFTEN))
    assert process.stdout is not None
    assert process.stdout.readline() == "EPERM\n"
    execution = execution_of(system, process.pid)
    system.wait_for(Refusal, lambda _entry: count(system, execution) + lost(system) >= CALLED_OFTEN)
    assert len([entry for entry in system.entries(Refusal) if entry.execution == execution]) < 10
    process.communicate()


def lost(running: Running) -> int:
    return CALLED_OFTEN if "dropped messages" in running.log() else 0


def test_what_nobody_governs_and_what_the_kernel_did_not_say_is_no_entry(
    system: Running, refuses: Path
) -> None:
    """A filter of one's own makes messages, too; and with CAP_NET_ADMIN anybody sends to the group."""
    process = launch(system, system.copy(str(refuses), "target"), "0")
    execution = execution_of(system, process.pid)
    text = (
        f'audit(1.000:1): auid=0 uid=0 gid=0 ses=1 pid={process.pid} comm="x" exe="/x" '
        "sig=0 arch=c000003e syscall=161 compat=0 ip=0x0 code=0x50000"
    ).encode()
    permitted = contextlib.suppress(PermissionError)  # that it may not is as good
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9) as forger, permitted:
        forger.sendto(struct.pack("=IHHII", 16 + len(text), 1326, 0, 0, 0) + text, (0, 1))
    if (child := os.fork()) == 0:
        be_refused()
        os._exit(0)
    os.waitpid(child, 0)
    assert not count(system, execution)
    assert not next(item for item in ps(system) if item["pid"] == process.pid)["refused"]
    # What comes after it is seen: the daemon had read the others by then.
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    system.wait_for(Refusal, lambda entry: entry.execution == execution)
    assert [entry.what for entry in system.entries(Refusal) if entry.execution == execution] == ["chroot"]
    assert "getppid" not in {entry.what for entry in system.entries(Refusal)}
    process.communicate()


def test_the_successor_of_an_ended_process_blames_nobody(system: Running, refuses: Path) -> None:
    """A process that nobody governs, with a filter of its own and the number of an execution that ended."""
    process = launch(system, system.copy(str(refuses), "predecessor"), "1")
    execution = execution_of(system, process.pid)
    process.communicate()
    ended = system.wait_for(Outcome, lambda entry: entry.event.execution == execution)
    system.wait_for(Refusal, lambda entry: entry.execution == execution)
    before = len(system.entries(Refusal))
    # Who comes within the grain of the kernel's clock is taken for the one before.
    while time.clock_gettime_ns(time.CLOCK_BOOTTIME) < ended.event.time + 2 * CLOCK_GRAIN:
        os.sched_yield()
    if clone(0, set_tid=process.pid) == 0:
        be_refused()
        os._exit(0)
    os.waitpid(process.pid, 0)
    # What comes after it is seen: the daemon had read the other by then.
    launch(system, system.folder / "predecessor", "1").communicate()
    system.wait_for(
        Refusal,
        lambda entry: entry.execution not in (0, execution) and entry in system.entries(Refusal)[before:],
    )
    assert execution not in [entry.execution for entry in system.entries(Refusal)[before:]]


def be_refused() -> None:
    import pyseccomp  # noqa: PLC0415 - importing it needs libseccomp

    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    program.set_attr(pyseccomp.Attr.CTL_LOG, 1)
    program.add_rule_exactly(pyseccomp.ERRNO(1), "getppid")
    program.load()
    os.getppid()


def test_a_daemon_that_is_told_nothing_enforces_all_the_same_and_says_so(
    system: Running, refuses: Path
) -> None:
    """In a network namespace that it cannot leave, as in a container."""
    program = system.copy(str(refuses), "unseen")
    system.stop()
    system.start("unshare", "--net", "setpriv", "--bounding-set=-audit_read", "--inh-caps=-audit_read")
    try:
        assert "refusals by constraints are not seen" in system.instance.egs("status").stdout
        process = launch(system, program, "1")
        assert process.stdout is not None
        assert process.stdout.readline() == "EPERM\n"
        process.communicate()
        artifact = issue(system, program, f'{PROFILE}action = "log"\n')
        refused = system.run("--artifact", str(artifact), str(program))
        assert (refused.returncode, "[constraint_unenforceable]" in refused.stderr) == (126, True)
        assert "reports what filters let pass" in refused.stderr
        system.wait_for_decisions(Reason.CONSTRAINT_UNENFORCEABLE)
    finally:
        system.stop()
        system.start()


def test_a_daemon_with_a_network_of_its_own_hears_the_first_one() -> None:
    """As egsd.service gives it one (PrivateNetwork): the kernel speaks in the first network namespace alone."""
    listen = (
        "import os, sys; from egs_kernel.constraints import kernel_messages as k; source = k.KernelMessages()\n"
        "assert os.readlink('/proc/self/ns/net') != os.readlink('/proc/1/ns/net')\n"
        "print(*(found.what for found in k._after(source, k._be_refused)))"
    )
    # Process 1 is one that we may look at: of a pid namespace of its own.
    inner = ["unshare", "--net", sys.executable, "-c", listen]
    script = ["sh", "-c", '"$@"; exit $?', "sh", *inner]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *script], check=True, capture_output=True, text=True
    )
    assert "getppid" in done.stdout.split()


def test_doctor_says_whether_they_are_seen(system: Running, auditing: None) -> None:
    def finding(*prefix: str, name: str = "refusals seen") -> dict[str, Any]:
        done = subprocess.run(
            [*prefix, str(BIN / "egs"), "doctor", "--json"],
            env=system.instance.environment,
            check=False,
            capture_output=True,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        return next(item for item in found if item["name"] == name)

    assert finding()["present"]
    blind = finding("setpriv", "--bounding-set=-audit_read", "--inh-caps=-audit_read")
    assert not blind["present"]
    assert "CAP_AUDIT_READ" in blind["cure"]
    landlock = finding(name="refusals by Landlock seen")
    assert landlock["present"] is LANDLOCK_TELLS or "Linux 6.15" in landlock["cure"]


def test_the_metrics_count_them(system: Running, refuses: Path) -> None:
    program = system.copy(str(refuses), "counted")
    launch(system, program, "1").communicate()
    system.wait_for_metric('egs_refusals_total{scope="test",word="syscalls"}')
    system.wait_for_metric("egs_refusals_seen", value=" 1.0")


LANDLOCK: Final = {
    "a file": (
        '[filesystem]\nbase = "system"\nread = ["{folder}"]\n',
        "print(open('{folder}/input').read()); open('/etc/hostname')",
        ("filesystem", "fs.read_file /etc/hostname"),
    ),
    "a port": (
        '[network]\nmode = "ports"\nconnect = [1]\n',
        "import socket; socket.create_connection(('127.0.0.1', 2))",
        ("network", "net.connect_tcp 2"),
    ),
}


@pytest.mark.skipif(not LANDLOCK_TELLS, reason="the kernel does not report what Landlock refuses")
@pytest.mark.usefixtures("auditing")
@pytest.mark.parametrize("name", LANDLOCK)
def test_what_landlock_refuses_is_seen_where_the_kernel_tells(system: Running, name: str) -> None:
    constraints, source, expected = LANDLOCK[name]
    folder = system.folder / "data"
    folder.mkdir(exist_ok=True)
    (folder / "input").write_text("ours")
    worker = system.copy(str(Path(sys.executable).resolve()), f"reader-{expected[0]}")
    artifact = issue(system, worker, constraints.format(folder=folder))
    done = system.run("--artifact", str(artifact), str(worker), "-I", "-c", source.format(folder=folder))
    assert (done.returncode, "PermissionError" in done.stderr) == (1, True), done.stderr
    executed = system.wait_for_exec(worker, Verdict.ALLOW)[0].event
    system.wait_for(
        Refusal,
        lambda entry: entry.execution == executed.execution and (entry.word, entry.what) == expected,
    )
