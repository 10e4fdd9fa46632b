"""`syscalls` by real programs: each is stopped by the constraint, and works without it."""

from __future__ import annotations

import json
import os
import platform
import socket
from typing import TYPE_CHECKING, Final

import pytest
import rfc8785

from egs_kernel.artifact.envelope import parse_envelope, sign
from egs_kernel.audit.entries import Refusal
from egs_kernel.trust.keys import load_private
from tests.harness import BIN
from tests.running import Running, running_on_disk
from tests.worker import HEAD, INT80, SIGSYS, add_worker, artifact_of, run, said

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

EPERM: Final = 1

CHROOT: Final = "told(lambda: os.chroot('/'))"
PTRACE: Final = "told(lambda: 'EPERM' if libc.ptrace(0, 0, 0, 0) < 0 else None)"
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has other conventions")


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One system for all of them: nothing is left behind but entries."""
    with running_on_disk() as running:
        add_worker(running)
        yield running


CASES: Final = {
    "chroot": ('[syscalls]\nprofile = "default"\n', CHROOT, "None", "EPERM"),
    "ptrace": ('[syscalls]\nprofile = "default"\n', PTRACE, "None", "EPERM"),
    "a namespace": (
        '[syscalls]\nprofile = "default"\n',
        "told(lambda: 'EPERM' if libc.unshare(0x04000000) < 0 else None)",  # CLONE_NEWUTS
        "None",
        "EPERM",
    ),
    "a setting of the host, by what an agent runs": (
        '[syscalls]\nprofile = "agent"\n',
        "told(lambda: os.setpriority(os.PRIO_PROCESS, 0, 1))",
        "None",
        "EPERM",
    ),
    "a server, where there may be clients": (
        '[syscalls]\nprofile = "network-client"\n',
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); told(lambda: s.listen())",
        "None",
        "EPERM",
    ),
    "another identity, by a batch job": (
        '[syscalls]\nprofile = "batch"\n',
        "told(lambda: os.setgid(65534))",
        "None",
        "EPERM",
    ),
    "a child, where there is none to be": (
        '[syscalls]\nprofile = "strict"\n',
        "told(lambda: os.waitpid(p, 0)[1] if (p := os.fork()) else os._exit(0))",
        "0",
        "EPERM",
    ),
    "a call that is denied by name": (
        '[syscalls]\ndeny = ["getppid"]\n',
        "told(lambda: 'EPERM' if libc.getppid() < 0 else None)",
        "None",
        "EPERM",
    ),
    "a call whose argument is refused": (
        '[[syscalls.rules]]\ncall = "socket"\nargument = 0\nop = "eq"\nvalues = [1, 2]\n',
        "told(lambda: socket.socket(socket.AF_INET).close()); told(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())",
        "None None",
        "None EPERM",
    ),
    "the same with bits that the kernel ignores": (
        '[[syscalls.rules]]\ncall = "kill"\nargument = 1\nop = "ne"\nvalues = [28]\n',
        """
import signal; signal.signal(28, signal.SIG_IGN)
SYS_kill = 62 if os.uname().machine == 'x86_64' else 129
told(lambda: 'EPERM' if libc.syscall(SYS_kill, os.getpid(), ctypes.c_ulong(1 << 32 | 28)) < 0 else None)
""",
        "None",
        "EPERM",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_program_is_refused_and_works_without(system: Running, name: str) -> None:
    constraints, source, free, constrained = CASES[name]
    assert said(system, "", source) == free.split()
    assert said(system, constraints, source) == constrained.split()


@pytest.mark.parametrize("profile", ["no-network", "network-client", "agent", "batch", "strict"])
def test_a_client_of_a_local_server(system: Running, profile: str) -> None:
    """Where a profile has a network, a program uses it; where it has none, it gets no socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"told(lambda: socket.create_connection(('127.0.0.1', {port})).close())"
        assert said(system, "", source) == ["None"]
        expected = "None" if profile in ("network-client", "agent") else "EPERM"
        assert said(system, f'[syscalls]\nprofile = "{profile}"\n', source) == [expected]


def test_strict_is_enough_to_compute(system: Running) -> None:
    """It reads a file, hashes it in threads, and writes the result."""
    source, result = system.folder / "input", system.folder / "result"
    source.write_bytes(os.urandom(100_000))
    code = f"""
sums = []
threads = [threading.Thread(target=lambda: sums.append(hashlib.sha256(open({str(source)!r}, 'rb').read()).hexdigest()))
           for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
open({str(result)!r} + '.new', 'w').write(' '.join(sums)); os.rename({str(result)!r} + '.new', {str(result)!r})
"""
    assert said(system, '[syscalls]\nprofile = "strict"\naction = "kill"\n', code) == []
    assert len(set(result.read_text().split())) == 1
    assert len(result.read_text().split()) == 4


def test_kill_ends_the_process_and_log_lets_it_pass(system: Running) -> None:
    assert run(system, '[syscalls]\nprofile = "default"\naction = "kill"\n', CHROOT).returncode == SIGSYS
    system.wait_for(Refusal, lambda entry: entry.what == "chroot (killed)")
    assert said(system, '[syscalls]\nprofile = "default"\naction = "log"\n', CHROOT) == ["None"]
    system.wait_for(Refusal, lambda entry: entry.what == "chroot (passed)")


@x86_64
def test_i386_is_killed_unless_it_is_allowed_and_then_gets_no_more_than_natively(system: Running) -> None:
    getpid, chroot = INT80.replace("NUMBER", "20"), INT80.replace("NUMBER", "61")
    default = '[syscalls]\nprofile = "default"\n'
    if run(system, "", getpid).returncode != 0:
        pytest.skip("this kernel has no i386 calls")
    assert run(system, default, getpid).returncode == SIGSYS
    allowed = f'{default}architectures = ["i386"]\n'
    assert int(said(system, allowed, getpid)[0]) > 0
    assert said(system, allowed, chroot) == [str(-EPERM)]
    assert said(system, "", chroot) == ["-14"]  # EFAULT: it was asked for, without a path


def test_a_recorded_profile_lets_the_program_work_and_nothing_else(system: Running) -> None:
    """What `egs profile record` proposes goes into an artifact as it is."""
    worker, proposal = system.folder / "worker", system.folder / "recorded.toml"
    source = HEAD + "told(lambda: socket.socket(socket.AF_INET).close()); print(os.getloadavg() != ())"
    system.instance.egs(
        "profile", "record", "--exact", "--out", str(proposal), "--", str(worker), "-I", "-c", source
    )
    assert said(system, proposal.read_text(), source.removeprefix(HEAD)) == ["None", "True"]
    assert said(system, proposal.read_text(), CHROOT) == ["EPERM"]
    assert said(system, "", CHROOT) == ["None"]


def test_what_egs_issue_would_not_sign_the_daemon_refuses_again(system: Running) -> None:
    """Signed by a trusted key all the same, by a tool that checks nothing."""
    good = artifact_of(system, '[syscalls]\nprofile = "default"\n')
    signer = load_private(system.folder / "issuer.key")
    for wrong, field in (
        ({"profile": "none-such"}, "profile"),
        ({"deny": ["execve"]}, "deny[0]"),
        ({"profile": "default", "allow": ["mount", "mount"]}, "allow[1]"),
        ({"rules": [{"call": "read", "argument": 0, "op": "eq", "values": [0]}]}, "rules[0].call"),
    ):
        statement = json.loads(parse_envelope(good.read_bytes()).payload)
        statement["predicate"]["constraints"] = {"syscalls": wrong}
        artifact = system.folder / "wrong.json"
        artifact.write_bytes(sign(rfc8785.dumps(statement), [signer]))
        refused = system.run("--artifact", str(artifact), "--", str(system.folder / "worker"), "-c", "1")
        assert (refused.returncode, refused.stdout) == (126, "")
        assert f"constraints.syscalls.{field}: " in refused.stderr
        assert "[artifact_malformed]" in refused.stderr


def test_recording_takes_no_privileges(system: Running) -> None:
    done = system.as_nobody(str(BIN / "egs"), "profile", "record", "--", "true")
    assert (done.returncode, 'profile = "strict"' in done.stdout) == (0, True), done.stderr
