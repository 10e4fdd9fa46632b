"""`egs policy`: what is told of good sets and of bad ones."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.cli.main import run
from egs_kernel.policy.manifest import SET_LIMIT

QUESTION = """
scope = "agents"
now = "2026-11-23T14:00:00Z"
valid_seconds = 600
risk = "high"
purpose = "migrate"
argv = ["git", "gc"]
who = { account = "egs-agent" }
host = { id = "host-1" }
program = { path = "/usr/bin/git", package = "git", digest = "1111111111111111111111111111111111111111111111111111111111111111" }
"""


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    assert run(["policy", "starters", "ai-agent", "--out", str(tmp_path / "agents")]) == 0
    return tmp_path / "agents"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert run(["keys", "generate", "--name", "policy", "--out", str(tmp_path)]) == 0
    return tmp_path / "policy.key"


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(["policy", words[0], "--json", *words[1:]]) == code
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> tuple[str, str]:
    found = told(capsys, *words, code=code)["error"]
    assert found["next_step"]
    return found["reason"], found["message"]


def test_the_starters_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = told(capsys, "starters")
    assert [item["name"] for item in listed] == ["ai-agent", "break-glass", "ci-runner", "regulated-batch"]
    assert all(item["description"] for item in listed)


def test_a_starter_is_copied_once(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (agents / "tests/agents.toml").is_file()
    assert error(capsys, "starters", "ai-agent", "--out", str(agents))[0] == "usage"
    assert error(capsys, "starters", "nothing", "--out", str(agents / "x"))[0] == "not_found"
    assert error(capsys, "starters", "ai-agent")[0] == "usage"


def test_from_a_folder_to_a_signed_set(agents: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "test", str(agents)) == told(capsys, "test", str(agents))
    checked = told(capsys, "check", str(agents))
    out = agents.parent / "agents.json"
    signed = told(capsys, "sign", str(agents), "--key", str(key), "--out", str(out))
    shown = told(capsys, "show", str(out))
    assert (shown["digest"], shown["signed_by"]) == (checked["digest"], signed["signed_by"])
    assert shown["policies"] == sorted(policy["id"] for policy in checked["policies"])

    run(["keys", "generate", "--name", "second", "--out", str(agents.parent)])
    told(capsys, "sign", str(out), "--key", str(agents.parent / "second.key"))
    assert len(told(capsys, "show", str(out))["signed_by"]) == 2
    assert told(capsys, "show", str(out))["digest"] == checked["digest"]


def test_a_set_whose_tests_fail_is_not_signed(
    agents: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = agents / "agents.cedar"
    file.write_text(file.read_text().replace("> 3600", "> 60"))
    answer = told(capsys, "test", str(agents), code=1)
    assert answer["failed"] == 8
    failed = next(test for test in answer["tests"] if not test["passed"])
    assert failed["problems"][0] == "expected permit, the set says deny: agent-short-lived"
    out = agents.parent / "agents.json"
    assert (
        error(capsys, "sign", str(agents), "--key", str(key), "--out", str(out), code=1)[0]
        == "policy_invalid"
    )
    assert not out.exists()


def test_a_policy_that_no_test_decides_is_named(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (agents / "agents.cedar").open("a") as file:
        file.write('@id("idle") forbid(principal == User::"nobody", action, resource);\n')
    assert told(capsys, "test", str(agents))["untested"] == ["idle"]


def test_an_intent_is_explained(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intent = agents.parent / "intent.toml"
    intent.write_text(QUESTION)
    answer = told(capsys, "explain", str(intent), "--set", str(agents), code=1)
    assert (answer["effect"], answer["determining"], answer["approvals_needed"]) == (
        "deny",
        ["agent-high-risk"],
        1,
    )
    assert answer["advice"] == ["What is of high risk needs a purpose, and somebody's approval."]
    (request,) = answer["requests"]
    assert (request["principal"], request["action"]) == ('Agent::"research"', 'Action::"execute"')
    assert "agent-reviewed-code" not in request["considered"]
    intent.write_text(QUESTION + "approvals = 1\n")
    assert told(capsys, "explain", str(intent), "--set", str(agents))["effect"] == "permit"
    capsys.readouterr()
    run(["policy", "explain", str(intent), "--set", str(agents)])
    assert "decides  permit  agent-tools  (agents.cedar:3)" in capsys.readouterr().out


def test_a_command_is_explained_as_it_would_be_asked_here(
    agents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGS_ROOT", str(agents.parent))
    (agents.parent / "etc/egs").mkdir(parents=True)
    (agents.parent / "etc/egs/egs.toml").write_text('host_id = "host-1"\n')
    settings = agents / "policy.toml"
    account = pwd.getpwuid(os.geteuid()).pw_name
    text = settings.read_text().replace('"egs-agent"', f'"{account}"')
    settings.write_text(text.replace('packages = ["git"]', f'paths = ["{Path("/bin/true").resolve()}"]'))
    words = ("explain", "--set", str(agents), "--risk", "high")
    answer = told(capsys, *words, "--", "true", "--now", code=1)
    assert (answer["determining"], answer["requests"][0]["principal"]) == (
        ["agent-high-risk"],
        'Agent::"research"',
    )
    assert answer["approvals_needed"] is None
    assert told(capsys, *words, "--purpose", "why", "true", code=1)["approvals_needed"] == 1
    assert told(capsys, *words[:3], "--", "true", "--now")["effect"] == "permit"
    assert told(capsys, *words[:3], "--", "/bin/false", code=1)["determining"] == []
    assert error(capsys, *words, "--", "/no/such/program")[0] == "not_found"
    settings.write_text(settings.read_text().replace('scopes = ["agents"]', 'scopes = ["*"]'))
    assert "which scope" in error(capsys, *words, "--", "true")[1]
    assert told(capsys, *words[:3], "--scope", "agents", "--", "true")["effect"] == "permit"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("colour = 1\n", "Object contains unknown field `colour`"),
        ("approvals = 99\n", "Expected `int` <= 32 - at `$.approvals`"),
        ("= 1\n", "Invalid statement (at line 11, column 1)"),
        ("standing = 1\n", "Expected `bool`, got `int` - at `$.standing`"),
    ],
)
def test_an_intent_that_is_none(
    agents: Path, capsys: pytest.CaptureFixture[str], more: str, message: str
) -> None:
    intent = agents.parent / "intent.toml"
    intent.write_text(QUESTION + more)
    reason, said = error(capsys, "explain", str(intent), "--set", str(agents))
    assert (reason, said) == ("policy_invalid", f"{intent}: {message}")


def test_differences_are_told_with_what_they_change(
    agents: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = agents.parent / "agents.json"
    told(capsys, "sign", str(agents), "--key", str(key), "--out", str(out))
    assert told(capsys, "diff", str(out), str(agents))["changes"] == []
    file = agents / "agents.cedar"
    file.write_text(
        file.read_text().replace("> 3600", "> 300")
        + '@id("new") forbid(principal == User::"x", action, resource);\n'
    )
    settings = agents / "policy.toml"
    settings.write_text(settings.read_text().replace('tools = ["python", "git"]', 'tools = ["python"]'))
    answer = told(capsys, "diff", str(out), str(agents))
    assert [(item["what"], item["name"], item["change"]) for item in answer["changes"]] == [
        ("policy", "agent-short-lived", "changed"),
        ("policy", "new", "added"),
        ("agent", "research", "changed"),
    ]
    assert {turn["test"] for turn in answer["turns"]} >= {"the agent runs its reviewed script"}
    assert answer["asked"] == 12


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("agents.cedar", '@id("a") permit(principal, action, resource) wen {};', "agents.cedar:1:46: invalid policy condition: wen"),
        ("policy.toml", "name = \n", "policy.toml: Invalid value (at line 1, column 8)"),
        ("policy.toml", 'name = "a"\nversion = 0\nscopes = ["b"]\n', "policy.toml: Expected `int` >= 1 - at `$.version`"),
        ("policy.toml", 'name = "a"\nversion = 1\nscopes = ["b"]\nx = 1\n', "policy.toml: Object contains unknown field `x`"),
        ("tests/agents.toml", "[[test]]\n", "tests/agents.toml: Object missing required field `name` - at `$.test[0]`"),
        ("tests/agents.toml", '[[test]]\nname = "t"\nexpect = "permit"\n', "tests/agents.toml: t: Object missing required field `scope`"),
        ("notes.txt", "", "notes.txt does not belong to a policy set: policy.toml, NAME.cedar, tests/NAME.toml"),
        ("b.cedar", '@id("agent-tools") permit(principal, action, resource);', "b.cedar:1:1: the id agent-tools is that of agents.cedar:3:1, too"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(
    agents: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    (agents / file).write_text(content)
    assert error(capsys, "check", str(agents)) == ("policy_invalid", message)


def test_it_is_told_in_one_line_and_what_to_do_in_the_next(
    agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (agents / "b.cedar").write_text(
        '@id("b")\npermit(principal, action, resource)\nwhen { context.uses > 1 };\n'
    )
    for words in (["check"], ["test"], ["sign", "--key", "none.key", "--out", "none.json"]):
        capsys.readouterr()
        assert run(["policy", words[0], str(agents), *words[1:]]) == 2
        first, next_step, *rest = capsys.readouterr().err.splitlines()
        assert first.startswith("egs: b.cedar:3:16: b: unable to guarantee safety")
        assert first.endswith("[policy_invalid]")
        assert (bool(next_step), rest) == (True, [])


def test_what_locks_everyone_out_is_warned_about(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (agents / "agents.cedar").open("a") as file:
        file.write('@id("shut") forbid(principal, action, resource);\n')
    assert told(capsys, "check", str(agents))["warnings"] == [
        "it locks everyone out: whatever is asked, shut forbids it"
    ]
    run(["policy", "check", str(agents)])
    assert "Break-glass" in capsys.readouterr().out


def test_files_that_are_no_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "check", str(tmp_path / "none"))[0] == "not_found"
    file = tmp_path / "file.json"
    file.write_bytes(b"{}")
    assert error(capsys, "show", str(file), code=1)[0] == "artifact_malformed"
    file.write_bytes(b" " * (SET_LIMIT + 1))
    assert error(capsys, "show", str(file), code=1)[0] == "artifact_too_large"


def test_without_an_active_set_there_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    assert error(capsys, "show")[0] == "not_found"


def test_without_a_daemon_nothing_is_activated(
    agents: Path,
    key: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "agents.json"
    told(capsys, "sign", str(agents), "--key", str(key), "--out", str(out))
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    assert error(capsys, "activate", str(out), code=4)[0] == "daemon_unreachable"
