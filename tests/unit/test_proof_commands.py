"""`egs proof`: a bundle exported from a published log verifies elsewhere, with public keys alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from egs_kernel.audit.logkeys import KEYS, KeyList, LogKey
from egs_kernel.audit.notes import KeyType
from egs_kernel.cli.main import run
from egs_kernel.trust import store
from tests.unit import issuing, proving
from tests.unit.trees import publish, signer

if TYPE_CHECKING:
    from pathlib import Path

LOG = proving.StoryLog()
KEY = str(LOG.tree.key.key)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose record is the story."""
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    state = tmp_path / "var/lib/egs"
    record, keys = state / "record", state / "log-keys"
    record.mkdir(parents=True)
    keys.mkdir()
    publish(record, LOG.tree)
    listed = KeyList(1, LOG.tree.origin, (LogKey(KEY, 0),))
    (keys / KEYS).write_bytes(msgspec.json.encode(listed))
    return state


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    folder = tmp_path / "auditor"
    folder.mkdir()
    store.add(folder, issuing.trusted(issuing.ISSUER))
    return folder


def export(tmp_path: Path, wanted: str) -> Path:
    out = tmp_path / f"{wanted.replace(':', '-')}.proof"
    assert run(["proof", "export", wanted, "--out", str(out)]) == 0
    return out


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["proof", "verify", *arguments, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, answer


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("entry:6", {"ran": True, "verdict": "allow", "execution": "5000000000", "exit_code": None}),
        ("101", {"ran": True, "verdict": "allow", "exit_code": 3}),
        (
            "entry:13",
            {"ran": False, "verdict": "kill", "reason": "no_grant", "artifact": None, "enforced": True},
        ),
        ("entry:18", {"ran": False, "verdict": "deny", "reason": "expired", "execution": None}),
        ("5000000003", {"ran": True, "verdict": "allow"}),
    ],
)
def test_what_is_exported_verifies_without_the_host(
    host: Path,
    trust: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    said: dict[str, Any],
) -> None:
    bundle = export(tmp_path, wanted)
    monkeypatch.setenv("EGS_ROOT", str(tmp_path / "elsewhere"))
    code, answer = verify(capsys, str(bundle), "--trust", str(trust), "--log-key", KEY)
    assert code == 0
    assert {name: answer[name] for name in said} == said
    assert answer["origin"] == LOG.tree.origin
    assert {step["state"] for step in answer["steps"]} <= {"passed", "skipped"}
    assert run(["proof", "verify", str(bundle), "--trust", str(trust), "--log-key", KEY]) == 0
    assert "proven" in capsys.readouterr().out
    del host


def test_a_checkpoint_that_a_witness_cosigned(
    host: Path, trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "cosigned").write_bytes(LOG.checkpoint)
    bundle = export(tmp_path, "101")
    witness = str(proving.WITNESS.key)
    code, answer = verify(capsys, str(bundle), "--trust", str(trust), "--witness", witness)
    assert (code, answer["witnesses"]) == (0, [witness])
    other = str(signer("other.example", 9, KeyType.COSIGNATURE).key)
    code, answer = verify(capsys, str(bundle), "--trust", str(trust), "--witness", other)
    assert (code, answer["error"]["reason"]) == (1, "key_untrusted")
    assert [step["state"] for step in answer["steps"]][:4] == ["passed", "passed", "failed", "unreached"]


def test_what_does_not_verify_names_the_place(
    host: Path, trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tmp_path, "101")
    bundle.write_text(
        bundle.read_text().replace("no_grant", "no_grunt").replace('\\"pid\\":101', '\\"pid\\":999')
    )
    code, answer = verify(capsys, str(bundle), "--trust", str(trust))
    assert code == 1
    assert "entry 10" in answer["error"]["message"]
    assert run(["proof", "verify", str(bundle), "--trust", str(trust)]) == 1
    assert "\N{BALLOT X}  4" in capsys.readouterr().out
    del host


@pytest.mark.usefixtures("host")
def test_what_makes_no_sense(trust: Path, tmp_path: Path) -> None:
    assert (
        run(
            [
                "proof",
                "export",
                proving.ARTIFACTS[next(iter(proving.ARTIFACTS))][0],
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 2
    )
    assert run(["proof", "export", "777777777", "--out", str(tmp_path / "x")]) == 1
    assert run(["proof", "export", "101", "--out", "/nonexistent/x"]) == 2
    assert run(["proof", "verify", "/nonexistent", "--trust", str(trust)]) == 2
    bundle = export(tmp_path, "101")
    assert run(["proof", "verify", str(bundle), "--trust", str(tmp_path / "none")]) == 2
    assert run(["proof", "verify", str(bundle), "--trust", str(trust), "--log-key", "x"]) == 1
