"""Drift: each finding about a process by a real attack, and what a restarted monitor makes of what it did not see."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec, FindingEntry, WatchChange
from egs_kernel.drift.rules import Rules
from egs_kernel.findings import Finding
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.gate.pins import Gate
from egs_kernel.model import Tier
from egs_kernel.monitor.app import Monitor as Watching
from tests.harness import BIN
from tests.monitoring import Monitor, Obedient, text_of
from tests.ordinary import Workload
from tests.refusals import TIER
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

seen_afterwards = pytest.mark.skipif(TIER is Tier.LSM, reason="on tier lsm the gate refuses such code")
LIBC: Final = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE: Final = 0x4206
SWEEPS: Final = 300 // Rules().interval


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all of these."""
    with running_on_disk() as running:
        yield running


@pytest.fixture(scope="module")
def monitor(system: Running) -> Iterator[Monitor]:
    """Its monitor, which sweeps every second."""
    started = Monitor(system)
    started.start()
    yield started
    if started._process is not None and started._process.poll() is None:
        started.stop()


@pytest.fixture(scope="module")
def program(system: Running) -> Obedient:
    """A program that does what it is told."""
    return Obedient(system, "obedient")


@pytest.fixture
def victim(program: Obedient, monitor: Monitor) -> Iterator[Obedient]:
    """A process of it, which the monitor has seen begin."""
    pid = program.start()
    monitor.begun(pid)
    yield program
    program.stop()


def pid_of(victim: Obedient) -> int:
    assert victim.process is not None
    return victim.process.pid


# -- what it does itself -----------------------------------------------------------------------------


@seen_afterwards
def test_code_of_a_file_that_nobody_signed(victim: Obedient, monitor: Monitor) -> None:
    """A library is loaded that is neither a subject nor in a trusted root."""
    evil = victim.running.folder / "libevil.so"
    source = victim.running.folder / "evil.c"
    source.write_text("int evil(void) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(evil), str(source)], check=True)
    victim.tell(f"kept.append(ctypes.CDLL({str(evil)!r}))")
    monitor.finding(Finding.CODE_MAPPED, pid_of(victim), str(evil))


def test_shellcode_in_anonymous_memory(victim: Obedient, monitor: Monitor) -> None:
    victim.tell("m=mmap.mmap(-1,4096,prot=7);m.write(bytes([0xb8,42,0,0,0,0xc3]));kept.append(m)")
    victim.tell(
        "f=ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)));assert f()==42"
    )
    monitor.finding(Finding.ANONYMOUS_CODE, pid_of(victim))


@seen_afterwards
def test_memory_of_a_memfd_that_is_executed(victim: Obedient, monitor: Monitor) -> None:
    """Executing a memfd is refused by the gate; its code can still be mapped."""
    victim.tell("d=os.memfd_create('x');os.truncate(d,4096);kept.append(mmap.mmap(d,4096,prot=5))")
    monitor.finding(Finding.ANONYMOUS_CODE, pid_of(victim))


def test_another_namespace_by_unshare(victim: Obedient, monitor: Monitor) -> None:
    victim.tell("assert libc.unshare(0x04000000)==0")  # CLONE_NEWUTS
    monitor.finding(Finding.NAMESPACE_CHANGED, pid_of(victim))


def test_another_namespace_by_setns(victim: Obedient, monitor: Monitor) -> None:
    with subprocess.Popen(["unshare", "--uts", "sleep", "60"], stdout=subprocess.DEVNULL) as other:
        own = Path("/proc/self/ns/uts").readlink()
        while Path(f"/proc/{other.pid}/ns/uts").readlink() == own:
            os.sched_yield()
        victim.tell(f"d=os.open('/proc/{other.pid}/ns/uts',0);assert libc.setns(d,0)==0")
        monitor.finding(Finding.NAMESPACE_CHANGED, pid_of(victim))
        other.kill()


def test_another_root(victim: Obedient, monitor: Monitor) -> None:
    victim.tell("os.chroot('/var/tmp')")
    monitor.finding(Finding.ROOT_CHANGED, pid_of(victim))


def test_a_variable_that_loads_code(program: Obedient, monitor: Monitor) -> None:
    """The gate refuses it at an exec; a program can still write it over another one, for what it executes."""
    pid = program.start(env={"XX_PRELOAD": "/tmp/evil.so"})
    try:
        monitor.begun(pid)
        program.tell(
            "a=next(int(l.split('-')[0],16) for l in open('/proc/self/maps') if '[stack]' in l);"
            "e=next(int(l.split('-')[1].split()[0],16) for l in open('/proc/self/maps') if '[stack]' in l);"
            "b=ctypes.string_at(a,e-a);i=b.rindex(b'XX_PRELOAD');ctypes.memmove(a+i,b'LD_PRELOAD',10)"
        )
        monitor.finding(Finding.ENVIRONMENT_LOADS_CODE, pid, "LD_PRELOAD")
    finally:
        program.stop()


def test_user_ids_and_capabilities_that_are_raised(program: Obedient, monitor: Monitor) -> None:
    """Who may set its user ids becomes root; who makes a user namespace is root in there."""
    ambient = _as_nobody_with_setuid
    pid = program.start(ambient)
    try:
        monitor.begun(pid)
        program.tell("os.setresuid(0,0,0)")
        monitor.finding(Finding.CREDENTIALS_RAISED, pid)
    finally:
        program.stop()
    pid = program.start(ambient)
    try:
        monitor.begun(pid)
        program.tell("assert libc.unshare(0x10000000)==0")  # CLONE_NEWUSER
        monitor.finding(Finding.CAPABILITIES_RAISED, pid)
    finally:
        program.stop()


def _as_nobody_with_setuid() -> None:
    """Another user, with one capability that lasts beyond the exec."""
    header, setuid = (ctypes.c_uint32 * 2)(0x20080522, 0), 1 << 7
    LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setresuid(65534, 65534, 65534)
    LIBC.capset(header, (ctypes.c_uint32 * 6)(setuid, setuid, setuid, 0, 0, 0))
    LIBC.prctl(47, 2, 7, 0, 0)  # PR_CAP_AMBIENT_RAISE


def test_sockets_that_nobody_expects(system: Running, monitor: Monitor) -> None:
    """It is expected to listen on one port, and to be connected to none."""
    strict = Obedient(system, "strict", constraints="[drift]\nlisten = [47001]\nconnect = []\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        pid = strict.start()
        try:
            monitor.begun(pid)
            strict.tell("s=socket.socket();s.bind(('127.0.0.1',47001));s.listen();kept.append(s)")
            strict.tell("s=socket.socket();s.bind(('127.0.0.1',47002));s.listen();kept.append(s)")
            port = server.getsockname()[1]
            strict.tell(f"s=socket.socket();s.connect(('127.0.0.1',{port}));kept.append(s)")
            monitor.finding(Finding.SOCKET_LISTENS, pid, "47002")
            monitor.finding(Finding.SOCKET_CONNECTED, pid, str(port))
            assert not [found for found in monitor.all() if "47001" in found[2]]
        finally:
            strict.stop()


# -- what is done to it ------------------------------------------------------------------------------


def test_a_tracer(victim: Obedient, monitor: Monitor) -> None:
    assert LIBC.ptrace(PTRACE_SEIZE, pid_of(victim), 0, 0) == 0
    found = monitor.finding(Finding.TRACED, pid_of(victim))
    assert found.by == os.getpid()


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_gdb_injects_a_call(victim: Obedient, monitor: Monitor) -> None:
    """A debugger attaches, makes it load code, and is gone before any sweep."""
    pid = pid_of(victim)
    script = ["gdb", "-nx", "-batch", "-p", str(pid), "-ex", "call (int)getpid()", "-ex", "detach"]
    subprocess.run(script, capture_output=True, timeout=SECONDS * 3, check=True, stdin=subprocess.DEVNULL)
    victim.say("pass")
    kinds = {Finding.TRACED, Finding.MEMORY_WRITTEN}
    victim.running.wait_for(FindingEntry, lambda entry: entry.finding in kinds and entry.pid == pid)


def test_code_that_is_written_through_proc_mem(victim: Obedient, monitor: Monitor) -> None:
    pid = pid_of(victim)
    address = text_of(pid)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(address)
        before = memory.read(1)
        memory.seek(address)
        memory.write(before)
    monitor.finding(Finding.MEMORY_WRITTEN, pid)


def test_a_cgroup_that_is_left(victim: Obedient, monitor: Monitor) -> None:
    (cgroup_mount() / "cgroup.procs").write_text(f"{pid_of(victim)}\n")
    monitor.finding(Finding.CGROUP_LEFT, pid_of(victim))


def test_a_program_that_is_replaced_and_one_that_is_deleted(system: Running, monitor: Monitor) -> None:
    for name, attack, finding in (
        ("replaced", _replace, Finding.PROGRAM_REPLACED),
        ("deleted", Path.unlink, Finding.PROGRAM_DELETED),
        ("swapped", _swap, Finding.PROGRAM_REPLACED),
    ):
        program = Obedient(system, name)
        pid = program.start()
        try:
            monitor.begun(pid)
            attack(program.program)
            monitor.finding(finding, pid)
        finally:
            program.stop()


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b"\0")
    other.rename(path)


def _swap(path: Path) -> None:
    """A symbolic link to another program in its place."""
    path.rename(path.with_name("swapped-away"))
    path.symlink_to("/bin/true")


def test_a_library_that_is_rewritten(system: Running, monitor: Monitor) -> None:
    """The kernel lets nobody write a running program; a library that is in use, everybody who may."""
    library = system.copy("/usr/lib/x86_64-linux-gnu/libz.so.1", "libnamed.so")
    program = Obedient(system, "names-a-library", more=("--library", str(library)))
    pid = program.start()
    try:
        monitor.begun(pid)
        program.tell(f"kept.append(ctypes.CDLL({str(library)!r}))")
        with library.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        monitor.finding(Finding.SUBJECT_CHANGED, pid, str(library))
        assert not [found for found in monitor.all() if found[0] == "code_mapped" and found[1] == pid]
    finally:
        program.stop()


def test_a_ceiling_that_is_lifted(system: Running, monitor: Monitor) -> None:
    constraints = "[resources]\nopenFiles = 64\n"
    (system.folder / "ceiling.toml").write_text(constraints)
    sleep = system.copy("/usr/bin/sleep", "sleeps-under-a-ceiling")
    artifact = system.issue(sleep, "--constraints", str(system.folder / "ceiling.toml"), name="ceiling.json")
    process = system_launch(system, artifact, str(sleep), "60")
    try:
        monitor.begun(process.pid)
        try:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        except PermissionError:
            pytest.skip("this host has no CAP_SYS_RESOURCE")
        monitor.finding(Finding.CEILING_EXCEEDED, process.pid)
    finally:
        process.kill()
        process.wait(SECONDS)


def system_launch(system: Running, artifact: Path, *command: str) -> subprocess.Popen[str]:
    """`egs run`, which becomes the program."""
    process = subprocess.Popen(
        [str(BIN / "egs"), "run", "--artifact", str(artifact), *command],
        env=system.instance.environment,
        text=True,
    )
    system.instance.reap_also(process.pid)
    return process


# -- what becomes of its authorization ----------------------------------------------------------------


def test_an_artifact_that_expires_and_one_that_is_removed(system: Running, monitor: Monitor) -> None:
    removed = Obedient(system, "removed")
    pid = removed.start()
    expires = Obedient(system, "expires", more=("--valid-for", "8s"))
    expiring = expires.start()
    try:
        monitor.begun(expiring)
        monitor.begun(pid)
        system.instance.egs("artifacts", "remove", removed.artifact_id)
        monitor.finding(Finding.ARTIFACT_SUPERSEDED, pid)
        monitor.finding(Finding.ARTIFACT_EXPIRED, expiring)
    finally:
        expires.stop()
        removed.stop()


def test_what_is_overdue_while_the_daemon_stands_still(system: Running, monitor: Monitor) -> None:
    """The daemon ends it as a rule, in its own cgroup; the monitor does where it cannot."""
    (system.folder / "wall.toml").write_text("[resources]\nwallSeconds = 5\n")
    sleep = system.copy("/usr/bin/sleep", "sleeps-too-long")
    artifact = system.issue(sleep, "--constraints", str(system.folder / "wall.toml"), name="wall.json")
    process = system_launch(system, artifact, str(sleep), "60")
    monitor.begun(process.pid)
    with system.paused():
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert monitor.response(monitor.finding(Finding.OVERDUE, process.pid)).verified


def test_a_key_that_is_trusted_no_more(system: Running, monitor: Monitor) -> None:
    """Nobody revoked it; it was taken out of the trust store. What it signed ends, as nothing signed says otherwise."""
    system.instance.egs("keys", "generate", "--name", "short-lived", "--out", str(system.folder))
    added = system.instance.egs(
        *("trust", "add", str(system.folder / "short-lived.pub"), "--role", "issuer", "--scope", "test"),
        "--json",
    )
    system.instance.egs("reload")
    program = Obedient(system, "signed-by-another", key="short-lived")
    pid = program.start()
    try:
        monitor.begun(pid)
        system.instance.egs("trust", "remove", json.loads(added.stdout)["keyid"])
        system.instance.egs("reload")
        assert monitor.response(monitor.finding(Finding.KEY_REVOKED, pid)).verified
        assert program.process is not None
        assert program.process.wait(SECONDS) == -signal.SIGKILL
    finally:
        program.stop()


# -- the monitor itself -------------------------------------------------------------------------------


def test_without_a_monitor_nothing_is_found_and_a_new_one_compares_with_the_record(
    system: Running, monitor: Monitor, program: Obedient
) -> None:
    """What drifts while nobody watches is found afterwards: the baseline is what the record says, not what there is by then."""
    pid = program.start()
    try:
        execution = monitor.begun(pid)
        assert monitor.stop(signal.SIGKILL) == -signal.SIGKILL
        program.tell("assert libc.unshare(0x04000000)==0;m=mmap.mmap(-1,4096,prot=7);kept.append(m)")
        os.sync()
        assert not [found for found in monitor.all() if found[1] == pid]
        before = len([entry for entry in system.entries(WatchChange) if entry.since])
        monitor.start()
        monitor.finding(Finding.NAMESPACE_CHANGED, pid)
        monitor.finding(Finding.ANONYMOUS_CODE, pid)
        unwatched = [entry for entry in system.entries(WatchChange) if entry.since]
        assert len(unwatched) == before + 1
        assert unwatched[-1].since < unwatched[-1].until
        system.wait_for(
            FindingEntry,
            lambda entry: entry.finding is Finding.UNWATCHED and unwatched[-1].since in entry.detail,
        )
        told = [found for found in system.entries(FindingEntry) if found.execution == execution]
        assert len({(found.finding, found.detail) for found in told}) == len(told), "told twice"
    finally:
        program.stop()


def test_a_name_that_looks_like_a_status_misleads_nobody(victim: Obedient, monitor: Monitor) -> None:
    """A process chooses its name: here one that ends the parenthesis of /proc/PID/stat and begins lines of its own."""
    pid = pid_of(victim)
    victim.tell("open('/proc/self/comm','w').write(') R 1 1\\nUid:\\t0')")
    victim.tell("m=mmap.mmap(-1,4096,prot=7);kept.append(m)")
    monitor.finding(Finding.ANONYMOUS_CODE, pid)
    assert {found[0] for found in monitor.all() if found[1] == pid} == {"anonymous_code"}


def test_the_commands_tell_what_was_found(system: Running, victim: Obedient, monitor: Monitor) -> None:
    victim.tell("m=mmap.mmap(-1,4096,prot=7);kept.append(m)")
    found = monitor.finding(Finding.ANONYMOUS_CODE, pid_of(victim))
    egs = system.instance.egs
    by_execution = ("drift", "history", "--execution", str(found.execution), "--json")
    (told,) = json.loads(egs(*by_execution).stdout)["entries"]
    assert (told["finding"], told["execution"]) == ("anonymous_code", str(found.execution))
    explained = json.loads(egs("drift", "explain", str(found.number), "--json").stdout)
    assert [entry["type"] for entry in explained["baseline"]] == ["exec", "baseline"]
    rules = system.folder / "stricter.toml"
    rules.write_text('[responses]\nanonymous_code = "terminate"\n')
    tried = json.loads(egs("drift", "dry-run", "--rules", str(rules), "--json").stdout)["findings"]
    mine = next(each for each in tried if each["number"] == found.number)
    assert (mine["was"], mine["would_be"]) == ("alert", "terminate")
    lineage = json.loads(egs("lineage", str(found.execution), "--json").stdout)["executions"][0]
    assert len(lineage["drift"]) == 1
    assert egs("drift", "resume", str(found.execution), check=False).returncode == 1
    rules.write_text("[responses]\nanonymous_code = 1\n")
    assert egs("drift", "dry-run", "--rules", str(rules), check=False).returncode == 2


def test_a_storm_of_processes_that_exit_while_they_are_read(
    system: Running, monitor: Monitor, program: Obedient
) -> None:
    pid = program.start()
    try:
        monitor.begun(pid)
        before = len(monitor.all())
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            program.tell(
                "[(os.fork() or os._exit(0)) for _ in range(50)];[os.waitpid(-1,0) for _ in range(50)]"
            )
        assert monitor.all()[before:] == []
        program.tell("m=mmap.mmap(-1,4096,prot=7);kept.append(m)")
        monitor.finding(Finding.ANONYMOUS_CODE, pid)
    finally:
        program.stop()


def test_what_the_gate_would_refuse_is_found_where_it_only_observes(
    system: Running, monitor: Monitor
) -> None:
    """A child that is not listed and a program that is memory run there; nothing is done to them, and the finding says what would be."""
    system.instance.configure(mode="observe")
    system.instance.egs("reload")
    constraints = '[process]\nchildren = "listed"\n[drift.on]\nchild_unexpected = "terminate"\n'
    program = Obedient(system, "observed", constraints=constraints, more=("--child", "/bin/ls"))
    pid = program.start()
    try:
        monitor.begun(pid)
        program.tell("kept.append(os.posix_spawn('/bin/sleep',['sleep','60'],{}))")
        found = system.wait_for(FindingEntry, lambda entry: entry.finding is Finding.CHILD_UNEXPECTED)
        assert (found.by, found.response) == (pid, "alert")
        program.tell("d=os.memfd_create('x',0);os.write(d,open('/bin/sleep','rb').read())")
        program.tell("kept.append(os.fork() or os.execve(d,['sleep','60'],{}))")
        system.wait_for(FindingEntry, lambda entry: entry.finding is Finding.MEMFD_EXECUTED)
        program.tell("[os.kill(child,9) for child in kept]")
    finally:
        program.stop()
        system.instance.configure()
        system.instance.egs("reload")


def test_ordinary_work_is_no_drift() -> None:
    """Python, a shell's pipelines, node and nginx where they are, through as many sweeps as five minutes have, and every event meanwhile; scripts/soak has the hour."""
    with running_on_disk(drift="auto") as running, closing(Gate.open(running.instance.paths.pins)) as gate:
        watching = Watching(running.instance.paths, gate, Rules())
        watching.start()
        workload = Workload(running)
        try:
            for number in range(SWEEPS):
                if number % 2 == 0:
                    workload.work()
                watching.sweep_now()
        finally:
            workload.close()
        watching.stop()
        watching.close()
        assert [entry for entry in running.entries(FindingEntry) if entry.execution] == []
        assert len(running.entries(Exec)) > SWEEPS


def test_o23_what_is_undone_between_two_sweeps(victim: Obedient, monitor: Monitor) -> None:
    """O-23: it goes into another namespace and comes back, and no event tells of it."""
    victim.tell(
        "d=os.open('/proc/self/ns/uts',0);assert libc.unshare(0x04000000)==0;assert libc.setns(d,0)==0"
    )
    victim.tell("m=mmap.mmap(-1,4096,prot=7);kept.append(m)")
    monitor.finding(Finding.ANONYMOUS_CODE, pid_of(victim))
    assert not [found for found in monitor.all() if found[:2] == ("namespace_changed", pid_of(victim))]
