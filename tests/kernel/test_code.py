"""Which code a governed program may have on the tier lsm: real mappings, by a real program, under real artifacts.

Every way is tried outside of the scope as well, where it works: what is refused inside is refused by the gate.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

import pytest

from egs_kernel.audit.entries import Code, Exec
from egs_kernel.model import Reason, Verdict
from tests.harness import compile_program
from tests.running import SECONDS, Running, running_on_disk

pytestmark = [pytest.mark.kernel, pytest.mark.lsm, pytest.mark.timeout(600)]

GOT, REFUSED = "got it", "refused"
OF_A_FILE: Final = ("map", "map-shared", "map-writable", "protect", "write-protect", "memfd")
"""Ways to get code out of a file."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Gate, daemon and a trusted key, for all tests of this file."""
    with running_on_disk() as system:
        yield system


@pytest.fixture(scope="module")
def seeker(running: Running) -> Path:
    """tests/programs/get_code.c under an artifact that names nothing else."""
    program = compile_program("get_code", running.folder)
    running.add(running.issue(program))
    return program


@pytest.fixture(scope="module")
def library(running: Running) -> Path:
    """A library that nobody names."""
    return make_library(running.folder / "unnamed.so")


def make_library(path: Path, answer: int = 42) -> Path:
    """A real shared library, which is not executable and appears whole."""
    source, part = path.with_suffix(".c"), path.with_suffix(".part")
    source.write_text(f"int answer(void) {{ return {answer}; }}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", part, source], check=True)
    part.chmod(0o644)
    return part.rename(path)


def seek(running: Running, program: Path, *ways: str, governed: bool = True) -> list[str]:
    """What came of each way."""
    code, said = running.output(program, *ways, governed=governed)
    assert code == 0, (code, said, running.log())
    return said.splitlines()


def own(running: Running, name: str, *options: str) -> Path:
    """The same program under another artifact, with these options of `egs issue`."""
    program = compile_program("get_code", running.folder / name)
    running.add(running.issue(program, *options, name=f"{name}.json"))
    return program


def folder(running: Running, name: str) -> Path:
    """A folder for one test."""
    made = running.folder / name
    made.mkdir(mode=0o755)
    return made


def constraints(running: Running, anonymous: str) -> Path:
    """A file for `egs issue --constraints`."""
    path = running.folder / f"{anonymous}.toml"
    path.write_text(f'[code]\nanonymous = "{anonymous}"\n')
    return path


def system_library() -> Path:
    """A library of the system's, below a trusted root."""
    return next(Path("/usr/lib").rglob("libc.so.6")).resolve()


def test_code_that_nobody_names(running: Running, seeker: Path, library: Path) -> None:
    ways = [*(f"{way}:{library}" for way in OF_A_FILE), "shm"]
    assert seek(running, seeker, *ways, governed=False) == [GOT] * len(ways)
    assert seek(running, seeker, *ways) == [REFUSED] * len(ways)


def test_refused_code_is_in_the_record(running: Running, seeker: Path, library: Path) -> None:
    seek(running, seeker, f"map:{library}")
    entry = running.wait_for(Code, lambda entry: entry.event.name == library.name)
    event = entry.event
    assert event.file is not None
    assert (event.reason, event.enforced, event.scope) == (Reason.CODE_UNTRUSTED, True, "test")
    assert (event.file.inode, event.file.size) == (library.stat().st_ino, library.stat().st_size)
    executed = running.wait_for(Exec, lambda entry: entry.event.execution == event.execution)
    assert executed.event.pid == event.pid
    shown = running.instance.egs("audit", "query", "--type", "code").stdout
    assert f"DENY code_untrusted test: pid {event.pid} execution {event.execution}: {library.name}" in shown
    counted = json.loads(running.instance.egs("status", "--json").stdout)["details"]["decisions"]
    assert any((item["verdict"], item["reason"]) == ("deny", "code_untrusted") for item in counted)


def test_code_of_the_system(running: Running, seeker: Path) -> None:
    path = system_library()
    ways = [f"{way}:{path}" for way in ("map", "map-shared", "protect")]
    assert seek(running, seeker, *ways) == [GOT] * len(ways)


def test_code_below_a_library_root_that_others_can_write(running: Running, seeker: Path) -> None:
    path = system_library()
    copy = path.with_name("libegs-test.so")
    try:
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o666)
        assert seek(running, seeker, f"map:{copy}") == [REFUSED]
        copy.chmod(0o644)
        assert seek(running, seeker, f"map:{copy}") == [GOT]
    finally:
        copy.unlink()


def test_a_library_root_that_is_added_and_taken_away(running: Running, seeker: Path) -> None:
    """By `egs reload`: nothing is loaded anew."""
    with TemporaryDirectory(dir="/opt") as name:
        root = Path(name)
        root.chmod(0o755)
        mine = make_library(root / "mine.so")
        assert seek(running, seeker, f"map:{mine}") == [REFUSED]
        running.instance.configure(more=f'library_roots = ["/usr/lib", "{root}"]')
        running.instance.egs("reload")
        assert seek(running, seeker, f"map:{mine}") == [GOT]
        running.instance.configure()
        running.instance.egs("reload")
        assert seek(running, seeker, f"map:{mine}") == [REFUSED]


def test_code_that_the_artifact_names(running: Running, seeker: Path) -> None:
    place = folder(running, "named")
    mine = make_library(place / "mine.so")
    program = own(running, place.name, "--library", str(mine))
    assert seek(running, program, f"map:{mine}", f"protect:{mine}", f"map:{program}") == [GOT] * 3
    assert seek(running, seeker, f"map:{mine}") == [REFUSED]  # it is named for another program


def test_named_code_that_changed_is_no_program_s_code_any_more(running: Running) -> None:
    place = folder(running, "changed")
    mine = make_library(place / "mine.so")
    program = own(running, place.name, "--library", str(mine))
    with waiting(running, program, f"map:{mine}") as process:
        with mine.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"!")
        assert answer_of(process) == REFUSED
    running.wait_for_decisions(Reason.DIGEST_MISMATCH)
    assert running.output(program, f"map:{mine}")[0] == 126


def test_named_code_that_is_opened_for_writing_is_measured_again(running: Running) -> None:
    place = folder(running, "opened")
    mine = make_library(place / "mine.so")
    program = own(running, place.name, "--library", str(mine))
    with waiting(running, program, f"map:{mine}") as process, mine.open("ab"):
        assert answer_of(process) == REFUSED
    running.wait_for(Code, lambda entry: entry.event.reason is Reason.FILE_OPENED)
    until(lambda: running.output(program, f"map:{mine}") == (0, f"{GOT}\n"))


def test_a_program_that_is_opened_for_writing_is_measured_again(running: Running) -> None:
    place = folder(running, "reopened")
    program = own(running, place.name)
    assert seek(running, program) == []
    with program.open("ab"):
        pass
    until(lambda: running.output(program)[0] == 0)


def test_anonymous_code(running: Running, seeker: Path) -> None:
    ways = ["anonymous", "write-anonymous"]
    assert seek(running, seeker, *ways, f"map-writable:{system_library()}") == [GOT] * 3
    place = folder(running, "refusing")
    program = own(running, place.name, "--constraints", str(constraints(running, "refused")))
    assert seek(running, program, *ways, governed=False) == [GOT] * 2
    assert seek(running, program, *ways) == [REFUSED] * 2
    changed = [f"{way}:{system_library()}" for way in ("map-writable", "write-protect")]
    assert seek(running, program, *changed) == [REFUSED] * 2
    assert seek(running, program, f"map:{system_library()}") == [GOT]
    refused = running.wait_for(Code, lambda entry: entry.event.reason is Reason.CODE_ANONYMOUS)
    assert refused.event.file is None


def test_the_heap_of_another_personality_takes_a_profile(running: Running) -> None:
    place = folder(running, "heap")
    alone, both = constraints(running, "refused"), place / "both.toml"
    program = own(running, place.name, "--constraints", str(alone))
    assert seek(running, program, "heap") == [GOT]
    both.write_text(f'{alone.read_text()}[syscalls]\nprofile = "default"\n')
    artifact = running.issue(program, "--constraints", str(both), name="both.json")
    done = running.run("--artifact", str(artifact), str(program), "heap")
    assert (done.returncode, done.stdout) == (0, f"{REFUSED}\n"), done


def test_anonymous_code_that_is_allowed(running: Running) -> None:
    place = folder(running, "allowing")
    program = own(running, place.name, "--constraints", str(constraints(running, "allowed")))
    assert seek(running, program, "anonymous", "write-anonymous") == [GOT] * 2


def test_what_is_refused_stays_refused_in_a_child(running: Running, library: Path) -> None:
    """A program that forks gives its child no more than it has."""
    python = Path("/usr/bin/python3").resolve()
    code = (
        "import mmap, os, sys; "
        "file = os.open(sys.argv[1], os.O_RDONLY); "
        "child = os.fork(); "
        "ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0; "
        "child or mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC); "
        "sys.exit(ended)"
    )
    argv = [str(python), "-I", "-S", "-c", code, str(library)]
    bound = [word for argument in argv for word in ("--argv", argument)]
    running.add(running.issue(python, *bound, "--script", str(library), name="child.json"))
    assert running.output(*argv, governed=False)[0] == 0
    assert running.output(*argv)[0] == 0  # it is named, whatever for
    other = make_library(running.folder / "other.so")
    argv[-1] = str(other)
    other.rename(
        hidden := other.with_suffix(".hidden")
    )  # egs issue does not sign for a file that is not named
    bound = [word for argument in argv for word in ("--argv", argument)]
    running.add(running.issue(python, *bound, name="child-other.json"))
    hidden.rename(other)
    assert running.output(*argv, governed=False)[0] == 0
    assert running.output(*argv)[0] == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_library_that_python_loads(running: Running, named: bool) -> None:  # noqa: FBT001 - a parameter of the test
    python = Path("/usr/bin/python3").resolve()
    mine = make_library(folder(running, f"python-{named}") / "mine.so")
    code = f"import ctypes; print(ctypes.CDLL({str(mine)!r}).answer())"
    argv = [str(python), "-I", "-S", "-c", code]
    options = [word for argument in argv for word in ("--argv", argument)]
    options += ["--library", str(mine)] if named else []
    running.add(running.issue(python, *options, name=f"python-{named}.json"))
    assert running.output(*argv, governed=False) == (0, "42\n")
    assert running.output(*argv) == ((0, "42\n") if named else (1, ""))


def test_a_preloaded_library(running: Running) -> None:
    """Refused at the exec, named or not: by the environment."""
    place = folder(running, "preloaded")
    mine = make_library(place / "mine.so")
    program = running.copy("/bin/true", "true")
    running.add(running.issue(program, "--library", str(mine), name="true.json"))
    assert running.output(program)[0] == 0
    assert running.output(program, env={"LD_PRELOAD": str(mine)})[0] != 0
    events = running.wait_for_exec(program, Verdict.KILL)
    assert [entry.event.reason for entry in events] == [Reason.ENVIRONMENT_REFUSED]


def test_a_scope_that_only_observes_refuses_no_code(running: Running, seeker: Path, library: Path) -> None:
    running.instance.configure(mode="observe")
    running.instance.egs("reload")
    try:
        assert seek(running, seeker, f"map:{library}", "shm") == [GOT] * 2
        entry = running.wait_for(Code, lambda entry: not entry.event.enforced)
        assert entry.event.reason is Reason.CODE_UNTRUSTED
    finally:
        running.instance.configure()
        running.instance.egs("reload")
    assert seek(running, seeker, f"map:{library}") == [REFUSED]


@contextmanager
def waiting(running: Running, program: Path, *ways: str) -> Iterator[subprocess.Popen[str]]:
    """The program in the scope, executed and not yet trying."""
    with subprocess.Popen(
        [program, "wait", *ways],
        preexec_fn=running.instance.cgroup.enter,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert pipe(process.stdout).readline() == "waiting\n"
        yield process


def answer_of(process: subprocess.Popen[str]) -> str:
    """What comes of the first way."""
    pipe(process.stdin).write("\n")
    pipe(process.stdin).flush()
    return pipe(process.stdout).readline().strip()


def pipe(file: IO[str] | None) -> IO[str]:
    """A pipe that is there."""
    assert file is not None
    return file


def until(wanted: Callable[[], bool]) -> None:
    """Ask again until it is so; each question is a process of its own, which takes its time."""
    deadline = time.monotonic() + SECONDS
    while not wanted():
        assert time.monotonic() < deadline, "it never became so"
