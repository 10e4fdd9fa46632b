"""A sealed gate refuses root what it refuses nobody when its seal is lifted (tier `lsm`)."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import egs_kernel
from egs_kernel.audit.layout import segment_path, segments_of
from egs_kernel.gate import libbpf
from tests.sealing import Sealed, sealable_host

pytestmark = [pytest.mark.kernel, pytest.mark.lsm]

CODE: Final = Path(egs_kernel.__file__).with_name("errors.py")
BPF, PIDFD_OPEN, PIDFD_SIGNAL, PIDFD_GETFD, VM_WRITEV = 321, 434, 424, 438, 311
OPEN_TREE, MOVE_MOUNT = 428, 429
MAP_LOOKUP, MAP_UPDATE, OBJ_PIN, TEST_RUN = 1, 2, 6, 10
PROG_BY_ID, MAP_BY_ID, LINK_BY_ID = 13, 14, 30
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 1 << 18, 1 << 20, 2
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    """One system for all: a gate takes a while to load."""
    with sealable_host(tmp_path_factory.mktemp("sealed")) as made:
        yield made


@pytest.fixture
def sealed(host: Sealed) -> Sealed:
    host.seal()
    return host


@pytest.fixture
def lifted(host: Sealed) -> Sealed:
    host.lift()
    return host


# ---- the attacks: each raises OSError(EPERM) when it is refused, and undoes itself when it is not -----------------


def called(number: int, *arguments: Any) -> int:
    """A system call, its failure as an exception."""
    LIBC.syscall.restype = ctypes.c_long
    answer = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    return called(BPF, ctypes.c_long(command), buffer, ctypes.c_long(128))


def mount(source: Path | str, target: Path, kind: str, flags: int = 0) -> None:
    if LIBC.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


def unmount(target: Path) -> None:
    if LIBC.umount2(os.fsencode(target), MNT_DETACH) < 0:
        raise OSError(ctypes.get_errno(), "umount")


def stop_it(host: Sealed) -> None:
    os.kill(host.pid, signal.SIGSTOP)
    os.kill(host.pid, signal.SIGCONT)


def end_it_by_pidfd(host: Sealed) -> None:
    process = os.pidfd_open(host.pid)
    try:
        called(PIDFD_SIGNAL, ctypes.c_long(process), ctypes.c_long(signal.SIGCONT), None, ctypes.c_long(0))
    finally:
        os.close(process)


def trace_it(host: Sealed) -> None:
    for request in (16, 17):  # PTRACE_ATTACH, PTRACE_DETACH
        if LIBC.ptrace(ctypes.c_long(request), ctypes.c_long(host.pid), None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        if request == 16:
            os.waitpid(host.pid, 0)


def write_its_memory(host: Sealed) -> None:
    os.close(os.open(f"/proc/{host.pid}/mem", os.O_RDWR))


def write_its_memory_directly(host: Sealed) -> None:
    local = ctypes.create_string_buffer(8)
    ours = (ctypes.c_uint64 * 2)(ctypes.addressof(local), 8)
    theirs = (ctypes.c_uint64 * 2)(8, 8)  # nothing is mapped there
    try:
        called(
            VM_WRITEV,
            ctypes.c_long(host.pid),
            ours,
            ctypes.c_long(1),
            theirs,
            ctypes.c_long(1),
            ctypes.c_long(0),
        )
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def take_its_descriptor(host: Sealed) -> None:
    process = os.pidfd_open(host.pid)
    try:
        os.close(called(PIDFD_GETFD, ctypes.c_long(process), ctypes.c_long(2), ctypes.c_long(0)))
    finally:
        os.close(process)


def limit_it(host: Sealed) -> None:
    resource.prlimit(host.pid, resource.RLIMIT_CPU, resource.prlimit(host.pid, resource.RLIMIT_CPU))


def starve_it(host: Sealed) -> None:
    os.sched_setscheduler(host.pid, os.SCHED_OTHER, os.sched_param(0))


def nice_it(host: Sealed) -> None:
    os.setpriority(os.PRIO_PROCESS, host.pid, os.getpriority(os.PRIO_PROCESS, host.pid))


def open_a_pin(host: Sealed) -> None:
    os.close(libbpf.open_pin(host.instance.paths.pins / "heartbeats"))


def open_a_pinned_program(host: Sealed) -> None:
    os.close(libbpf.open_pin(host.instance.paths.pins / "set_task"))


def by_number(command: int, kind: str) -> Callable[[Sealed], None]:
    def attack(host: Sealed) -> None:
        os.close(bpf(command, struct.pack("<I", NUMBERS[kind])))

    return attack


def write_by_an_old_descriptor(host: Sealed) -> None:
    key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(4096)
    where = struct.pack("<IIQQQ", OLD["map"], 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    bpf(MAP_LOOKUP, where)
    bpf(MAP_UPDATE, where)


def run_by_an_old_descriptor(host: Sealed) -> None:
    libbpf.run_program(OLD["program"], (0, 0))


def pin_by_an_old_descriptor(host: Sealed) -> None:
    path = Path("/sys/fs/bpf/egs-test-pin")
    libbpf.pin(OLD["map"], path)
    path.unlink()


def unlink_a_pin(host: Sealed) -> None:
    spare = host.instance.paths.pins / "spare"
    spare.unlink()
    libbpf.pin(OLD["map"], spare)


def rename_a_pin(host: Sealed) -> None:
    spare = host.instance.paths.pins / "spare"
    spare.rename(spare.with_name("moved")).rename(spare)


def rename_the_pins(host: Sealed) -> None:
    pins = host.instance.paths.pins
    pins.rename(pins.with_name("egs-test-moved")).rename(pins)


def unmount_the_pins(host: Sealed) -> None:
    """A second mount of the same lies over bpffs, so that the attack can succeed once."""
    unmount(Path("/sys/fs/bpf"))
    mount("/sys/fs/bpf", Path("/sys/fs/bpf"), "none", MS_BIND)


def mount_over(target: Callable[[Sealed], Path]) -> Callable[[Sealed], None]:
    def attack(host: Sealed) -> None:
        mount("none", target(host), "tmpfs")
        unmount(target(host))

    return attack


def mount_over_what_is_above(host: Sealed) -> None:
    mount("/usr", Path("/usr"), "none", MS_BIND)
    unmount(Path("/usr"))


def mount_the_new_way(host: Sealed) -> None:
    target = host.instance.paths.trust
    tree = called(OPEN_TREE, ctypes.c_long(-100), b"/tmp", ctypes.c_long(1))
    try:
        called(
            MOVE_MOUNT, ctypes.c_long(tree), b"", ctypes.c_long(-100), os.fsencode(target), ctypes.c_long(4)
        )
    finally:
        os.close(tree)
    unmount(target)


def mount_from_another_namespace(host: Sealed) -> None:
    """Where mounts are shared, what is mounted there appears on the host."""
    target = host.instance.paths.trust
    mount("none", Path("/"), "none", MS_REC | MS_SHARED)
    try:
        code = in_a_namespace(lambda: mount("none", target, "tmpfs"))
        if code:
            raise OSError(code, os.strerror(code))
        unmount(target)
    finally:
        mount("none", Path("/"), "none", MS_REC | MS_PRIVATE)


def in_a_namespace(work: Callable[[], None]) -> int:
    """The error of `work` in a mount namespace of its own, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            LIBC.unshare(0x20000)
            work()
            code = 0
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def journal(host: Sealed) -> Path:
    """The file that the daemon appends to."""
    folder = host.instance.paths.record
    return segment_path(folder, segments_of(folder)[-1])


def append_to_the_record(host: Sealed) -> None:
    journal(host).open("ab").close()


def write_the_configuration(host: Sealed) -> None:
    host.instance.paths.config.open("r+b").close()


def trust_a_key(host: Sealed) -> None:
    path = host.instance.paths.trust / ".new"
    path.touch()
    path.unlink()


def make_a_folder(host: Sealed) -> None:
    (host.instance.paths.state_dir / "new").mkdir()
    (host.instance.paths.state_dir / "new").rmdir()


def make_a_link(host: Sealed) -> None:
    (host.instance.paths.state_dir / "link").symlink_to("/")
    (host.instance.paths.state_dir / "link").unlink()


def make_a_pipe(host: Sealed) -> None:
    os.mkfifo(host.instance.paths.run_dir / "pipe")
    (host.instance.paths.run_dir / "pipe").unlink()


def move_the_trust_store(host: Sealed) -> None:
    trust = host.instance.paths.trust
    trust.rename(trust.with_name("moved")).rename(trust)


def move_what_is_above(host: Sealed) -> None:
    root = host.instance.root
    root.rename(root.with_name("moved")).rename(root)


def remove_a_revocation(host: Sealed) -> None:
    path = host.instance.paths.revocations / ("0" * 64)
    path.unlink()
    path.touch()


def name_the_record_twice(host: Sealed) -> None:
    record = journal(host)
    other = host.running.folder / "second-name"
    other.unlink(missing_ok=True)
    other.hardlink_to(record)
    other.unlink()


def write_its_code(host: Sealed) -> None:
    CODE.open("r+b").close()


def truncate_its_code(host: Sealed) -> None:
    os.truncate(CODE, CODE.stat().st_size)


def chmod_its_code(host: Sealed) -> None:
    CODE.chmod(CODE.stat().st_mode & 0o7777)


def rename_its_code(host: Sealed) -> None:
    CODE.rename(CODE.with_suffix(".moved")).rename(CODE)


def replace_its_code(host: Sealed) -> None:
    """By a file that lies in no folder that is kept, on the same file system."""
    copy = CODE.parents[2] / f"egs-test-copy-{os.getpid()}"
    copy.write_bytes(CODE.read_bytes())
    try:
        copy.rename(CODE)
    finally:
        copy.unlink(missing_ok=True)


def tag_its_code(host: Sealed) -> None:
    os.setxattr(CODE, "user.egs", b"x")
    os.removexattr(CODE, "user.egs")


def add_to_its_code(host: Sealed) -> None:
    path = CODE.with_name("test_added.py")
    path.touch()
    path.unlink()


def write_a_library(host: Sealed) -> None:
    library = next(
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libexpat" in line
    )
    os.chown(library, -1, -1)


def write_what_decides_on_libraries(host: Sealed) -> None:
    Path("/etc/ld.so.cache").open("r+b").close()


NUMBERS: Final[dict[str, int]] = {}
OLD: Final[dict[str, int]] = {}
ATTACKS: Final = [
    stop_it,
    end_it_by_pidfd,
    trace_it,
    write_its_memory,
    write_its_memory_directly,
    take_its_descriptor,
    limit_it,
    starve_it,
    nice_it,
    open_a_pin,
    open_a_pinned_program,
    by_number(MAP_BY_ID, "map"),
    by_number(PROG_BY_ID, "program"),
    by_number(LINK_BY_ID, "link"),
    write_by_an_old_descriptor,
    run_by_an_old_descriptor,
    pin_by_an_old_descriptor,
    unlink_a_pin,
    rename_a_pin,
    rename_the_pins,
    unmount_the_pins,
    mount_over(lambda host: host.instance.paths.pins),
    mount_over(lambda host: host.instance.paths.state_dir),
    mount_over_what_is_above,
    mount_the_new_way,
    mount_from_another_namespace,
    append_to_the_record,
    write_the_configuration,
    trust_a_key,
    make_a_folder,
    make_a_link,
    make_a_pipe,
    move_the_trust_store,
    move_what_is_above,
    remove_a_revocation,
    name_the_record_twice,
    write_its_code,
    truncate_its_code,
    chmod_its_code,
    rename_its_code,
    replace_its_code,
    tag_its_code,
    add_to_its_code,
    write_a_library,
    write_what_decides_on_libraries,
]
IDS: Final = [
    "-".join((attack.__name__, attack.__qualname__.split(".")[0]))
    if attack.__name__ == "attack"
    else attack.__name__
    for attack in ATTACKS
]


@pytest.fixture(scope="module", autouse=True)
def prepared(host: Sealed) -> Iterator[None]:
    """What the attackers have from before the seal: numbers, descriptors, a spare pin, a second mount of bpffs."""
    pins = host.instance.paths.pins
    mount("/sys/fs/bpf", Path("/sys/fs/bpf"), "none", MS_BIND)
    OLD["map"], OLD["program"] = libbpf.open_pin(pins / "readings"), libbpf.open_pin(pins / "read_file")
    link = libbpf.open_pin(pins / "link_gate_exec")
    NUMBERS.update(
        {
            "map": libbpf.object_id(OLD["map"]),
            "program": libbpf.object_id(OLD["program"]),
            "link": libbpf.object_id(link),
        }
    )
    os.close(link)
    libbpf.pin(OLD["map"], pins / "spare")
    (host.instance.paths.revocations / ("0" * 64)).touch()
    host.seal()
    yield
    host.lift()
    (pins / "spare").unlink()
    unmount(Path("/sys/fs/bpf"))
    for descriptor in OLD.values():
        os.close(descriptor)


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_sealed(sealed: Sealed, attack: Callable[[Sealed], None]) -> None:
    with pytest.raises(OSError, match=r".") as refused:
        attack(sealed)
    # The kernel says EACCES for /proc/PID/mem, whoever refused it.
    assert refused.value.errno == (errno.EACCES if attack is write_its_memory else errno.EPERM)


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_lifted(lifted: Sealed, attack: Callable[[Sealed], None]) -> None:
    attack(lifted)
