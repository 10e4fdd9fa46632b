"""Files and networks of a launcher: put upon it by the daemon's part alone, without the daemon, and what gets around it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.artifact.reach import FilesystemConstraint, NetworkConstraint
from egs_kernel.constraints.attest import Before, attest, confirm
from egs_kernel.constraints.attest import Plan as Attested
from egs_kernel.constraints.confinement import Confinement
from egs_kernel.constraints.landlock import Plan, plan
from egs_kernel.constraints.proc import task_identity
from egs_kernel.constraints.reach import Reach
from egs_kernel.constraints.rulesets import kernel_abi
from egs_kernel.constraints.tracing import while_stopped
from egs_kernel.errors import Refused
from egs_kernel.model import Reason, TaskIdentity
from tests.harness import COMMAND_SECONDS
from tests.landlock import FILES, HERE, PORTS
from tests.running import disk_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    HERE,
]

NOBODY: Final = 65534
PYTHON: Final = os.path.realpath("/usr/bin/python3")

# The launcher: `before` and `after` are what it does before it takes the ruleset, and before its exec.
LAUNCHER: Final = """
import array, ctypes, os, socket, sys
before, after, body = sys.argv[2:5]
daemon = socket.socket(fileno=int(sys.argv[1])); daemon.set_inheritable(False)
libc = ctypes.CDLL(None, use_errno=True)
kept = []
exec(before)
daemon.send(b"r"); kept += socket.recv_fds(daemon, 1, 1)[1]
exec(after)
daemon.send(b"r"); daemon.recv(1)
os.execv("/usr/bin/python3", ["python3", "-I", "-c", body])
"""

TRY: Final = """
import os, socket, subprocess, sys
def attempt(name, action):
    try: action()
    except OSError as error: print(name, error.errno)
    else: print(name, 0)
"""


def isolate_as_daemon(confinement: Confinement) -> None:
    """In a thread that ends when it fails."""
    confinement.look()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(confinement.isolate).result(COMMAND_SECONDS)


class Launcher:
    """A process that behaves as a launcher, but for what a test has it do."""

    def __init__(self, process: subprocess.Popen[str], daemon: socket.socket, uid: int) -> None:
        self.uid = uid
        self.process = process
        self.daemon = daemon
        self.pid = process.pid

    def confine(self, reach: Reach) -> dict[str, int]:
        """All that the daemon does; what the program then printed: words and numbers."""
        confinement = Confinement(task_identity(self.pid), self.uid, reach, os.open(PYTHON, os.O_PATH), ())
        try:
            self.daemon.recv(1)
            isolate_as_daemon(confinement)
            socket.send_fds(self.daemon, [b"x"], confinement.descriptors)
            self.daemon.recv(1)
            attested = Attested(parts=(confinement.part,))
            attest(self.pid, attested, Before(filters=0))
            # What the escort does in the new image is done here at the launcher's last stop before it.
            while_stopped(self.pid, lambda: confirm(self.pid, attested, Before(filters=0)))
        finally:
            confinement.close()
        self.daemon.send(b"x")
        output, _ = self.process.communicate(timeout=COMMAND_SECONDS)
        return {name: int(code) for name, code in (line.split() for line in output.splitlines())}

    def refused(self, reach: Reach) -> str:
        """Why the daemon does not let it go on."""
        with ThreadPoolExecutor(1) as pool:
            failure = pool.submit(self.confine, reach).exception(COMMAND_SECONDS)
        assert isinstance(failure, Refused), failure
        assert failure.reason is Reason.CONSTRAINT_NOT_ATTESTED
        return failure.message


@contextmanager
def launcher(body: str = "", before: str = "", after: str = "", uid: int = 0) -> Iterator[Launcher]:
    ours, theirs = socket.socketpair()
    command = [PYTHON, "-c", LAUNCHER, str(theirs.fileno()), before, after, TRY + body]
    with (
        ours,
        theirs,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            pass_fds=(theirs.fileno(),),
            user=uid or None,
            group=uid or None,
            extra_groups=[uid, 100] if uid else None,
        ) as process,
    ):
        theirs.close()
        ours.settimeout(COMMAND_SECONDS)
        try:
            yield Launcher(process, ours, uid)
        finally:
            process.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    with disk_folder() as path:
        for name in ("in", "out", "run", "closed"):
            (path / name).mkdir()
            (path / name).chmod(0o777)
            (path / name / "file").write_text("content")
            (path / name / "file").chmod(0o666)
        (path / "run/true").write_bytes(Path("/usr/bin/true").read_bytes())
        (path / "closed/true").write_bytes(Path("/usr/bin/true").read_bytes())
        for name in ("run", "closed"):
            (path / name / "true").chmod(0o755)
        yield path


def files(folder: Path) -> Plan | None:
    constraint = FilesystemConstraint(
        base="system", read=(f"{folder}/in",), write=(f"{folder}/out",), execute=(f"{folder}/run",)
    )
    return plan(constraint, None, kernel_abi())


ALL_OF_THEM: Final = """
for name in ("in", "out", "run", "closed"):
    attempt("read-" + name, lambda: open(f"{F}/{name}/file").read())
    attempt("list-" + name, lambda: os.listdir(f"{F}/{name}"))
    attempt("write-" + name, lambda: open(f"{F}/{name}/file", "a").write("x"))
    attempt("truncate-" + name, lambda: os.truncate(f"{F}/{name}/file", 1))
    attempt("make-" + name, lambda: open(f"{F}/{name}/new", "x").close())
    attempt("mkdir-" + name, lambda: os.mkdir(f"{F}/{name}/folder"))
    attempt("link-" + name, lambda: os.symlink("x", f"{F}/{name}/link"))
    attempt("fifo-" + name, lambda: os.mkfifo(f"{F}/{name}/fifo"))
    attempt("unix-" + name, lambda: socket.socket(socket.AF_UNIX).bind(f"{F}/{name}/socket"))
for name in ("run", "closed"):
    attempt("execute-" + name, lambda: subprocess.run([f"{F}/{name}/true"]))
attempt("rename", lambda: os.rename(f"{F}/out/file", f"{F}/out/renamed"))
attempt("rename-across", lambda: os.rename(f"{F}/out/new", f"{F}/in/renamed"))
attempt("remove", lambda: os.unlink(f"{F}/out/renamed"))
attempt("remove-closed", lambda: os.unlink(f"{F}/closed/file"))
attempt("null", lambda: open("/dev/null", "w").write("x"))
"""
CHANGES: Final = ("write", "truncate", "make", "mkdir", "link", "fifo", "unix")


@FILES
@pytest.mark.parametrize("uid", [0, NOBODY])
def test_files_outside_of_the_roots_are_refused_and_inside_they_are_not(folder: Path, uid: int) -> None:
    body = f"F = {str(folder)!r}\n{ALL_OF_THEM}"
    with launcher(body, uid=uid) as it:
        found = it.confine(Reach(files(folder)))
    permitted = {name for name, code in found.items() if code == 0}
    assert permitted == {
        *("read-in", "list-in", "read-run", "execute-run", "rename", "remove", "null"),
        *(f"{change}-out" for change in CHANGES),
    }
    assert not (folder / "closed/new").exists()
    assert (folder / "closed/file").read_text() == "content"


def test_without_the_constraint_all_of_it_works(folder: Path) -> None:
    with launcher(f"F = {str(folder)!r}\n{ALL_OF_THEM}") as it:
        found = it.confine(Reach())
    assert not any(found.values()), found


NETWORK: Final = """
def loopback():
    server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
    client.send(b"x"); assert server.accept()[0].recv(1) == b"x"
attempt("loopback", loopback)
attempt("outside", lambda: socket.create_connection(("127.0.0.1", PORT), 5))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT))
print("interfaces", len(socket.if_nameindex()))
print("uid", os.getuid()); print("groups", sum(os.getgroups()))
print("power", int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")), 16))
def leave():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(os.open("/proc/%d/ns/net" % os.getppid(), os.O_RDONLY), 0x40000000): raise OSError(ctypes.get_errno(), "")
attempt("leave", leave)
"""


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_a_network_of_its_own_has_a_loopback_and_nothing_else(uid: int) -> None:
    abstract = f"\0egs-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(abstract)
        unix.listen()
        body = f"PORT = {server.getsockname()[1]}\nABSTRACT = {abstract!r}\n{NETWORK}"
        reach = Reach(own_network=True, no_sockets=True)
        with launcher(body, uid=uid) as it:
            found = it.confine(reach)
        with launcher(body, uid=uid) as it:
            free = it.confine(Reach())
    assert (found["loopback"], found["interfaces"]) == (0, 1)
    assert found["outside"]
    assert found["abstract"]
    assert found["leave"]
    assert (found["uid"], found["groups"]) == (uid, (uid + 100 if uid else free["groups"]))
    assert (free["loopback"], free["outside"], free["abstract"]) == (0, 0, 0)
    if uid:
        assert found["power"] == 0


@FILES
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os.close(kept[0])", "did not keep"),
        # A ruleset of its own that permits everything, where the daemon's was.
        (
            "os.dup2(libc.syscall(444, (ctypes.c_uint64 * 1)(1), ctypes.c_size_t(8), 0), kept[0])",
            "did not keep",
        ),
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "2 threads",
        ),
        ("libc.unshare(0x00020000)", "has changed what files"),
        ("os.chroot('/usr'); os.chdir('/')", "has changed what files"),
    ],
)
def test_a_launcher_that_takes_another_way_is_refused(folder: Path, what: str, said: str) -> None:
    with launcher(after=what) as it:
        assert said in it.refused(Reach(files(folder)))


SWAP: Final = """
attr = (ctypes.c_uint64 * 1)(1); weak = libc.syscall(444, attr, ctypes.c_size_t(8), 0)
ours, launcher = os.dup(kept[0]), os.getpid()
if libc.syscall(56, 0x400 | 17, 0, 0, 0, 0) == 0:  # clone(CLONE_FILES): another process, the same table
    while os.getppid() == launcher: os.dup2(weak, kept[0]); os.dup2(ours, kept[0])
    os._exit(0)
"""


@FILES
def test_a_launcher_whose_helper_exchanges_the_descriptor_gets_ours_or_nothing(folder: Path) -> None:
    body = f"attempt('closed', lambda: open('{folder}/closed/file').read())"
    outcomes = set()
    for _ in range(6):
        with launcher(body, after=SWAP) as it:
            try:
                outcomes.add(it.confine(Reach(files(folder)))["closed"])
            except Refused as refused:
                assert "did not keep" in refused.message  # noqa: PT017 - passing is fine too
    assert outcomes <= {errno.EACCES}


@FILES
@pytest.mark.parametrize("which", ["user", "mount"])
def test_a_launcher_in_a_namespace_of_its_own_making_is_refused(folder: Path, which: str) -> None:
    flags = {"user": 0x10000000, "mount": 0x10020000}[which]
    with launcher(before=f"assert libc.unshare({flags}) == 0", uid=NOBODY) as it:
        assert "of root's making" in it.refused(Reach(files(folder)))


@pytest.mark.parametrize(
    "make",
    [
        "kept.append(socket.socket()); kept[-1].set_inheritable(True)",
        "kept.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)); kept[-1].set_inheritable(True)",
        "ring = libc.syscall(425, 1, ctypes.create_string_buffer(120)); assert ring >= 0",
    ],
    ids=["tcp", "netlink", "io_uring"],
)
def test_a_socket_from_outside_is_refused(make: str) -> None:
    with launcher(before=make) as it:
        assert "was handed" in it.refused(Reach(own_network=True, no_sockets=True))


@PORTS
def test_ports_are_those_that_were_signed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        one, two = first.getsockname()[1], second.getsockname()[1]
        body = (
            f"attempt('one', lambda: socket.create_connection(('127.0.0.1', {one})))\n"
            f"attempt('two', lambda: socket.create_connection(('127.0.0.1', {two})))\n"
            f"attempt('bind', lambda: socket.create_server(('127.0.0.1', 0)))\n"
        )
        network = NetworkConstraint(mode="ports", connect=(one,))
        with launcher(body) as it:
            found = it.confine(Reach(plan(None, network, kernel_abi()), no_sockets=True))
        with launcher(body) as it:
            free = it.confine(Reach())
    assert found == {"one": 0, "two": errno.EACCES, "bind": errno.EACCES}
    assert not any(free.values())


def test_nothing_is_done_to_a_process_that_came_to_bear_the_launchers_number() -> None:
    with launcher() as it:
        was = TaskIdentity(it.pid, 1)
        confinement = Confinement(
            was, 0, Reach(own_network=True, no_sockets=True), os.open(PYTHON, os.O_PATH), ()
        )
        network = Path(f"/proc/{it.pid}/ns/net").readlink()
        with pytest.raises(Refused) as caught:
            isolate_as_daemon(confinement)
        assert caught.value.reason is Reason.LAUNCHER_LOST
        assert Path(f"/proc/{it.pid}/ns/net").readlink() == network


@pytest.mark.parametrize("how", ["set-user-ID", "set-group-ID", "capabilities"])
def test_nothing_is_done_to_a_program_with_other_privileges(folder: Path, how: str) -> None:
    """The launcher executed it after it had asked, under the same number."""
    program = folder / "privileged"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod({"set-user-ID": 0o4755, "set-group-ID": 0o2755, "capabilities": 0o755}[how])
    if how == "capabilities":
        os.setxattr(program, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    with subprocess.Popen([program, "60"], user=NOBODY, group=NOBODY, extra_groups=[]) as process:
        network = Path(f"/proc/{process.pid}/ns/net").readlink()
        reach = Reach(own_network=True, no_sockets=True)
        confinement = Confinement(task_identity(process.pid), NOBODY, reach, os.open(PYTHON, os.O_PATH), ())
        with pytest.raises(Refused, match="other privileges"):
            isolate_as_daemon(confinement)
        assert Path(f"/proc/{process.pid}/ns/net").readlink() == network
        process.kill()


def test_where_the_kernel_permits_no_user_namespace_the_host_lacks_it() -> None:
    with (
        launcher(before="os.chroot('/usr')") as it,
        pytest.raises(Refused) as caught,
    ):  # it permits none in a chroot
        it.confine(Reach(own_network=True, no_sockets=True))
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert "user namespace" in caught.value.message
    assert "user.max_user_namespaces" in caught.value.next_step


@FILES
@pytest.mark.parametrize(
    ("path", "said"),
    [("missing", "No such file"), ("link", "symbolic link"), ("link/below", "symbolic link")],
)
def test_a_root_that_is_not_there_or_is_a_link_is_refused(folder: Path, path: str, said: str) -> None:
    (folder / "link").symlink_to("closed")
    constraint = FilesystemConstraint(base="system", read=(f"{folder}/in", f"{folder}/{path}"))
    with launcher() as it, pytest.raises(Refused) as caught:
        it.confine(Reach(plan(constraint, None, kernel_abi())))
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert caught.value.message.startswith("constraints.filesystem.read[1]: ")
    assert said in caught.value.message
