"""`egs baseline`, with the real gate: observe a scope, propose, sign, enforce: exactly what was observed runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from egs_kernel.audit.entries import Exec
from egs_kernel.model import Reason
from tests.harness import PATIENCE
from tests.refusals import REFUSED, refusal

if TYPE_CHECKING:
    from tests.running import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(int(120 * PATIENCE))]
PYTHON: Final = "/usr/bin/python3"


def ran(running: Running, *command: str) -> bool:
    """Whether it runs in the scope."""
    return running.inside(*command) == 0


def test_exactly_what_was_observed_runs(running: Running) -> None:
    instance, folder = running.instance, running.folder
    script = folder / "job.py"
    script.write_text("print('done')\n")
    native = running.copy("/bin/true", "native")
    starter = folder / "starter"
    starter.write_text(f"#!/bin/sh\nexec {native}\n")
    starter.chmod(0o755)
    instance.configure(mode="observe")
    instance.egs("reload")
    commands = [
        (str(native), "any", "arguments"),
        ("/usr/bin/sha256sum", "--version"),
        (PYTHON, str(script)),
        (PYTHON, "-c", "print(1)"),
        (str(starter),),
    ]
    for command in commands:
        assert ran(running, *command), command
    assert running.inside(PYTHON, "job.py") != 0  # by a relative path, from a folder where there is none
    running.wait_for(Exec, lambda entry: entry.event.argv[1:] == ("job.py",))

    out = folder / "proposal.toml"
    proposed = json.loads(
        instance.egs("baseline", "propose", "--scope", "test", "--out", str(out), "--json").stdout
    )
    packages = {package["name"]: package for package in proposed["package"]}
    assert {"coreutils", "-"} <= packages.keys()
    assert packages["coreutils"]["version"]
    (left_out,) = proposed["left_out"]
    assert left_out["argv"] == [PYTHON, "job.py"]
    assert "absolute path" in left_out["why"]
    shown = instance.egs("baseline", "show", str(out)).stdout
    assert str(native) in shown
    assert "Left out: 1" in shown

    artifacts = folder / "signed"
    issued = json.loads(
        instance.egs(
            *("baseline", "issue", str(out), "--key", str(folder / "issuer.key")),
            *("--out", str(artifacts), "--json"),
        ).stdout
    )["artifacts"]
    assert len(issued) == 5
    for artifact in issued:
        running.add(folder / artifact["file"])
    instance.configure()
    instance.egs("reload")
    for command in commands:
        assert ran(running, *command), (command, running.artifacts())
    others = [
        ("/bin/false",),
        (PYTHON, "-c", "print(2)"),
        (PYTHON, str(script), "more"),
        (PYTHON, "job.py"),
    ]
    mismatch = refusal(Reason.ARGV_MISMATCH).code
    for command in others:
        assert running.inside(*command) in {REFUSED.code, mismatch}, command


def test_an_upgrade_proposes_the_difference(running: Running) -> None:
    instance, folder = running.instance, running.folder
    native = running.copy("/bin/true", "native")
    before, after = folder / "before.toml", folder / "after.toml"
    instance.configure(mode="observe")
    instance.egs("reload")
    assert ran(running, str(native))
    assert ran(running, "/usr/bin/sha256sum", "--version")
    running.wait_for(Exec, lambda entry: entry.event.filename == "/usr/bin/sha256sum")
    instance.egs("baseline", "propose", "--scope", "test", "--out", str(before))
    native.write_bytes(b"".join((native.read_bytes(), b"changed")))
    instance.egs("baseline", "propose", "--after", str(before), "--not-observed", "--out", str(after))
    difference = json.loads(instance.egs("baseline", "diff", str(before), str(after), "--json").stdout)
    # Nobody upgraded it by a package: it is not proposed any more, and said so.
    assert [(change["kind"], change["program"]["path"]) for change in difference["changes"]] == [
        ("removed", str(native))
    ]
    assert "no package says that it should" in instance.egs("baseline", "show", str(after)).stdout
    key = str(folder / "issuer.key")
    refused = instance.egs(
        "baseline", "issue", str(before), "--key", key, "--out", str(folder / "signed"), check=False
    )
    assert (refused.returncode, "[digest_mismatch]" in refused.stderr) == (1, True)
    assert not (folder / "signed").exists()  # all of them, or none
