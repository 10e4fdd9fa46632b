"""Lineage and proofs of what a real gate and daemon did, across a restart, told and verified by the real commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.audit.entries import Decision, Exec, Outcome
from egs_kernel.model import Reason, Verdict
from tests.harness import BIN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.running import Running

pytestmark = pytest.mark.kernel


@pytest.fixture
def done(running: Running) -> Running:
    """A launch that executes an authorized child and tries another one, a restart, and a launch that is refused."""
    script = f"{running.folder}/child; {running.folder}/stranger; exit 5"
    shell, child = running.copy("/bin/sh", "native"), running.copy("/bin/true", "child")
    running.copy("/bin/true", "stranger")
    running.add(running.issue(child, name="child.json"))
    words = [word for part in ("native", "-c", script) for word in ("--argv", part)]
    launch = running.issue(shell, *words, name="launch.json")
    ran = running.run("--artifact", str(launch), "--argv0", "native", "--", str(shell), "-c", script)
    assert ran.returncode == 5, ran.stderr
    launched = running.wait_for(Exec, lambda entry: entry.event.filename == str(shell))
    running.wait_for(Outcome, lambda entry: entry.event.execution == launched.event.execution)
    running.stop()
    running.start()
    refused = running.run("--artifact", str(launch), "--argv0", "native", "--", str(shell), "-c", "true")
    assert refused.returncode == 126
    return running


def told(running: Running, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(running.instance.egs(*arguments, "--json").stdout)
    return answer


def number_of(running: Running, kind: type, wanted: Any) -> int:
    return next(
        seq for seq, entry in enumerate(running.record()) if isinstance(entry, kind) and wanted(entry)
    )


def test_a_launch_is_told_and_proven(done: Running, tmp_path: Path) -> None:
    require_lineage(done)
    require_proofs(done, tmp_path)


def require_lineage(done: Running) -> None:
    seq = number_of(done, Exec, lambda entry: entry.event.filename.endswith("/native"))
    (found,) = told(done, "lineage", f"entry:{seq}", "--tree")["executions"]
    assert (found["state"], found["outcome"]["exit_code"]) == ("ended", 5)
    assert found["request"]["peer"]["pid"] == found["decision"]["task"]["pid"] == found["pid"]
    assert found["verification"]["passed"] is True
    assert found["artifact"]["artifact_id"] == found["decision"]["artifact_id"]
    children = {
        item["subject"]["event"]["filename"].rpartition("/")[2]: item for item in found["descendants"]
    }
    assert (children["child"]["state"], children["child"]["decision"]["grant_kind"]) == ("ended", "standing")
    assert (children["stranger"]["state"], children["stranger"]["subject"]["event"]["reason"]) == (
        "refused",
        "no_grant",
    )
    text = done.instance.egs("lineage", str(found["pid"]), "--tree").stdout
    assert text.count("\n") == 1 + len(found["descendants"])


def require_proofs(done: Running, tmp_path: Path) -> None:
    """With a copy of the trust folder and the log's verifier key, on a host that has neither record nor daemon."""
    auditor = tmp_path / "auditor"
    shutil.copytree(done.instance.paths.trust, auditor)
    (key,) = told(done, "audit", "key", "show")["keys"]
    subjects = {
        "launch": number_of(done, Exec, lambda entry: entry.event.filename.endswith("/native")),
        "child": number_of(done, Exec, lambda entry: entry.event.filename.endswith("/child")),
        "stranger": number_of(done, Exec, lambda entry: entry.event.reason is Reason.NO_GRANT),
        "refused": number_of(
            done,
            Decision,
            lambda entry: entry.reason is Reason.ARGV_MISMATCH and entry.verdict is Verdict.DENY,
        ),
    }
    done.stop()
    said = {}
    for name, seq in subjects.items():
        bundle = tmp_path / f"{name}.json"
        done.instance.egs("proof", "export", f"entry:{seq}", "--out", str(bundle))
        command = [
            str(BIN / "egs"),
            "proof",
            "verify",
            str(bundle),
            "--trust",
            str(auditor),
            "--log-key",
            key["key"],
        ]
        verified = subprocess.run(
            [*command, "--json"],
            env={"PATH": "/usr/bin:/bin", "EGS_ROOT": str(tmp_path / "nothing")},
            capture_output=True,
            text=True,
            check=True,
        )
        said[name] = json.loads(verified.stdout)
        bundle.write_bytes(
            bundle.read_bytes().replace(b"tracepoint", b"tracepoinT").replace(b'"lsm"', b'"lsM"')
        )
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert (said["launch"]["ran"], said["launch"]["exit_code"], said["launch"]["verdict"]) == (
        True,
        5,
        "allow",
    )
    assert (said["child"]["ran"], said["child"]["exit_code"]) == (True, 0)
    assert said["child"]["artifact"] != said["launch"]["artifact"]
    assert (said["stranger"]["ran"], said["stranger"]["reason"]) == (False, "no_grant")
    assert (said["refused"]["ran"], said["refused"]["reason"]) == (False, "argv_mismatch")
