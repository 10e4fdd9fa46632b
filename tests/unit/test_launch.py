"""The launcher without a daemon: its command line, what it costs to start, what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel import apply, launch
from egs_kernel.artifact.envelope import MAX_ARTIFACT
from egs_kernel.constraints.steps import ORDER, NoNewPrivs, Seccomp
from egs_kernel.daemon import protocol
from egs_kernel.paths import Paths
from tests.harness import BIN

OURS = {"egs_kernel", "egs_kernel.cli", "egs_kernel.launch"}
IMPORT_BUDGET = 8
"""Modules that a launch may import beside Python's own start; `json` alone would be 20."""


@pytest.mark.parametrize(
    ("arguments", "name", "argv", "artifact"),
    [
        (["ls"], "ls", ["ls"], None),
        (["--", "ls", "-l"], "ls", ["ls", "-l"], None),
        (["ls", "--", "-l"], "ls", ["ls", "--", "-l"], None),
        (["--artifact", "a.json", "--", "ls"], "ls", ["ls"], "a.json"),
        (["--artifact=a.json", "ls", "--artifact"], "ls", ["ls", "--artifact"], "a.json"),
        (["--argv0", "-sh", "--", "/bin/sh"], "/bin/sh", ["-sh"], None),
        (["--argv0=", "ls"], "ls", [""], None),
        (["--", "--help"], "--help", ["--help"], None),
    ],
)
def test_command_lines(arguments: list[str], name: str, argv: list[str], artifact: str | None) -> None:
    command = launch.parse(arguments)
    assert command is not None
    assert (command.name, command.argv, command.artifact) == (name, argv, artifact)


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["--artifact", "x", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert launch.parse(arguments) is None


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--artifact"], ["--artifact", "a"], ["-x", "ls"], ["--arti", "a", "ls"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(launch.Stop) as stop:
        launch.parse(arguments)
    assert stop.value.code == launch.EXIT_USAGE


def test_programs_are_found_as_execvp_finds_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "tool").touch()
    (second / "tool").chmod(0o755)
    search = f"{tmp_path}/missing:{first}:{second}"
    assert launch.find_program("tool", search) == str(second / "tool")
    assert launch.find_program("./tool", search) == "./tool"
    for name, path, code in (("tool", str(first), 126), ("absent", search, 127)):
        with pytest.raises(launch.Stop) as stop:
            launch.find_program(name, path)
        assert stop.value.code == code


def test_an_argument_that_is_not_utf8() -> None:
    with pytest.raises(launch.Stop) as stop:
        launch.request("/bin/true", ["true", os.fsdecode(b"\xff")], None)
    assert stop.value.code == launch.EXIT_REFUSED


def test_arguments_that_fit_into_no_frame() -> None:
    with pytest.raises(launch.Stop) as stop:
        launch.request("/bin/true", ["x" * launch.MAX_FRAME], None)
    assert stop.value.code == launch.EXIT_REFUSED


def test_it_knows_where_the_daemon_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (None, "/srv/egs", "relative"):
        monkeypatch.delenv("EGS_ROOT", raising=False)
        if root is not None:
            monkeypatch.setenv("EGS_ROOT", root)
        assert launch.socket_path(os.environb) == str(Paths.from_environment().socket)
    assert launch.MAX_ARTIFACT == MAX_ARTIFACT


@given(st.text(), st.text(min_size=1), st.text())
def test_texts_of_answers_are_read_without_json(message: str, reason: str, next_step: str) -> None:
    answer = msgspec.json.encode(protocol.Failure(reason=reason, message=message, next_step=next_step))
    assert launch.text_of(answer, "message") == message
    assert launch.text_of(answer, "reason") == reason
    assert launch.text_of(answer, "next_step") == next_step
    assert launch.text_of(answer, "absent") == ""


def test_the_daemons_words_are_the_launchers() -> None:
    assert msgspec.json.encode(protocol.Go()) == launch._GO
    assert protocol.decode_request(launch._READY) == protocol.ReadyRequest()
    assert msgspec.json.encode(protocol.Constrain(steps=())).startswith(launch._CONSTRAIN)


def test_every_step_has_its_module() -> None:
    names = {kind.__struct_config__.tag for kind in ORDER}
    assert names == set(apply.MODULES)
    assert names == {path.stem for path in Path(apply.__file__).parent.glob("*.py")} - {"__init__", "libc"}


def test_steps_are_read_without_json() -> None:
    steps = (NoNewPrivs(), Seccomp(filter=b"\0\xff"))
    content = msgspec.json.encode(protocol.Constrain(steps=steps))
    assert apply.decode(content) == msgspec.json.decode(content)


def test_a_step_that_is_unknown_stops_before_the_first_one() -> None:
    with pytest.raises(apply.UnknownStepError):
        apply.apply(b'{"type":"constrain","steps":[{"step":"no_new_privs"},{"step":"__init__"}]}')
    assert "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()


def test_an_answer_of_another_protocol_is_no_refusal() -> None:
    assert launch._refusal(b'{"type":"done"}').code == launch.EXIT_UNREACHABLE


def run(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "egs"), "run", *arguments],
        env=os.environ | {"EGS_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_exit_codes_without_a_daemon(tmp_path: Path) -> None:
    assert run("--help", root=tmp_path).returncode == 0
    assert run("/bin/true", root=tmp_path).returncode == launch.EXIT_UNREACHABLE
    assert run("/nonexistent", root=tmp_path).returncode == launch.EXIT_NOT_FOUND
    assert run("--artifact", "/nonexistent", "/bin/true", root=tmp_path).returncode == launch.EXIT_USAGE
    large = tmp_path / "large.json"
    large.write_bytes(b"x" * (MAX_ARTIFACT + 1))
    done = run("--artifact", str(large), "/bin/true", root=tmp_path)
    assert (done.returncode, "artifact_too_large" in done.stderr) == (launch.EXIT_REFUSED, True)


def test_a_launch_imports_next_to_nothing(tmp_path: Path) -> None:
    """Counted up to the point where the daemon is asked."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "sys.argv = ['egs', 'run', '/bin/true']\n"
        "from egs_kernel.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 4, end.code\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"EGS_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split())
    assert imported >= OURS
    assert len(imported - OURS) <= IMPORT_BUDGET, imported
    assert not imported & {"os", "json", "re", "socket", "enum", "typing", "argparse", "msgspec", "ctypes"}


@pytest.mark.parametrize("options", ["-I", "-IS"])
def test_the_start_script_imports_nothing_else(tmp_path: Path, options: str) -> None:
    """The one that pip generates would import `re`. With -S not even what is installed beside us is looked for."""
    script = tmp_path / "egs"
    script.write_text(f"#!{sys.executable} {options}v\n{(BIN / 'egs').read_text().partition(chr(10))[2]}")
    script.chmod(0o755)
    done = subprocess.run(
        [str(script), "run", "/bin/true"],
        env=os.environ | {"EGS_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == launch.EXIT_UNREACHABLE, done.stderr
    imported = {line.split()[1].strip("'") for line in done.stderr.splitlines() if line.startswith("import ")}
    assert imported >= OURS
    assert not imported & {"re", "json", "typing"}
    assert ("site" in imported) == (options == "-I")


def test_other_commands_find_what_is_installed(tmp_path: Path) -> None:
    script = tmp_path / "egs"
    script.write_text(f"#!{sys.executable} -IS\n{(BIN / 'egs').read_text().partition(chr(10))[2]}")
    script.chmod(0o755)
    done = subprocess.run(
        [str(script), "config", "check", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "usage: egs config check" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"payload":"eyJjb25zdHJhaW50cyI6e319"}', True),
        (b'{"payload":"e30="}', False),
        (b'{"payload":"e"}', False),
        (b'{"payload":"\\ud800"}', False),
        (b"no JSON", False),
        (b"\xff", False),
    ],
)
def test_whether_steps_are_likely_to_come(content: bytes, expected: bool) -> None:  # noqa: FBT001
    assert launch.constrains(content) is expected
