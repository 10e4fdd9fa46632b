"""`egs revocations issue|sign|show`, `egs verify --revocations` and `egs baseline`, as scripts see them."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.revocations import LIST_LIMIT, PAYLOAD_TYPE
from egs_kernel.checks.revocation import authenticate_list
from egs_kernel.errors import Refused
from tests.unit.issuing import ISSUER, NOW
from tests.unit.test_cli_artifact import TRUE, Egs
from tests.unit.test_revocations import TRUST

ID, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Egs:
    """The command, an EGS_ROOT, an issuer's key `a` and a revoker's key `r`."""
    monkeypatch.setenv("EGS_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(sys, "argv", ["egs"])
    egs = Egs(tmp_path, capsys)
    for name, role in (("a", "issuer"), ("r", "revoker")):
        egs("keys", "generate", "--name", name, "--out", tmp_path / "keys")
        egs("trust", "add", tmp_path / f"keys/{name}.pub", "--role", role, "--scope", "agents")
    return egs


def issue(egs: Egs, *more: object, out: str = "list.json", key: str = "r", code: int = 0) -> Any:
    words = ("revocations", "issue", "--key", egs.key(key), "--out", egs.folder / out, *more)
    return egs.json(*words, code=code) if code == 0 else egs.refused(*words, code=code)


def test_a_list_goes_on_from_the_one_before(command: Egs) -> None:
    artifact = command.issue()
    identifier = command.json("show", artifact)["id"]
    first = issue(command, "--scope", "agents", "--revoke", artifact, "--revoke", f"host:{'h'}")
    assert (first["number"], first["scope"]) == (1, "agents")
    assert set(first["revoked"]) == {"artifact", "host"}
    assert list(first["revoked"]["artifact"]) == [identifier]
    more = (
        "--revoke",
        f"key:{command.folder / 'keys/a.pub'}",
        "--revoke",
        f"subject:{TRUE}",
        "--drop",
        "host:h",
    )
    second = issue(
        command, "--after", command.folder / "list.json", *more, "--revoke", f"policy:{ID}", out="two.json"
    )
    assert second["number"] == 2
    assert set(second["revoked"]) == {"artifact", "key", "subject", "policy"}
    assert second["revoked"]["artifact"] == first["revoked"]["artifact"]  # since when it was revoked first
    shown = command("revocations", "show", command.folder / "two.json")
    assert "number  2 of scope agents, 4 things" in shown
    assert identifier in shown
    assert command.json("revocations", "show", command.folder / "two.json")["digest"] == second["digest"]


def test_others_sign_it_as_well(command: Egs) -> None:
    issue(command, "--scope", "agents")
    path = command.folder / "list.json"
    signed = command.json("revocations", "sign", path, "--key", command.key("a"))
    assert len(signed["keyids"]) == 2
    assert command.refused("revocations", "sign", path, "--key", command.key("a"), code=2) == "usage"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--scope", "Agents"),
        ("--scope", "agents", "--number", "-1"),
        ("--scope", "agents", "--revoke", "policy:abc"),
        ("--scope", "agents", "--revoke", "host:a\tb"),
        ("--scope", "agents", "--drop", ID),
        ("--scope", "agents", "--valid-for", "soon"),
        ("--scope", "agents", "--after", "/not/there"),
        ("--scope", "agents", "--revoke", "key:/not/there"),
        ("--scope", "agents", "--revoke", "/not/there"),
    ],
    ids=str,
)
def test_what_cannot_be_issued_is_said_in_words(command: Egs, words: tuple[str, ...]) -> None:
    assert issue(command, *words, code=2) in {"usage", "not_found"}
    assert not (command.folder / "list.json").exists()


def test_a_number_does_not_fall_and_a_scope_does_not_change(command: Egs) -> None:
    issue(command, "--scope", "agents", "--number", "7")
    before = ("--after", command.folder / "list.json")
    assert issue(command, *before, "--number", "7", out="x.json", code=2) == "usage"
    assert issue(command, *before, "--scope", "ci", out="x.json", code=2) == "usage"
    assert issue(command, *before, out="x.json")["number"] == 8


def test_whoever_verifies_elsewhere_names_the_lists(command: Egs) -> None:
    artifact = command.issue()
    path = command.folder / "list.json"
    issue(command, "--scope", "agents", "--revoke", OTHER)
    verify = ("verify", artifact, "--revocations", path)
    (step,) = [step for step in command.json(*verify)["steps"] if step["number"] == 13]
    assert (step["state"], step["note"]) == ("passed", "by the lists that were named")
    assert command.refused(*verify, "--at", "2030-01-01T00:00:00Z") == "expired"
    issue(command, "--scope", "agents", "--number", "2", "--revoke", artifact)
    assert command.refused(*verify) == "revoked"
    issue(command, "--scope", "agents", "--number", "3", "--revoke", f"key:{command.folder / 'keys/a.pub'}")
    assert command.refused(*verify) == "revoked"
    issue(command, "--scope", "agents", "--number", "4", key="a")
    assert command.refused(*verify) == "key_role_mismatch"
    path.write_bytes(b"{}")
    assert command.refused(*verify) == "artifact_malformed"
    path.unlink()
    assert command.refused(*verify, code=2) == "not_found"


def test_a_list_of_another_scope_says_nothing(command: Egs) -> None:
    command("trust", "add", command.folder / "keys/o.pub", "--role", "revoker", "--scope", "ci", code=2)
    command("keys", "generate", "--name", "o", "--out", command.folder / "keys")
    command("trust", "add", command.folder / "keys/o.pub", "--role", "revoker", "--scope", "ci")
    issue(command, "--scope", "ci", key="o")
    assert (
        command.refused("verify", command.issue(), "--revocations", command.folder / "list.json", code=2)
        == "usage"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = {
    "_type": "urn:egs-001:revocation-list:v1",
    "scope": "agents",
    "number": 7,
    "issuedAt": "2026-11-23T14:00:00Z",
    "nextUpdate": "2026-11-24T14:00:00Z",
    "revoked": {},
}


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON))
def test_whatever_is_signed_is_a_list_or_refused_in_words(changes: bytes | dict[str, Any]) -> None:
    payload = (
        changes
        if isinstance(changes, bytes)
        else json.dumps(FIELDS | changes, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            errors="replace"
        )
    )
    with contextlib.suppress(Refused):  # nothing else may come of it
        assert authenticate_list(sign(payload, [ISSUER], PAYLOAD_TYPE, LIST_LIMIT), TRUST, NOW).content.number


@pytest.mark.parametrize("words", [("show",), ("issue",), ("diff",), ("propose", "--after")], ids=str)
def test_what_is_no_proposal_is_said_in_words(command: Egs, words: tuple[str, ...]) -> None:
    bad = command.folder / "bad.toml"
    bad.write_text("format = 2\n")
    more: dict[str, tuple[object, ...]] = {
        "show": (),
        "issue": ("--key", command.key("a"), "--out", command.folder / "signed"),
        "diff": (bad,),
        "propose": ("--out", command.folder / "new.toml"),
    }
    assert command.refused("baseline", *words, bad, *more[words[0]], code=2) == "proposal_invalid"
    missing = command.folder / "missing.toml"
    assert command.refused("baseline", *words, missing, *more[words[0]], code=2) == "not_found"
    assert not (command.folder / "signed").exists()
