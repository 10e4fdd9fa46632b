"""Scripts from `egs issue` to their exec: on both tiers what the kernel executes is their interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.audit.entries import Exec
from egs_kernel.gate.pins import Gate
from egs_kernel.model import GrantKind, Reason, Verdict
from tests.running import Running, running_on_disk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Gate, daemon and a trusted key, for all tests of this file."""
    with running_on_disk() as system:
        yield system


def script(running: Running, name: str, line: str = "#!/bin/sh -eu") -> Path:
    """A script that says its arguments; it appears whole."""
    path, part = running.folder / name, running.folder / f".{name}.part"
    part.write_text(f'{line}\necho "said: $*"\n')
    part.chmod(0o755)
    return part.rename(path)


def issue(running: Running, path: Path, *arguments: str) -> Path:
    """An artifact for a script with these arguments."""
    argv = [word for argument in (str(path), *arguments) for word in ("--argv", argument)]
    return running.issue(path, *argv, name=f"{path.name}.json")


def test_a_standing_script(running: Running) -> None:
    path = script(running, "standing")
    assert running.output(path, "now")[0] != 0
    artifact_id = running.add(issue(running, path, "now"))
    assert running.output(path, "now") == (0, "said: now\n")
    assert running.output(path, "later")[0] != 0
    event = running.wait_for(
        Exec, lambda entry: entry.event.filename == str(path) and entry.event.verdict is Verdict.ALLOW
    ).event
    assert (event.artifact_id, event.argv) == (artifact_id, ("/bin/sh", "-eu", str(path), "now"))


def test_a_launched_script(running: Running) -> None:
    path = script(running, "launched")
    done = running.run("--artifact", str(issue(running, path, "now")), str(path), "now")
    assert (done.returncode, done.stdout) == (0, "said: now\n"), done.stderr
    event = running.wait_for(
        Exec, lambda entry: entry.event.filename == str(path) and entry.event.verdict is Verdict.ALLOW
    ).event
    assert event.grant_kind is GrantKind.ARMED


def test_a_launched_script_with_other_arguments(running: Running) -> None:
    path = script(running, "other-arguments")
    done = running.run("--artifact", str(issue(running, path, "now")), str(path), "later")
    assert (done.returncode, "[argv_mismatch]" in done.stderr) == (126, True)


def test_a_launched_script_that_changed(running: Running) -> None:
    path = script(running, "changed")
    artifact = issue(running, path)
    path.write_text("#!/bin/sh -eu\necho evil\n")
    done = running.run("--artifact", str(artifact), str(path))
    assert (done.returncode, "[digest_mismatch]" in done.stderr) == (126, True)


def test_a_script_whose_first_line_is_nobody_s(running: Running) -> None:
    path = script(running, "unbound")
    artifact = issue(running, path)
    path.write_text("#!sh\n")
    done = running.run("--artifact", str(artifact), str(path))
    assert (done.returncode, "[program_unbound]" in done.stderr) == (126, True)


def unnamed(running: Running, name: str) -> tuple[Path, Path]:
    """A script, and an artifact for exactly its command line that does not name it: signed before it was there."""
    path = running.folder / name
    shell = Path("/bin/sh").resolve()
    argv = [word for argument in ("/bin/sh", "-eu", str(path)) for word in ("--argv", argument)]
    artifact = running.issue(shell, *argv, name=f"{name}.json")
    return script(running, name), artifact


@pytest.mark.lsm
def test_a_script_that_nobody_names(running: Running) -> None:
    path, artifact = unnamed(running, "unnamed")
    running.add(artifact)
    assert running.output(path, governed=False) == (0, "said: \n")
    assert running.output(path) == (126, "")
    (refused,) = running.wait_for_exec(path, Verdict.DENY)
    assert refused.event.reason is Reason.SCRIPT_UNAUTHORIZED
    assert (refused.event.argv, refused.event.execution) == ((), 0)


@pytest.mark.lsm
def test_a_launch_that_the_gate_refuses(running: Running) -> None:
    """The launcher lives on after EPERM, and says why; nothing stays armed."""
    path, artifact = unnamed(running, "refused")
    done = running.run("--artifact", str(artifact), str(path))
    assert (done.returncode, done.stdout) == (126, "")
    assert "refused: the gate refused the exec [script_unauthorized]" in done.stderr
    gate = Gate.open(running.instance.paths.pins)
    assert gate.armed() == {}
    gate.close()
    (refused,) = running.wait_for_exec(path, Verdict.DENY)
    assert (refused.event.grant_kind, refused.event.uid) == (GrantKind.ARMED, 0)
    shown = running.instance.egs("audit", "query", "--type", "exec", "--verdict", "deny").stdout
    assert "DENY script_unauthorized test: pid" in shown


@pytest.mark.lsm
def test_a_script_of_a_script(running: Running) -> None:
    inner = script(running, "inner")
    outer = script(running, "outer", f"#!{inner}")
    argv = ("--argv", str(inner), "--argv", str(outer))
    running.add(running.issue(inner, *argv, "--script", str(outer), name="inner.json"))
    assert running.output(outer, governed=False) == (0, f"said: {outer}\n")
    assert running.output(outer) == (126, "")
