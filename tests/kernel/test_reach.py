"""`filesystem` and `network` with the real daemon and gate: real programs, with the constraints and without."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec
from egs_kernel.gate.trees import PREFIX
from egs_kernel.model import Reason, Verdict
from tests.harness import COMMAND_SECONDS
from tests.landlock import ABI, FILES, HERE, PORTS, SCOPES
from tests.running import SECONDS, Running, running_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.timeout(180),
    HERE,
]

PYTHON: Final = Path("/usr/bin/python3").resolve()
CURL: Final = Path("/usr/bin/curl")


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One system for the module: on a disk, where nobody is kept from the folder."""
    with running_on_disk() as running:
        yield running


def launch(
    system: Running,
    program: Path,
    words: tuple[str, ...],
    constraints: str,
    *,
    cheat: str = "",
    nobody: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Issue for exactly this, and run it; `cheat` is Python that changes the launcher."""
    given = []
    if constraints:
        file = system.folder / "constraints.toml"
        file.write_text(constraints)
        given = ["--constraints", str(file)]
    argv = [argument for word in (program.name, *words) for argument in ("--argv", word)]
    artifact = system.issue(program, *argv, *given)
    arguments = ["--artifact", str(artifact), "--argv0", program.name, "--", str(program), *words]
    if not cheat:
        command = [str(Path(sys.executable).with_name("egs")), "run", *arguments]
    else:
        code = (
            f"import os, sys\nfrom egs_kernel import launch\n{cheat}\nsys.exit(launch.main(sys.argv[1:]))\n"
        )
        command = [sys.executable, "-c", code, *arguments]
    if nobody:
        return system.as_nobody(*command)
    return subprocess.run(
        command,
        env=system.instance.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
        cwd="/",
    )


def python(
    system: Running, code: str, constraints: str, *, cheat: str = "", nobody: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run this code by the interpreter; an argument has no line breaks."""
    words = ("-I", "-c", f"exec(bytes.fromhex('{code.encode().hex()}'))")
    return launch(system, PYTHON, words, constraints, cheat=cheat, nobody=nobody)


def refused(system: Running, actions: dict[str, str], constraints: str, before: str = "") -> set[str]:
    """Which of the actions fail for want of a permission; nothing else may go wrong."""
    code = f"{before}\nimport os, socket\ndef attempt(name, action):\n    try: action()\n"
    code += "    except PermissionError: print(name)\n"
    code += "".join(f"attempt({name!r}, lambda: {action})\n" for name, action in actions.items())
    done = python(system, code, constraints)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.splitlines())


# -- files ---------------------------------------------------------------------------------------------


def rooms(folder: Path) -> str:
    for name in ("in", "out", "closed"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(0o777)
        (folder / name / "file").write_text("content")
        (folder / name / "file").chmod(0o666)
    return f'[filesystem]\nbase = "system"\nread = ["{folder}/in"]\nwrite = ["{folder}/out"]\n'


DEGRADED: Final = 'degrade = ["truncate", "device-control"]\n'
ATTEMPTS: Final = {
    "read": "open(F + '/in/file').read()",
    "write": "open(F + '/out/new', 'w').write('x')",
    "read elsewhere": "open(F + '/closed/file').read()",
    "write where it reads": "open(F + '/in/new', 'w').write('x')",
    "write elsewhere": "open(F + '/closed/new', 'w').write('x')",
    "truncate elsewhere": "os.truncate(F + '/closed/file', 0)",
    "list elsewhere": "os.listdir('/root')",
    "rename from elsewhere": "os.rename(F + '/closed/file', F + '/out/file')",
}


@FILES
def test_a_program_reaches_its_files_and_no_others(system: Running) -> None:
    constraints, before = rooms(system.folder), f"F = {str(system.folder)!r}"
    assert refused(system, ATTEMPTS, constraints, before) == set(ATTEMPTS) - {"read", "write"}
    assert refused(system, ATTEMPTS, "", before) == set()


@FILES
def test_it_executes_what_is_below_a_root_and_nothing_else(system: Running) -> None:
    """Its children need an authorization besides; they have one."""
    child = system.copy("/usr/bin/true", "child")
    system.add(system.issue(child, name="child.json"))
    code = f"import subprocess; raise SystemExit(subprocess.run(['{child}']).returncode)"
    closed = python(system, code, rooms(system.folder))
    assert (closed.returncode, "PermissionError" in closed.stderr) == (1, True), closed.stderr
    permitted = python(system, code, rooms(system.folder) + f'execute = ["{child}"]\n')
    assert permitted.returncode == 0, permitted.stderr


@FILES
def test_it_holds_for_who_is_not_root_and_for_what_it_starts(system: Running) -> None:
    code = f"import os\nif os.fork() == 0: open('{system.folder}/closed/file')\nelse: raise SystemExit(os.wait()[1] >> 8)"
    assert python(system, code, rooms(system.folder), nobody=True).returncode == 1
    assert python(system, code, "", nobody=True).returncode == 0


@FILES
def test_a_script_runs_with_the_constraint(system: Running) -> None:
    script = system.folder / "script"
    script.write_text(f"#!{PYTHON} -I\nprint(open('{system.folder}/in/file').read())\n")
    script.chmod(0o755)
    file = system.folder / "constraints.toml"
    file.write_text(rooms(system.folder))
    artifact = system.issue(script, "--argv", str(script), "--constraints", str(file))
    done = system.run("--artifact", str(artifact), str(script))
    assert (done.returncode, done.stdout) == (0, "content\n"), done.stderr


@FILES
@pytest.mark.parametrize("nobody", [False, True])
@pytest.mark.parametrize("more", ["", '[network]\nmode = "none"\n[resources]\nwallSeconds = 60\n'])
def test_a_root_that_is_missing_denies_the_launch_and_is_named(
    system: Running, more: str, *, nobody: bool
) -> None:
    """With `more` it is found while the kernel makes the launcher's namespaces, and there is a cgroup to be taken away again."""
    constraints = f'[filesystem]\nbase = "system"\nwrite = ["/nonexistent/out"]\n{more}'
    missing = python(system, "pass", constraints, nobody=nobody)
    assert (missing.returncode, "[constraint_unenforceable]" in missing.stderr) == (126, True), missing.stderr
    assert "constraints.filesystem.write[0]: /nonexistent/out" in missing.stderr
    system.wait_for_decisions(Reason.CONSTRAINT_UNENFORCEABLE)
    deadline = time.monotonic() + SECONDS
    while list(system.instance.cgroup.folder.glob(f"{PREFIX}*")):
        assert time.monotonic() < deadline, system.log()
        os.sched_yield()


@FILES
def test_a_program_that_cannot_be_loaded_with_its_roots_says_so(system: Running) -> None:
    done = python(system, "pass", '[filesystem]\nread = ["/usr/share"]\n')
    assert (done.returncode, "Permission denied" in done.stderr) == (126, True), done.stderr


@pytest.mark.skipif(ABI >= 5, reason="this kernel restricts all of it")
def test_what_this_kernel_cannot_restrict_denies_the_launch(system: Running) -> None:
    done = python(system, "pass", rooms(system.folder))
    assert (done.returncode, "[constraint_unenforceable]" in done.stderr) == (126, True), done.stderr
    assert "Landlock of version" in done.stderr
    if ABI >= 2:
        assert refused(
            system, ATTEMPTS, rooms(system.folder) + DEGRADED, f"F = {str(system.folder)!r}"
        ) == set(ATTEMPTS) - {
            "read",
            "write",
            "truncate elsewhere",
        }
        assert "consents to truncate and device-control unrestricted" in system.log() or ABI > 2


# -- networks ------------------------------------------------------------------------------------------


@contextmanager
def web() -> Iterator[int]:
    """A web server on loopback; its port."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@PORTS
@pytest.mark.skipif(not CURL.exists(), reason="curl is not installed")
@pytest.mark.parametrize("nobody", [False, True])
def test_curl_reaches_the_ports_that_were_signed(system: Running, *, nobody: bool) -> None:
    with web() as port:
        url = ("-s", "-o", "/dev/null", "--max-time", "10", f"http://127.0.0.1:{port}/")
        cases = {
            "": 0,
            f'[network]\nmode = "ports"\nconnect = [{port}]\n': 0,
            f'[network]\nmode = "ports"\nconnect = [{port ^ 1}]\n': 7,
            '[network]\nmode = "none"\n': 7,
        }
        for constraints, expected in cases.items():
            done = launch(system, CURL, url, constraints, nobody=nobody)
            assert done.returncode == expected, (constraints, done.stderr)


OTHERS: Final = {
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "mptcp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
    "fast open": "socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', PORT))",
    "bind": "socket.create_server(('127.0.0.1', 0))",
    "connect": "socket.create_connection(('127.0.0.1', PORT))",
    "listen": "socket.socket().listen()",
}


@PORTS
def test_what_landlock_does_not_know_is_refused_too(system: Running) -> None:
    with web() as port:
        constraints, before = f'[network]\nmode = "ports"\nconnect = [{port ^ 1}]\n', f"PORT = {port}"
        assert refused(system, OTHERS, constraints, before) == set(OTHERS)
        assert refused(system, OTHERS, "", before) == set()


@PORTS
def test_udp_and_a_port_to_listen_on_where_they_are_allowed(system: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.sendto(b'x', s.getsockname())\n"
        f"socket.create_server(('127.0.0.1', {port}))\n"
    )
    allowed = f'[network]\nmode = "ports"\nbind = [{port}]\nudp = "allowed"\n'
    assert python(system, code, allowed).returncode == 0
    assert python(system, code, f'[network]\nmode = "ports"\nbind = [{port}]\n').returncode == 1


@SCOPES
def test_abstract_sockets_and_signals_stay_within(system: Running) -> None:
    name = f"\0egs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server, subprocess.Popen(["/bin/sleep", "60"]) as other:
        server.bind(name)
        server.listen()
        actions = {
            "signal": f"os.kill({other.pid}, 0)",
            "abstract": f"socket.socket(socket.AF_UNIX).connect({name!r})",
            "own signal": "os.kill(os.getpid(), 0)",
        }
        constraints = (
            '[network]\nmode = "ports"\nudp = "allowed"\nabstract = "own"\n[process]\nsignals = "own"\n'
        )
        assert refused(system, actions, constraints) == {"signal", "abstract"}
        assert refused(system, actions, '[process]\nsignals = "own"\n') == {"signal"}
        assert refused(system, actions, "") == set()
        other.kill()


@SCOPES
@pytest.mark.parametrize("nobody", [False, True])
def test_all_words_together(system: Running, *, nobody: bool) -> None:
    constraints = (
        rooms(system.folder)
        + '[network]\nmode = "none"\n[syscalls]\nprofile = "default"\n[resources]\nopenFiles = 64\nwallSeconds = 60\n'
        + '[process]\nnewPrivileges = "refused"\ncapabilities = "none"\numask = "0077"\nsignals = "own"\n'
    )
    code = "print([l.split()[1] for l in open('/proc/self/status') if l[:5] in ('CapEf', 'CapBn', 'Umask', 'Secco')])"
    readable = constraints.replace("read = [", 'read = ["/proc", ')
    done = python(system, code, readable, nobody=nobody)
    assert done.stdout == f"['0077', '{0:016x}', '{0:016x}', '2', '2']\n", done.stderr


@PORTS
def test_the_record_has_the_execs(system: Running) -> None:
    """What ran did so with an authorization, and under a filter where its network is constrained."""
    with web() as port:
        python(system, "pass", f'[network]\nmode = "ports"\nconnect = [{port}]\n')
    executed = [entry.event for entry in system.entries(Exec) if entry.event.verdict is Verdict.ALLOW]
    assert executed
    assert executed[-1].no_new_privs
    assert executed[-1].seccomp_filters == 1
