"""`egs keys | trust | issue | sign | verify | show`, as scripts see them: flags, output, files, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.cli.files import inspect_program
from egs_kernel.cli.main import run
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason

TRUE = Path("/bin/true").resolve()


@dataclass
class Egs:
    """The `egs` command in a folder of its own, with a key `a` that is trusted for the scope "agents"."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    stdout: str = ""
    stderr: str = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run it, check the exit code, return what it printed on stdout; stderr is kept."""
        ended = run([str(argument) for argument in arguments])
        self.stdout, self.stderr = self.capture.readouterr()
        assert ended == code, self.stderr
        assert "Traceback" not in self.stderr
        return self.stdout

    def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))

    def refused(self, *arguments: object, code: int = 1) -> str:
        """The reason code of a refusal, the same in the message and in the JSON."""
        self(*arguments, code=code)
        message = self.stderr
        reason = str(self.json(*arguments, code=code)["error"]["reason"])
        assert f"[{reason}]" in message
        return reason

    def issue(
        self, *options: object, key: str = "a", out: str = "job.artifact", program: Path = TRUE
    ) -> Path:
        self(
            "issue",
            "--key",
            self.key(key),
            "--scope",
            "agents",
            "--program",
            program,
            *options,
            "--out",
            self.folder / out,
        )
        return self.folder / out

    def issue_refused(self, *options: object, code: int = 2, program: Path = TRUE) -> str:
        out = self.folder / "none.artifact"
        words = (
            "issue",
            "--key",
            self.key("a"),
            "--scope",
            "agents",
            "--program",
            program,
            *options,
            "--out",
            out,
        )
        reason = self.refused(*words, code=code)
        assert not out.exists()
        return reason

    def key(self, name: str) -> Path:
        return self.folder / "keys" / f"{name}.key"


@pytest.fixture
def egs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Egs:
    """The command, an EGS_ROOT, a key, its trust."""
    monkeypatch.setenv("EGS_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(sys, "argv", ["egs"])
    command = Egs(tmp_path, capsys)
    command("keys", "generate", "--name", "a", "--out", tmp_path / "keys")
    command("trust", "add", tmp_path / "keys/a.pub", "--role", "issuer", "--scope", "agents")
    return command


def payload_of(path: Path) -> Any:
    return json.loads(parse_envelope(path.read_bytes()).payload)


# keys and trust


def test_keys_are_generated_once(egs: Egs) -> None:
    assert stat.S_IMODE(egs.key("a").stat().st_mode) == 0o600
    before = egs.key("a").read_bytes()
    assert (
        egs.refused("keys", "generate", "--name", "a", "--out", egs.folder / "keys", code=2)
        == Reason.USAGE.code
    )
    assert egs.key("a").read_bytes() == before
    answer = egs.json(
        "keys", "generate", "--name", "b", "--out", egs.folder / "keys", "--algorithm", "ecdsa-p256"
    )
    assert answer["algorithm"] == "ecdsa-p256"
    assert Path(answer["public"]).read_text().startswith("-----BEGIN PUBLIC KEY-----")


@pytest.mark.parametrize("name", ["", "../a", ".a", "a/b", "a\nb"])
def test_key_names_that_are_no_file_names(name: str, egs: Egs) -> None:
    assert egs.refused("keys", "generate", "--name", name, "--out", egs.folder, code=2) == Reason.USAGE.code


def test_trust_is_listed_changed_and_taken_back(egs: Egs) -> None:
    (key,) = egs.json("trust", "list")["keys"]
    assert (key["roles"], key["scopes"], key["state"]) == (["issuer"], ["agents"], "valid")
    assert key["keyid"] in egs("trust", "list")
    egs("trust", "threshold", "agents", 2)
    assert egs.json("trust", "list")["thresholds"] == {"agents": 2}
    egs("trust", "revoke", key["keyid"])
    assert "revoked" in egs.json("trust", "list")["keys"][0]["state"]
    egs("trust", "remove", key["keyid"])
    assert egs.json("trust", "list")["keys"] == []
    assert egs.refused("trust", "remove", key["keyid"], code=2) == Reason.NOT_FOUND.code


@pytest.mark.parametrize(
    "options",
    [
        ("--scope", "Agents"),
        ("--scope", "agents", "--not-after", "tomorrow"),
        ("--scope", "agents", "--not-before", "2026-11-23T15:00:00Z", "--not-after", "2026-11-23T15:00:00Z"),
    ],
)
def test_trust_that_makes_no_sense(options: tuple[str, ...], egs: Egs) -> None:
    egs("keys", "generate", "--name", "b", "--out", egs.folder / "keys")
    words = ("trust", "add", egs.folder / "keys/b.pub", "--role", "issuer", *options)
    assert egs.refused(*words, code=2) == Reason.USAGE.code
    assert len(egs.json("trust", "list")["keys"]) == 1


def test_an_unsafe_trust_folder_is_refused(egs: Egs) -> None:
    path = egs.issue()
    (egs.folder / "root/etc/egs/trust").chmod(0o777)
    assert egs.refused("trust", "list", code=2) == Reason.PATH_UNSAFE.code
    assert egs.refused("verify", path, code=2) == Reason.PATH_UNSAFE.code


# issue, show, verify


def test_what_is_issued_verifies_and_shows(egs: Egs) -> None:
    path = egs.issue("--user", "svc", "--purpose", "the report", "--max-uses", 3)
    shown = egs.json("show", path)
    assert shown["id"] == hashlib.sha256(parse_envelope(path.read_bytes()).payload).hexdigest()
    assert shown["statement"]["predicate"]["uses"] == 3
    answer = egs.json("verify", path, "--program", TRUE)
    assert answer["verified"] is True
    assert answer["id"] == shown["id"]
    assert [step["number"] for step in answer["steps"]] == list(range(1, 16))
    states = {step["number"]: step["state"] for step in answer["steps"]}
    assert [number for number, state in states.items() if state == "passed"] == [1, 2, 3, 4, 5, 6, 9]
    text = egs("verify", path)
    assert text.count("\N{CHECK MARK}") == 5
    assert shown["id"] in text
    assert "Not verified" in egs("show", path)


def test_every_option_reaches_its_field(egs: Egs, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("print()")
    constraints = tmp_path / "constraints.toml"
    constraints.write_text('[syscalls]\ndeny = ["mount"]\n')
    digest = "01" * 32
    path = egs.issue(
        *(
            "--argv",
            "python3",
            "--argv",
            "-I",
            "--argv",
            script,
            "--argv",
            "*",
            "--script",
            script,
            "--child",
            TRUE,
        ),
        *(
            "--cwd",
            "/srv",
            "--env",
            "PATH",
            "--env",
            "HOME=/srv",
            "--constraints",
            constraints,
            "--max-uses",
            2,
        ),
        *("--user", "svc", "--uid", 7, "--group", "staff", "--group", 50, "--spiffe-id", "spiffe://a/b"),
        *("--unit", "report.service"),
        *(
            "--host",
            "h",
            "--host-label",
            "prod",
            "--cgroup",
            "/c",
            "--purpose",
            "why",
            "--policy-digest",
            digest,
        ),
        *("--parent", digest, "--parent-execution", "9", "--request-id", "r", "--intent-digest", digest),
        *("--issuer", "i", "--approver", "x", "--approver", "y", "--ticket", "T-1", "--risk", "high"),
        *("--not-before", "2030-01-01T00:00:00Z", "--not-after", "2030-01-02T00:00:00Z"),
        program=Path(sys.executable),
    )
    value = payload_of(path)
    assert [item["annotations"]["role"] for item in value["subject"]] == ["program", "script", "child"]
    assert value["subject"][1]["digest"]["sha256"] == hashlib.sha256(b"print()").hexdigest()
    predicate = value["predicate"]
    assert predicate.pop("issuedAt")
    assert predicate == {
        "notBefore": "2030-01-01T00:00:00Z",
        "notAfter": "2030-01-02T00:00:00Z",
        "scope": {"name": "agents", "policyDigest": digest},
        "identity": {
            "user": "svc",
            "uid": 7,
            "groups": ["staff", 50],
            "spiffeId": "spiffe://a/b",
            "unit": "report.service",
            "hosts": ["h"],
            "hostLabels": ["prod"],
            "cgroup": "/c",
        },
        "intent": {
            "argv": ["python3", "-I", str(script), "*"],
            "cwd": "/srv",
            "environment": {"allow": ["PATH"], "set": {"HOME": "/srv"}},
            "purpose": "why",
        },
        "constraints": {"syscalls": {"deny": ["mount"]}},
        "uses": 2,
        "lineage": {
            "parentArtifact": digest,
            "parentExecution": "9",
            "requestId": "r",
            "intentDigest": digest,
        },
        "governance": {"issuer": "i", "approvers": ["x", "y"], "ticket": "T-1", "risk": "high"},
    }
    assert egs.refused("verify", path) == Reason.NOT_YET_VALID.code
    egs("verify", path, "--at", "2030-01-01T12:00:00Z")
    assert egs.refused("verify", path, "--at", "2030-01-02T00:00:00Z") == Reason.EXPIRED.code


def test_arguments_that_look_like_options_are_arguments(egs: Egs) -> None:
    path = egs.issue(
        "--argv",
        "sh",
        "--argv",
        "-c",
        "--argv",
        "--argv",
        "--argv",
        "",
        "--argv=--json",
        "--argv",
        "--",
        program=Path("/bin/sh"),
    )
    assert payload_of(path)["predicate"]["intent"]["argv"] == ["sh", "-c", "--argv", "", "--json", "--"]


def test_the_name_is_the_file_that_the_kernel_will_execute(egs: Egs, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(TRUE)
    assert payload_of(egs.issue(program=link))["subject"][0]["name"] == str(TRUE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--valid-for", "0s"), Reason.USAGE),
        (("--valid-for", "1 week"), Reason.USAGE),
        (("--valid-for", "1h", "--not-after", "2030-01-01T00:00:00Z"), Reason.USAGE),
        (("--not-after", "tomorrow"), Reason.USAGE),
        (("--not-before", "2030-01-02T00:00:00Z", "--not-after", "2030-01-01T00:00:00Z"), Reason.USAGE),
        (("--scope", "Agents"), Reason.USAGE),
        (("--scope", "*"), Reason.USAGE),
        (("--uid", "-1"), Reason.ARTIFACT_MALFORMED),
        (("--user", "a b"), Reason.ARTIFACT_MALFORMED),
        (("--max-uses", "0"), Reason.ARTIFACT_MALFORMED),
        (("--purpose", "a\x1bb"), Reason.ARTIFACT_MALFORMED),
        (("--argv", "a\nb"), Reason.ARTIFACT_MALFORMED),
        (("--argv", "x" * 4096), Reason.USAGE),
        (("--argv", "\udcff"), Reason.USAGE),
        (("--policy-digest", "x"), Reason.ARTIFACT_MALFORMED),
        (("--env", "LD_PRELOAD"), Reason.USAGE),
        (("--script", "/none"), Reason.NOT_FOUND),
        (("--program", "/none"), Reason.NOT_FOUND),
        (("--program", "/"), Reason.USAGE),
        (("--constraints", "/none"), Reason.NOT_FOUND),
        (("--not-before", "9999-12-31T23:59:59Z"), Reason.USAGE),
    ],
    ids=str,
)
def test_what_could_never_verify_is_not_issued(options: tuple[str, ...], reason: Reason, egs: Egs) -> None:
    assert egs.issue_refused(*options) == reason.code


_RULE = '[[syscalls.rules]]\ncall = "kill"\nargument = 1\nop = "{op}"\nvalues = {values}'


@pytest.mark.parametrize(
    ("constraints", "code", "reason"),
    [
        ("x", 2, Reason.CONFIG_INVALID),
        ("", 2, Reason.CONFIG_INVALID),
        ('[wormhole]\nmode = "none"', 2, Reason.CONFIG_INVALID),
        ('[syscalls]\nprofile = "none-such"', 1, Reason.ARTIFACT_MALFORMED),
        ('[syscalls]\ndeny = ["none_such"]', 1, Reason.ARTIFACT_MALFORMED),
        ('[syscalls]\ndeny = ["execve"]', 1, Reason.ARTIFACT_MALFORMED),
        ('[syscalls]\nprofile = "strict"\naction = "trap"', 2, Reason.CONFIG_INVALID),
        ('[syscalls]\nprofile = "strict"\narchitectures = ["arm"]', 2, Reason.CONFIG_INVALID),
        ("[syscalls]\nrules = []", 2, Reason.CONFIG_INVALID),
        (_RULE.format(op="gt", values="[1]"), 2, Reason.CONFIG_INVALID),
        (_RULE.format(op="eq", values="[-1]"), 2, Reason.CONFIG_INVALID),
        (_RULE.format(op="eq", values="[4294967296]"), 2, Reason.CONFIG_INVALID),
        (_RULE.format(op="eq", values="[]"), 2, Reason.CONFIG_INVALID),
        (_RULE.format(op="eq", values="[1, 1]"), 1, Reason.ARTIFACT_MALFORMED),
        (_RULE.format(op="eq", values="[256]\nmask = 255"), 1, Reason.ARTIFACT_MALFORMED),
        ("[resources]", 2, Reason.CONFIG_INVALID),
        ("[resources]\nopenFiles = -1", 2, Reason.CONFIG_INVALID),
        ("[resources]\nwallSeconds = 0", 2, Reason.CONFIG_INVALID),
        ("[resources]\nmemory = 1", 2, Reason.CONFIG_INVALID),
        ("[resources]\naddressSpace = 1000000", 2, Reason.CONFIG_INVALID),
        ('[resources]\nopenFiles = "many"', 2, Reason.CONFIG_INVALID),
        ("[process]", 2, Reason.CONFIG_INVALID),
        ('[process]\nchildren = "some"', 2, Reason.CONFIG_INVALID),
        ('[process]\nchildren = "listed"', 2, Reason.USAGE),
        ('[process]\ncapabilities = ["none_such"]', 2, Reason.CONFIG_INVALID),
        ('[process]\ncapabilities = ["kill", "kill"]', 2, Reason.CONFIG_INVALID),
        ("[process]\ncapabilities = []", 2, Reason.CONFIG_INVALID),
        ('[process]\numask = "0999"', 2, Reason.CONFIG_INVALID),
        ('[process]\nnewPrivileges = "allowed"', 2, Reason.CONFIG_INVALID),
        (
            '[process]\ncapabilities = ["sys_resource"]\n[resources]\nopenFiles = 64',
            1,
            Reason.ARTIFACT_MALFORMED,
        ),
        (
            '[process]\nchildren = "none"\n[syscalls]\nprofile = "default"\narchitectures = ["i386"]',
            1,
            Reason.ARTIFACT_MALFORMED,
        ),
        pytest.param("more = " + "9" * 5000, 2, Reason.CONFIG_INVALID, id="a number of 5000 digits"),
        pytest.param("more = " + "[" * 5000, 2, Reason.CONFIG_INVALID, id="5000 lists in each other"),
    ],
)
def test_constraints_that_are_none(constraints: str, code: int, reason: Reason, egs: Egs) -> None:
    path = egs.folder / "constraints.toml"
    path.write_text(constraints)
    assert egs.issue_refused("--constraints", path, code=code) == reason.code


@pytest.mark.parametrize("path", ["relative", "/a//b", "/a/../b", "/a/"])
def test_a_path_in_another_spelling_is_explained_in_words(path: str, egs: Egs) -> None:
    file = egs.folder / "constraints.toml"
    file.write_text(f'[filesystem]\nread = ["/usr", "{path}"]\n')
    assert egs.issue_refused("--constraints", file, code=2) == Reason.CONFIG_INVALID.code
    assert "a path that is not absolute, or has `//`, `.`, `..` or a slash at its end" in egs.stderr
    assert "$.filesystem.read[1]" in egs.stderr
    assert "regex" not in egs.stderr


def test_what_is_wrong_with_a_constraint_is_named_by_its_field(egs: Egs) -> None:
    path = egs.folder / "constraints.toml"
    for text, code, field in (
        (_RULE.format(op="gt", values="[1]"), 2, "$.syscalls.rules[0].op"),
        (_RULE.format(op="eq", values="[1, 2, 1]"), 1, "constraints.syscalls.rules[0].values[2]"),
        ('[syscalls]\nprofile = "default"\ndeny = ["acct", "raed"]', 1, "constraints.syscalls.deny[1]"),
    ):
        path.write_text(text)
        egs.issue_refused("--constraints", path, code=code)
        assert field in egs.stderr


def test_a_constraint_that_refuses_nothing_is_said_to(egs: Egs) -> None:
    path = egs.folder / "constraints.toml"
    for action, noted in (("log", True), ("errno", False)):
        path.write_text(f'[syscalls]\nprofile = "default"\naction = "{action}"\n')
        artifact = egs.issue("--constraints", path)
        assert ("refuses nothing" in egs.stdout) is noted
        assert ("refuses nothing" in egs("show", artifact)) is noted


def test_programs_that_take_code_must_be_bound(egs: Egs, tmp_path: Path) -> None:
    unbound = Reason.PROGRAM_UNBOUND.code
    shell, script = Path("/bin/sh"), tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n")
    assert egs.issue_refused(program=shell, code=1) == unbound
    assert egs.issue_refused("--argv", "sh", "--argv", "*", program=shell, code=1) == unbound
    assert egs.issue_refused("--argv", "sh", "--argv", script, program=shell, code=1) == unbound
    assert egs.issue_refused(program=script, code=1) == unbound
    egs.issue("--argv", "sh", "--argv", script, "--script", script, program=shell)


def test_a_script_is_issued_as_what_the_kernel_executes_for_it(egs: Egs, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#! /bin/sh -eu\n")
    link = tmp_path / "link"
    link.symlink_to(script)
    issued = egs.issue("--argv", "job", "--argv", "now", program=link)
    value = egs.json("show", issued)["statement"]
    named = [(item["name"], item["annotations"]["role"]) for item in value["subject"]]
    assert named == [(str(Path("/bin/sh").resolve()), "program"), (str(script.resolve()), "script")]
    assert value["predicate"]["intent"]["argv"] == ["/bin/sh", "-eu", str(script.resolve()), "now"]


def test_a_script_is_verified_as_the_script_that_the_artifact_names(egs: Egs, tmp_path: Path) -> None:
    script, other = tmp_path / "job.sh", tmp_path / "other.sh"
    script.write_text("#!/bin/sh\n")
    shutil.copy(script, other)
    issued = egs.issue("--argv", script, program=script)
    egs("verify", issued, "--program", script)
    egs("verify", issued, "--program", "/bin/sh")
    named = ("verify", issued, "--program")
    assert egs.refused(*named, other) == Reason.DIGEST_MISMATCH.code
    script.write_text("#!/bin/sh\nfalse\n")
    assert egs.refused(*named, script) == Reason.DIGEST_MISMATCH.code


@pytest.mark.parametrize("line", ["#!", "#!sh", "#!/usr/bin/env sh", "#!/" + "x" * 300])
def test_a_script_that_cannot_be_bound_is_not_issued(line: str, egs: Egs, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(f"{line}\n")
    refused = egs.issue_refused("--argv", script, program=script, code=1)
    assert refused == Reason.PROGRAM_UNBOUND.code


def test_a_script_of_a_script_is_not_issued(egs: Egs, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("#!/bin/sh\n")
    outer.write_text(f"#!{inner}\n")
    assert egs.issue_refused("--argv", outer, program=outer, code=1) == Reason.PROGRAM_UNBOUND.code


def test_an_expired_window_is_not_issued(egs: Egs) -> None:
    past = ("--not-before", "2020-01-01T00:00:00Z", "--not-after", "2020-01-02T00:00:00Z")
    assert egs.issue_refused(*past) == Reason.USAGE.code


def test_key_files_that_do_not_sign(egs: Egs) -> None:
    words = ("issue", "--scope", "agents", "--program", TRUE, "--out", egs.folder / "x", "--key")
    assert egs.refused(*words, egs.folder / "none.key", code=2) == Reason.NOT_FOUND.code
    assert egs.refused(*words, egs.key("a"), "--key", egs.key("a"), code=2) == Reason.USAGE.code
    egs.key("a").chmod(0o644)
    assert egs.refused(*words, egs.key("a"), code=2) == Reason.PATH_UNSAFE.code


def test_an_artifact_is_written_whole_or_not_at_all(egs: Egs) -> None:
    words = ("issue", "--key", egs.key("a"), "--scope", "agents", "--program", TRUE, "--out")
    egs.refused(*words, egs.folder / "none" / "x.artifact", code=2)
    egs.refused(*words, egs.folder / "keys", code=2)
    assert sorted(path.name for path in egs.folder.iterdir()) == ["keys", "root"]
    assert sorted(path.name for path in (egs.folder / "keys").iterdir()) == ["a.key", "a.pub"]


def test_thresholds_and_a_second_signature(egs: Egs) -> None:
    egs("keys", "generate", "--name", "b", "--out", egs.folder / "keys", "--algorithm", "ecdsa-p256")
    egs("trust", "add", egs.folder / "keys/b.pub", "--role", "issuer", "--scope", "*")
    egs("trust", "threshold", "agents", 2)
    path = egs.issue()
    before = egs.json("show", path)["id"]
    assert egs.refused("verify", path) == Reason.THRESHOLD_NOT_MET.code
    egs("sign", path, "--key", egs.key("b"))
    answer = egs.json("verify", path)
    assert len(answer["signers"]) == 2
    assert answer["id"] == before
    assert egs.refused("sign", path, "--key", egs.key("b"), code=2) == Reason.USAGE.code


def test_refusals_say_at_which_step(egs: Egs, tmp_path: Path) -> None:
    path = egs.issue()
    assert egs.refused("verify", path, "--program", "/bin/false") == Reason.DIGEST_MISMATCH.code
    answer = egs.json("verify", path, "--program", "/bin/false", code=1)
    assert [step["state"] for step in answer["steps"]][:7] == ["passed"] * 5 + ["failed", "host"]
    assert egs("verify", path, "--program", "/bin/false", code=1).count("\N{BALLOT X}") == 1
    (tmp_path / "trust").mkdir(mode=0o755)
    assert egs.refused("verify", path, "--trust", tmp_path / "trust") == Reason.KEY_UNTRUSTED.code


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{" * 1000, b" " * 70_000, b'{"payload":"AA=="}'])
def test_garbage_is_refused(content: bytes, egs: Egs) -> None:
    path = egs.folder / "garbage"
    path.write_bytes(content)
    for command in ("verify", "show"):
        assert egs.refused(command, path) in (Reason.ARTIFACT_MALFORMED.code, Reason.ARTIFACT_TOO_LARGE.code)


@pytest.mark.parametrize("command", ["verify", "show"])
def test_files_that_cannot_be_read(command: str, egs: Egs) -> None:
    assert egs.refused(command, egs.folder / "none", code=2) == Reason.NOT_FOUND.code
    assert egs.refused(command, egs.folder, code=2) == Reason.USAGE.code


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_anyone_can_verify(egs: Egs) -> None:
    path = egs.issue()
    # Imported first: nobody may be unable to read this checkout.
    code = (
        "import os, sys, egs_kernel.cli.main, egs_kernel.cli.verify; os.setgid(65534); os.setuid(65534);"
        " sys.exit(egs_kernel.cli.main.run(sys.argv[1:]))"
    )
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are for their owner alone
        public = Path(name)
        public.chmod(0o755)
        shutil.copy(path, public)
        shutil.copytree(egs.folder / "root/etc/egs/trust", public / "trust")
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "verify",
                public / path.name,
                "--trust",
                public / "trust",
                "--program",
                TRUE,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, "")


def test_wrong_usage_is_exit_code_2(egs: Egs) -> None:
    for words in (["verify"], ["issue", "--frob"], ["keys", "generate", "--algorithm", "rsa"], ["trust"]):
        with pytest.raises(SystemExit) as caught:
            run(words)
        assert caught.value.code == 2
    egs("show", egs.issue())


def test_a_pipe_as_program_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a regular file"):
        inspect_program(pipe)
