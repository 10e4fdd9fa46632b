"""Drift: attacks that take more than a program that is told to drift; and the host's findings, in a network of their own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from pyroute2 import IPRoute

from egs_kernel.audit.entries import FindingEntry
from egs_kernel.cli.main import run
from egs_kernel.drift.words import MEANINGS
from egs_kernel.findings import Finding
from tests.harness import BIN
from tests.kernel import test_policy
from tests.monitoring import Monitor, Obedient, as_nobody_who_may_set_groups
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

LIBC: Final = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
PTRACE_O_SUSPEND_SECCOMP: Final = 1 << 21
CLONE_NEWNET: Final = 0x40000000
SELECTS: Final = ("23", "270")
"""select(2) and pselect6(2)."""
DISK: Final = 6
"""A group whose members may write the disks."""


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these, without drift events."""
    with running_on_disk(drift="off") as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor, in a network namespace of its own."""
    started = Monitor(system)
    started.start("unshare", "--net")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def program(system: Running) -> Obedient:
    return Obedient(system, "obedient")


# -- of a process ------------------------------------------------------------------------------------


def test_groups_that_are_raised(program: Obedient, monitor: Monitor) -> None:
    """By setgroups(2) into one that may write the disks, and by setresgid(2) into group 0."""
    pid = program.start(as_nobody_who_may_set_groups)
    try:
        monitor.begun(pid)
        program.tell(f"os.setgroups([{DISK}])")
        monitor.finding(Finding.CREDENTIALS_RAISED, pid, f"groups {DISK} beyond 65534")
        program.tell("os.setresgid(-1,0,-1)")
        monitor.finding(Finding.CREDENTIALS_RAISED, pid, f"groups 0 {DISK} beyond 65534")
    finally:
        program.stop()


def test_another_root_by_pivot_root(system: Running, program: Obedient, monitor: Monitor) -> None:
    """Nothing of the old one is left to see; in a mount namespace, as it has to be."""
    root = system.folder / "other-root"
    root.mkdir()
    pid = program.start()
    try:
        monitor.begun(pid)
        program.tell("assert libc.unshare(0x20000)==0;assert libc.mount(b'none',b'/',None,0x44000,None)==0")
        program.tell(f"r={os.fsencode(root)!r};assert libc.mount(r,r,None,0x1000,None)==0;os.chdir(r)")
        program.tell("assert libc.syscall(155,b'.',b'.')==0")
        monitor.finding(Finding.ROOT_CHANGED, pid)
        monitor.finding(Finding.NAMESPACE_CHANGED, pid, "mnt")
    finally:
        program.stop()


def test_a_child_of_a_program_that_may_have_none(system: Running, monitor: Monitor) -> None:
    """Its filter refuses fork(2); whoever traces it as root suspends the filter (PTRACE_O_SUSPEND_SECCOMP)."""
    alone = Obedient(system, "is-alone", constraints='[process]\nchildren = "none"\n', stands=False)
    pid = alone.launch()
    monitor.begun(pid)
    assert LIBC.ptrace(PTRACE_SEIZE, pid, None, PTRACE_O_SUSPEND_SECCOMP) == 0
    try:
        alone.tell("kept.append(os.fork() or time.sleep(600))")
        (child,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        assert monitor.finding(Finding.CHILD_UNEXPECTED, child).detail == "a process that it forked"
        monitor.finding(Finding.TRACED, pid)
    finally:
        LIBC.ptrace(PTRACE_INTERRUPT, pid, None, None)
        os.waitpid(pid, WALL)
        LIBC.ptrace(PTRACE_DETACH, pid, None, None)
        os.kill(child, signal.SIGKILL)
        alone.stop()


def test_restrictions_that_are_gone(system: Running, monitor: Monitor) -> None:
    """No call takes off a filter or no_new_privs: what says so here is a file over its /proc/PID/status."""
    words = (b"NoNewPrivs:\t1", b"Seccomp:\t2", b"Seccomp_filters:\t1")
    strict = Obedient(system, "is-strict", constraints='[process]\nchildren = "none"\n', stands=False)
    pid = strict.launch()
    monitor.begun(pid)
    status = Path(f"/proc/{pid}/status").read_bytes()
    for true in words:
        assert true in status
        status = status.replace(true, true[:-1] + b"0")
    lie = system.folder / "status"
    lie.write_bytes(status)
    monitor.stop()
    monitor.start(
        *("unshare", "--mount", "--net", "sh", "-c"),
        f'mount --bind {lie} /proc/{pid}/status && exec "$@"',
        "sh",
    )
    for word in ("no_new_privs", "seccomp"):
        assert monitor.finding(Finding.RESTRICTION_LOST, pid, word).source == "sweep"
    strict.stop()


# -- of the host -------------------------------------------------------------------------------------


@contextmanager
def network_of(process: int) -> Iterator[IPRoute]:
    """In the network namespace of a process."""
    own, theirs = (os.open(f"/proc/{who}/ns/net", os.O_RDONLY) for who in ("self", process))
    assert LIBC.setns(theirs, CLONE_NEWNET) == 0
    try:
        with IPRoute() as ask:
            yield ask
    finally:
        assert LIBC.setns(own, CLONE_NEWNET) == 0
        os.close(own)
        os.close(theirs)


def found(system: Running, finding: Finding, detail: str) -> FindingEntry:
    return system.wait_for(
        FindingEntry, lambda entry: entry.finding is finding and entry.detail.startswith(detail)
    )


def test_what_is_done_to_the_network_and_its_settings(system: Running, monitor: Monitor) -> None:
    """In the namespace of the monitor: another interface, an address, a route, and packets are passed on."""
    with network_of(monitor.pid) as ask:
        ask.link("set", index=1, state="up")
        assert found(system, Finding.INTERFACE_CHANGED, "lo: ").source == "netlink"
        ask.link("add", ifname="evil", kind="veth", peer="peer")
        assert found(system, Finding.INTERFACE_CHANGED, "evil: none → ").response == "alert"
        number = ask.link_lookup(ifname="evil")[0]
        ask.addr("add", index=number, address="10.99.1.1", prefixlen=24)
        assert found(system, Finding.ADDRESS_CHANGED, "evil 10.99.1.1/24: none → ").source == "netlink"
        ask.route("add", dst="10.7.0.0/16", oif=1)
        assert found(system, Finding.ROUTE_CHANGED, "10.7.0.0/16 ").source == "netlink"
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        assert found(system, Finding.SYSCTL_CHANGED, "net.ipv4.ip_forward: 0 → 1").source == "sysctl"


def test_messages_for_which_the_kernel_has_no_room_are_a_finding(system: Running, monitor: Monitor) -> None:
    """The monitor stands still meanwhile."""
    os.kill(monitor.pid, signal.SIGSTOP)
    try:
        with network_of(monitor.pid) as ask:
            for _ in range(300):
                ask.link("set", index=1, state="down")
                ask.link("set", index=1, state="up")
    finally:
        os.kill(monitor.pid, signal.SIGCONT)
    lost = system.wait_for(FindingEntry, lambda entry: entry.finding is Finding.EVENTS_LOST)
    assert (lost.severity, lost.source, lost.count > 0) == ("warning", "netlink", True)


# -- the commands, as a user has them ----------------------------------------------------------------


@contextmanager
def live(system: Running, *more: str) -> Iterator[subprocess.Popen[str]]:
    """`egs drift live`, which waits: for whom it waits comes after it."""
    with subprocess.Popen(
        [str(BIN / "egs"), "drift", "live", *more],
        env=system.instance.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while Path(f"/proc/{process.pid}/syscall").read_text().partition(" ")[0] not in SELECTS:
                assert process.poll() is None
                os.sched_yield()
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)


def test_live_shows_what_comes_and_nothing_else(system: Running, program: Obedient, monitor: Monitor) -> None:
    """A finding, and what is done about it by the monitor and by a user; until somebody interrupts it."""
    suspended = Obedient(system, "is-suspended", constraints='[drift.on]\nanonymous_code = "suspend"\n')
    pid = suspended.start()
    execution = monitor.begun(pid)
    with live(system) as told, live(system, "--json") as listed:
        suspended.say("kept.append(mmap.mmap(-1,4096,prot=7))")
        entry = json.loads(line_with(listed, "anonymous_code"))
        assert (entry["type"], entry["execution"]) == ("finding", str(execution))
        answer = json.loads(line_with(listed, '"type":"response"'))
        assert (answer["number"], answer["verified"]) == (entry["number"], True)
        assert f"finding {entry['number']} high anonymous_code" in line_with(told, "finding")
        assert f"response to {entry['number']}: suspend of 1 processes, verified" in line_with(
            told, "response"
        )
        system.instance.egs("drift", "resume", str(execution))
        assert "resume of 1 processes" in line_with(told, "response")
        suspended._expect("done")
        for process in (told, listed):
            process.send_signal(signal.SIGINT)
            rest, error = process.communicate(timeout=SECONDS)
            assert (process.returncode, error) == (130, "")
            assert " exec " not in rest
            assert '"type":"exec"' not in rest
    suspended.stop()


@pytest.fixture
def egs(
    system: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `egs drift` in this process: exit code, output, errors."""
    monkeypatch.setenv("EGS_ROOT", str(system.instance.root))

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code: int | str | None = run(["drift", *words])
        except SystemExit as left:
            code = left.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("live", "--path", "/nonexistent"), 1, "there is no record in /nonexistent"),
        (("history", "--since", "yesterday"), 2, "'yesterday' is no duration"),
        (("history", "--execution", "it"), 2, "invalid int value"),
        (("history", "--finding", "everything"), 2, "invalid choice"),
        (("explain", "7"), 1, "the record has no finding 7"),
        (("dry-run", "--rules", "/nonexistent"), 2, "/nonexistent cannot be read: No such file"),
        (("resume", "7"), 1, "execution 7 is not suspended"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_words(
    egs: Callable[..., tuple[int, str, str]], words: tuple[str, ...], code: int, said: str
) -> None:
    exited, output, error = egs(*words)
    assert (exited, output) == (code, "")
    assert said in error


def test_who_may_not_read_the_record_or_the_gate_is_told_so(system: Running) -> None:
    for words in (("live",), ("resume", "7")):
        done = system.as_nobody(str(BIN / "egs"), "drift", *words)
        assert done.returncode == 1, done.stderr
        assert "[not_permitted]\nRun as root" in done.stderr


def test_what_is_shown_of_a_finding_has_what_was_done_about_it(
    egs: Callable[..., tuple[int, str, str]], system: Running, program: Obedient, monitor: Monitor
) -> None:
    """As rows and as JSON; and what a finding is, without one in the record."""
    pid = program.start()
    monitor.begun(pid)
    program.tell("assert libc.unshare(0x04000000)==0")
    entry = monitor.finding(Finding.NAMESPACE_CHANGED, pid)
    assert f"finding {entry.number} high namespace_changed" in egs()[1]
    shown = json.loads(egs("history", "--finding", "anonymous_code", "--json")[1])["entries"]
    assert {each["type"] for each in shown} == {"finding", "response"}
    assert {each["finding"] for each in shown if each["type"] == "finding"} == {"anonymous_code"}
    by_name = json.loads(egs("explain", "namespace_changed", "--json")[1])
    assert by_name == {"finding": "namespace_changed", "meaning": MEANINGS[Finding.NAMESPACE_CHANGED]}
    assert egs("dry-run")[1].split("\n")[0].split() == ["FINDING", "WAS", "WOULD", "BE", "RULE", "TIMES"]
    program.stop()


# -- of a policy; nothing executes afterwards --------------------------------------------------------


def test_a_program_that_runs_on_under_another_policy(system: Running, monitor: Monitor) -> None:
    """It was decided under none, or an older set: it may go on, and that is told."""
    decided = Obedient(system, "was-decided")
    pid = decided.start()
    monitor.begun(pid)
    test_policy.trust_policy_key(system)
    before = {found[0] for found in monitor.all() if found[1] == pid}
    active = test_policy.activate(system, test_policy.write_set(system, test_policy.PERMIT))
    told = monitor.finding(Finding.POLICY_CHANGED, pid)
    assert f"{active['digest'][:16]} is active" in told.detail
    assert (told.severity, told.response, before) == ("notice", "alert", set())
    decided.tell("pass")
    decided.stop()
