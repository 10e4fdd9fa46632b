"""The load-time self-test: refuse to enforce unless the gate sees what user space knows.

bcc has been seen to compile wrong offsets silently, and a gate that reads the wrong field may let a
denied program run. So before any scope exists, real processes execute a known program under two reserved scopes:

1. observe: every field of the event equals what user space knows of that process and file;
2. enforce: without a grant the process dies by SIGKILL and writes nothing;
3. enforce, armed: with a grant a program runs, and its outcome arrives; not with a loader variable;
4. cgroups: a re-created cgroup is the scope; a process moved below it, its child, and a process born into it
   are governed and stay so.

What the guards do is shown by selftest_guards.py.

Each offset that is wrong fails one of these (tests/kernel/test_gate_selftest.py tries them all).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.cgroups import cgroup_id, cgroup_mount, move
from egs_kernel.gate.pins import Gate
from egs_kernel.gate.selftest_lsm import check_lsm
from egs_kernel.gate.specimen import (
    ARGV,
    ENVIRONMENT,
    EXIT_CODE,
    GRANTED,
    PROGRAM,
    REFUSED,
    SHELL,
    Child,
    arm,
    drain,
    exec_event,
    fail,
    read_file,
    same,
)
from egs_kernel.model import (
    ExecEvent,
    ExitEvent,
    Reason,
    Tier,
    Verdict,
)

_UID: Final = 61234
_EUID: Final = 61235
_GID: Final = 61236
_EGID: Final = 61237
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW_ALL: Final = bytes.fromhex("06000000 0000ff7f")
"""One BPF instruction: return SECCOMP_RET_ALLOW."""

_SYS_CLONE3: Final = 435
_CLONE_INTO_CGROUP: Final = 0x200000000
_CLONE_ARGS: Final = 11
"""Fields of struct clone_args; the last is the cgroup."""

_FS_IOC_GETVERSION: Final = 0x80087601


def run_self_test(gate: Gate) -> tuple[str, ...]:
    """Run the whole self-test; what was checked, in words.

    Raises:
        GateError: SELF_TEST_FAILED, with the first difference.
    """
    for slot, mode in (
        (abi.SCOPE_SELF_TEST_OBSERVE, abi.Mode.OBSERVE),
        (abi.SCOPE_SELF_TEST_ENFORCE, abi.Mode.ENFORCE),
    ):
        gate.scope_slots.put(ctypes.c_uint32(slot), abi.Scope(mode=mode, name=b"self-test"))
    gate.beat()
    try:
        parts = [_check_fields, _check_promise, _check_kill, _check_grant, _check_environment, _check_cgroups]
        if gate.tier is Tier.LSM:
            parts.append(check_lsm)
        checks = tuple(check for part in parts for check in part(gate))
    finally:
        for slot in (abi.SCOPE_SELF_TEST_OBSERVE, abi.SCOPE_SELF_TEST_ENFORCE):
            gate.scope_slots.put(ctypes.c_uint32(slot), abi.Scope(mode=abi.Mode.UNUSED))
    return checks


def _check_fields(gate: Gate) -> Iterator[str]:
    with Child(_become_somebody, before_exec=_live_through_a_thread) as child:
        task = child.task
        facts = _proc_status(child.pid)
        gate.govern_slot(child.pid, abi.SCOPE_SELF_TEST_OBSERVE)
        status, _ = child.finish()
    event = exec_event(gate, child.pid)
    _require_both_users(event)
    file = Path(PROGRAM).stat()
    same("wait status of the observed child", status, 0)
    expected: tuple[tuple[str, object, object], ...] = (
        ("verdict", event.verdict, Verdict.KILL),
        ("reason", event.reason, Reason.NO_GRANT),
        ("enforced", event.enforced, False),
        ("inode", event.file.inode, file.st_ino),
        ("size", event.file.size, file.st_size),
        ("change time", event.file.ctime_seconds * 10**9 + event.file.ctime_nanoseconds, file.st_ctime_ns),
        ("arguments", event.argv, ARGV),
        ("file name", event.filename, PROGRAM),
        ("uid", event.uid, _UID),
        ("euid", event.euid, _EUID),
        ("gid", event.gid, _GID),
        ("parent", event.parent_pid, os.getpid()),
        ("start time", event.start_ticks, task.start_ticks),
        ("no_new_privs", event.no_new_privs, facts["NoNewPrivs"] == "1"),
        ("seccomp mode", event.seccomp_mode, int(facts["Seccomp"])),
        ("seccomp filters", event.seccomp_filters, int(facts["Seccomp_filters"])),
        ("cgroup", event.cgroup_id, _own_cgroup()),
    )
    for what, seen, known in expected:
        same(what, seen, known)
        yield what
    if event.file.device not in _devices(PROGRAM):
        fail(f"device: the gate saw {event.file.device:#x}, user space knows {_devices(PROGRAM)}")
    yield "device"
    if (generation := _generation(PROGRAM)) is not None:
        same("generation", event.file.generation, generation)
        yield "generation"
    opened = read_file(gate, PROGRAM)
    real = Path(PROGRAM).resolve()
    same("identity of an open file", opened.identity, event.file)
    same("folder entry", (opened.folder_inode, opened.name), (real.parent.stat().st_ino, real.name.encode()))
    yield "identity and folder entry of an open file"


def _require_both_users(event: ExecEvent) -> None:
    """Before Linux 6.17 an exec under no_new_privs sets the effective user to the real one: it proves nothing."""
    if (event.uid, event.euid) == (_UID, _UID) and _no_new_privs_here():
        raise GateError(
            Reason.SELF_TEST_FAILED,
            "the gate's self-test cannot tell users from effective users: no_new_privs is set",
            "Run egs gate load without it (in a unit: NoNewPrivileges=no).",
        )


def _check_promise(gate: Gate) -> Iterator[str]:
    """A process that sets no_new_privs, while the observed one above has what it was born with."""
    with Child(lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1)) as child:
        gate.govern_slot(child.pid, abi.SCOPE_SELF_TEST_OBSERVE)
        child.finish()
    same("no_new_privs", exec_event(gate, child.pid).no_new_privs, True)
    yield "no_new_privs, once set"


def _check_kill(gate: Gate) -> Iterator[str]:
    """On the tier `lsm` it is refused, and lives."""
    with Child() as child:
        gate.govern_slot(child.pid, abi.SCOPE_SELF_TEST_ENFORCE)
        status, written = child.finish()
    event = exec_event(gate, child.pid)
    refused = gate.tier is Tier.LSM
    same(
        "verdict without a grant",
        (event.verdict, event.reason, event.enforced),
        (Verdict.DENY if refused else Verdict.KILL, Reason.NO_GRANT, True),
    )
    end = REFUSED if refused else -signal.SIGKILL
    same("end of a process without a grant", (os.waitstatus_to_exitcode(status), written), (end, b""))
    yield "a process without a grant executes nothing, and writes nothing"


def _check_environment(gate: Gate) -> Iterator[str]:
    """The same grant, and a variable that makes the dynamic loader load code, last of all."""
    with Child(command=(SHELL, *GRANTED), environment=ENVIRONMENT | {"LD_EGS_SELF_TEST": "1"}) as child:
        arm(gate, child)
        status, written = child.finish()
    event = exec_event(gate, child.pid)
    gate.forget(event.grant_id)
    same("reason under a loader variable", event.reason, Reason.ENVIRONMENT_REFUSED)
    same("end under a loader variable", (os.WTERMSIG(status), written), (signal.SIGKILL, b""))
    yield "a loader variable is seen behind all others"


def _check_grant(gate: Gate) -> Iterator[str]:
    with Child(command=(SHELL, *GRANTED)) as child:
        arm(gate, child)
        status, written = child.finish()
    events = drain(gate)
    executed = [event for event in events if isinstance(event, ExecEvent)]
    ended = [event for event in events if isinstance(event, ExitEvent)]
    gate.forget(executed[0].grant_id if executed else 0)
    same(
        "verdicts with a grant",
        [(event.pid, event.verdict, event.reason) for event in executed],
        [(child.pid, Verdict.ALLOW, Reason.AUTHORIZED)],
    )
    same("end of a process with a grant", (os.waitstatus_to_exitcode(status), written), (EXIT_CODE, b"ran\n"))
    same(
        "outcome",
        [(event.pid, event.status, event.execution) for event in ended],
        [(child.pid, status, executed[0].execution)],
    )
    yield "a process with a grant runs, and its outcome arrives"


def _check_cgroups(gate: Gate) -> Iterator[str]:
    root = cgroup_mount()
    name = f"egs-self-test-{os.getpid()}"
    scope = ctypes.c_uint32(abi.SCOPE_SELF_TEST_OBSERVE)
    path = abi.CgroupPath(path=f"/{name}".encode())
    config = gate.configs.get(ctypes.c_uint32(0)) or abi.Config()
    config.scope_kinds |= abi.ScopeKind.CGROUP
    gate.configs.put(ctypes.c_uint32(0), config)
    gate.scope_paths.put(path, scope)
    folder = root / name
    nested = folder / "nested"
    try:
        nested.mkdir(parents=True)
        known = gate.scope_cgroups.get(ctypes.c_uint64(cgroup_id(folder)))
        same("scope of a created cgroup", known and known.value, scope.value)
        yield "a cgroup that is created at a scope's path is the scope"
        starts: tuple[tuple[str, Callable[[], Child]], ...] = (
            ("a process that was moved below a scope", lambda: _moved(nested, root)),
            ("the child of such a process", lambda: _moved(nested, root, _go_on_in_a_child)),
            ("a process born below a scope", lambda: Child(fork=lambda: _fork_into(nested))),
        )
        for what, start in starts:
            with start() as child:
                same(what, child.pid in {task.pid for task in gate.governed()}, True)
                child.finish()
            seen = [event.scope for event in drain(gate) if isinstance(event, ExecEvent)]
            same(f"scopes of {what}", seen, ["self-test"])
            yield f"{what} is governed"
    finally:
        gate.scope_paths.delete(path)
        for leftover in (nested, folder):
            with contextlib.suppress(FileNotFoundError):
                leftover.rmdir()
    same("cgroups after removal", gate.scope_cgroups.keys(), [])
    same("processes after their end", gate.governed(), [])


def _moved(into: Path, back: Path, before_exec: Callable[[], None] = lambda: None) -> Child:
    """A child that was in the scope's cgroup and is there no more."""
    child = Child(before_exec=before_exec)
    move(child.pid, into)
    move(child.pid, back)
    return child


def _live_through_a_thread() -> None:
    """Runs in the child: the end of a thread is not the end of the process."""
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def _go_on_in_a_child() -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)


def _fork_into(folder: Path) -> int:
    """clone3(2) with CLONE_INTO_CGROUP: a process that is born in a cgroup, without any move."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    arguments = (ctypes.c_uint64 * _CLONE_ARGS)(_CLONE_INTO_CGROUP)
    arguments[4] = signal.SIGCHLD
    arguments[_CLONE_ARGS - 1] = descriptor
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    pid = int(libc.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_size_t(ctypes.sizeof(arguments))))
    os.close(descriptor)
    if pid < 0:
        fail(f"clone3: {os.strerror(ctypes.get_errno())}")
    return pid


def _become_somebody() -> None:
    """Runs in the child: one seccomp filter, and an identity whose numbers are all different.

    Not no_new_privs, which before Linux 6.17 makes the numbers equal at the exec; the filter comes first, as
    without no_new_privs only CAP_SYS_ADMIN may install one.
    """
    code = ctypes.create_string_buffer(_ALLOW_ALL)
    program = ctypes.create_string_buffer(16)
    ctypes.c_uint16.from_buffer(program).value = 1
    ctypes.c_uint64.from_buffer(program, 8).value = ctypes.addressof(code)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
    os.setresgid(_GID, _EGID, _EGID)
    os.setresuid(_UID, _EUID, _EUID)


def _no_new_privs_here() -> bool:
    return _prctl(_PR_GET_NO_NEW_PRIVS) == 1


def _prctl(option: int, *values: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    answer = int(libc.prctl(option, *arguments))
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
    return answer


def _proc_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _own_cgroup() -> int:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    return cgroup_id(cgroup_mount() / path.lstrip("/"))


def _devices(path: str) -> set[int]:
    """What user space knows of the file's device: st_dev, and s_dev as the mount table has it."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    mount = dict(line.split(":\t") for line in lines if ":\t" in line)["mnt_id"].strip()
    devices = {_kernel_device(os.major(status.st_dev), os.minor(status.st_dev))}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, device, *_ = line.split()
        if number == mount:
            major, minor = device.split(":")
            devices.add(_kernel_device(int(major), int(minor)))
    return devices


def _generation(path: str) -> int | None:
    """The inode's generation, where the file system tells user space (ext4, btrfs, xfs)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, struct.pack("l", 0))
    except OSError:
        return None  # ENOTTY: it does not, and then the number is only compared with itself
    finally:
        os.close(descriptor)
    return int(struct.unpack("I", answer[:4])[0])


def _kernel_device(major: int, minor: int) -> int:
    """The kernel's own dev_t: 12 bits of major, 20 of minor."""
    return major << 20 | minor
