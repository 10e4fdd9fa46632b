"""Launchers and programs that want more files and networks than was signed.

Claim T-25 and open point O-18 of docs/threat-model.md.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Decision
from egs_kernel.model import Reason
from tests.kernel.test_reach import python, refused, rooms
from tests.landlock import FILES, HERE
from tests.running import Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.timeout(180),
    HERE,
]


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One system for the module."""
    with running_on_disk() as running:
        yield running


BEFORE_ITS_EXEC: Final = """
execute = launch._execute
def cheat(program, argv):
    {}
    execute(program, argv)
launch._execute = cheat
"""


FIND: Final = """
import ctypes
libc = ctypes.CDLL(None)
def is_ours(fd):
    try: return "landlock" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError: return False
said = launch._constrain
def constrain(answer):
    said(answer)
    (ours,) = filter(is_ours, range(3, 99))
    """


@FILES
@pytest.mark.parametrize(
    "cheat",
    [
        # It does not take the ruleset.
        "launch._receive_first = lambda daemon: launch._receive(daemon.fileno())",
        # It takes it, and closes it.
        FIND + "os.close(ours)\nlaunch._constrain = constrain",
        # It exchanges it for one of its own, which restricts nothing that matters.
        FIND + "os.dup2(libc.syscall(444, (ctypes.c_uint64 * 1)(1), ctypes.c_size_t(8), 0), ours)\n"
        "launch._constrain = constrain",
    ],
    ids=["skips it", "drops it", "weakens it"],
)
def test_a_launcher_without_the_ruleset_is_not_armed(system: Running, cheat: str) -> None:
    done = python(system, "print('ran')", rooms(system.folder), cheat=cheat)
    assert (done.returncode, "[constraint_not_attested]" in done.stderr) == (126, True), done.stderr
    assert done.stdout == ""


@FILES
@pytest.mark.parametrize(
    ("what", "constraints"),
    [
        ("import ctypes; assert ctypes.CDLL(None).unshare(0x00020000) == 0", "files"),
        ("os.chroot('/usr')", "files"),
        ("import ctypes; assert ctypes.CDLL(None).unshare(0x40000000) == 0", '[network]\nmode = "none"\n'),
        ("import socket; kept = socket.socket(); kept.set_inheritable(True)", '[network]\nmode = "none"\n'),
    ],
    ids=["other mounts", "another root", "another network", "a socket"],
)
def test_what_a_launcher_does_after_its_attestation_is_seen_in_the_new_image(
    system: Running, what: str, constraints: str
) -> None:
    before = len(
        [entry for entry in system.entries(Decision) if entry.reason is Reason.CONSTRAINT_NOT_ATTESTED]
    )
    done = python(
        system,
        "print('ran')",
        rooms(system.folder) if constraints == "files" else constraints,
        cheat=BEFORE_ITS_EXEC.format(what),
    )
    assert done.stdout == ""
    assert done.returncode in (126, 127, -signal.SIGKILL), done
    if done.returncode == -signal.SIGKILL:
        system.wait_for_decisions(Reason.CONSTRAINT_NOT_ATTESTED, before + 1)


@FILES
def test_a_launcher_in_a_user_namespace_is_refused(system: Running) -> None:
    cheat = "import ctypes; assert ctypes.CDLL(None).unshare(0x10020000) == 0"
    done = python(system, "print('ran')", rooms(system.folder), cheat=cheat)
    assert done.returncode == 126
    assert done.stdout == ""


def test_a_socket_of_the_callers_is_refused(system: Running) -> None:
    cheat = "import socket; kept = socket.socket(); kept.set_inheritable(True)"
    done = python(system, "print('ran')", '[network]\nmode = "none"\n', cheat=cheat)
    assert done.stdout == ""
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert python(system, "print('ran')", "", cheat=cheat).stdout == "ran\n"


@FILES
def test_a_program_does_not_get_out(system: Running) -> None:
    """As root, which may do all of it without the constraint."""
    mounted = "(lambda: (_ for _ in ()).throw(OSError(ctypes.get_errno(), '')) if libc.{} else None)()"
    actions = {
        "mount": mounted.format("mount(b'/', F.encode() + b'/in', None, 4096, None)"),
        "pivot_root": mounted.format("syscall(155, b'/', b'/')"),
        "a host's process": "os.readlink('/proc/%d/root' % os.getppid())",
        "trace": mounted.format("ptrace(16, os.getppid(), 0, 0)"),
    }
    before = f"import ctypes\nF = {str(system.folder)!r}\nlibc = ctypes.CDLL(None, use_errno=True)"
    assert refused(system, actions, rooms(system.folder), before) == set(actions)


@FILES
def test_o18_what_landlock_does_not_restrict(system: Running) -> None:
    constraints, before = rooms(system.folder), f"F = {str(system.folder)!r}"
    file = system.folder / "closed/file"
    actions = {
        "mode": "os.chmod(F + '/closed/file', 0o600)",
        "owner": "os.chown(F + '/closed/file', 1, 1)",
        "times": "os.utime(F + '/closed/file', (1, 1))",
        "stat": "os.stat(F + '/closed/file')",
    }
    assert refused(system, actions, constraints, before) == set()
    assert (file.stat().st_mode & 0o777, file.stat().st_uid, file.stat().st_mtime) == (0o600, 1, 1)
    calls = [
        "chmod",
        "fchmod",
        "fchmodat",
        "fchmodat2",
        "chown",
        "fchown",
        "lchown",
        "fchownat",
        "utime",
        "utimes",
        "futimesat",
        "utimensat",
    ]
    denied = f"[syscalls]\ndeny = {calls}\n".replace("'", '"')
    assert refused(system, actions, constraints + denied, before) == {"mode", "owner", "times"}


def test_o18_a_unix_socket_leads_to_whatever_listens_behind_it(system: Running) -> None:
    path = str(system.folder / "relay")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def relay() -> None:
            with server.accept()[0] as client:
                client.send(b"from outside")

        threading.Thread(target=relay, daemon=True).start()
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); print(s.recv(20))"
        assert python(system, code, '[network]\nmode = "none"\n').stdout == "b'from outside'\n"


@FILES
def test_o18_a_file_that_the_caller_hands_over_open_stays_usable(system: Running) -> None:
    rooms(system.folder)
    file = str(system.folder / "closed/file")
    handed = f"os.dup2(os.open({file!r}, os.O_RDWR), 0); os.set_inheritable(0, True)"
    code = "import os; print(os.read(0, 7))"
    assert python(system, code, rooms(system.folder), cheat=handed).stdout == "b'content'\n"
