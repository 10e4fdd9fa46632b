"""Attacker's goal: have something authorized that the active policy set does not permit.

Claims T-42 and T-43 of docs/threat-model.md: by another set than the signed one, by an older one, by no set, by an artifact of
another set, by words that policy misreads, or by an evaluator that cannot answer. O-24 shows what stands.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from egs_kernel.audit.entries import PolicyChange
from egs_kernel.cli.client import ask
from egs_kernel.daemon import protocol
from egs_kernel.daemon.evaluator import ASK_SECONDS
from tests.harness import BIN
from tests.running import Running

pytestmark = pytest.mark.kernel

POLICIES = """
@id("anything") permit(principal, action, resource);
@id("not-that") forbid(principal, action, resource) when { context has argv && context.argv.contains("--forbidden") };
@id("approved") forbid(principal, action, resource) when { context has ticket } unless { context.approvals >= 1 };
"""


def write(system: Running, version: int, text: str = POLICIES, scope: str = "test") -> Path:
    folder = system.folder / f"set-{version}-{scope}"
    folder.mkdir(exist_ok=True)
    (folder / "policy.toml").write_text(f'name = "rules"\nversion = {version}\nscopes = ["{scope}"]\n')
    (folder / "a.cedar").write_text(text)
    return folder


def sign(system: Running, folder: Path, key: str = "policy") -> Path:
    out = system.folder / f"{folder.name}-{key}.json"
    system.instance.egs(
        "policy", "sign", str(folder), "--key", str(system.folder / f"{key}.key"), "--out", str(out)
    )
    return out


def activate(system: Running, path: Path) -> tuple[int, str]:
    done = system.instance.egs("policy", "activate", "--anyway", "--json", str(path), check=False)
    answer = json.loads(done.stdout)
    return done.returncode, answer["digest"] if done.returncode == 0 else answer["error"]["reason"]


def state(system: Running) -> protocol.PolicyAnswer:
    return ask(system.instance.paths, protocol.PolicyRequest(), protocol.PolicyAnswer)


@pytest.fixture(scope="module")
def program(system: Running) -> Path:
    for name, role, scope in (
        ("policy", "policy", "test"),
        ("elsewhere", "policy", "other"),
        ("stranger", "", ""),
    ):
        system.instance.egs("keys", "generate", "--name", name, "--out", str(system.folder))
        if role:
            system.instance.egs(
                "trust", "add", str(system.folder / f"{name}.pub"), "--role", role, "--scope", scope
            )
    system.instance.egs("reload")
    assert activate(system, sign(system, write(system, 5)))[0] == 0
    return system.copy("/bin/echo", "program")


@pytest.fixture
def artifact(system: Running, program: Path) -> Path:
    return system.issue(program, "--policy-digest", state(system).digest)


@pytest.fixture(autouse=True)
def _as_before(system: Running, program: Path) -> Iterator[None]:
    """Every attack leaves the active set as it was."""
    before = state(system).digest
    yield
    assert state(system).digest == before
    assert state(system).problem == ""


def run(system: Running, artifact: Path, *command: str | Path) -> tuple[int, str]:
    done = system.run("--artifact", str(artifact), "--", *(str(word) for word in command))
    return done.returncode, done.stderr


def test_what_the_attacks_begin_with_works(system: Running, program: Path, artifact: Path) -> None:
    assert run(system, artifact, program, "fine")[0] == 0
    code, said = run(system, artifact, program, "--forbidden")
    assert (code, "not-that forbids it [policy_denied]" in said) == (126, True), said


# -- another set


def test_a_set_that_was_changed_after_it_was_signed(system: Running, program: Path) -> None:
    path = sign(system, write(system, 6))
    envelope = json.loads(path.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b"forbid", b"permit")
    path.write_text(json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}))
    assert activate(system, path) == (1, "signature_invalid")
    assert system.entries(PolicyChange)[-1].reason.code == "signature_invalid"


@pytest.mark.parametrize(
    ("key", "reason"),
    [("issuer", "key_role_mismatch"), ("elsewhere", "key_role_mismatch"), ("stranger", "key_untrusted")],
)
def test_a_set_by_a_key_that_may_not_sign_it(system: Running, program: Path, key: str, reason: str) -> None:
    assert activate(system, sign(system, write(system, 7), key)) == (1, reason)


def test_a_set_for_every_scope_by_a_key_for_one(system: Running, program: Path) -> None:
    assert activate(system, sign(system, write(system, 8, scope="*"))) == (1, "key_role_mismatch")


def test_a_set_that_was_revoked_before_it_came(system: Running, program: Path) -> None:
    path = sign(system, write(system, 10))
    digest = json.loads(system.instance.egs("policy", "show", str(path), "--json").stdout)["digest"]
    system.instance.egs("revoke", f"policy:{digest}")
    assert activate(system, path) == (1, "revoked")


def test_a_set_by_a_key_that_was_revoked(system: Running, program: Path) -> None:
    system.instance.egs("keys", "generate", "--name", "lost", "--out", str(system.folder))
    public = system.folder / "lost.pub"
    system.instance.egs("trust", "add", str(public), "--role", "policy", "--scope", "test")
    system.instance.egs("reload")
    system.instance.egs("revoke", f"key:{public}")
    code, reason = activate(system, sign(system, write(system, 11), "lost"))
    assert (code, reason.startswith("key_")) == (1, True), reason


def test_an_older_set_and_another_of_the_same_version(system: Running, program: Path) -> None:
    assert activate(system, sign(system, write(system, 4))) == (1, "policy_outdated")
    lax = write(system, 5, '@id("anything") permit(principal, action, resource);', "test")
    assert activate(system, sign(system, lax)) == (1, "policy_outdated")
    write(system, 5)


def test_somebody_who_is_not_root_activates_nothing(system: Running, program: Path) -> None:
    path = sign(system, write(system, 9))
    path.chmod(0o644)
    done = system.as_nobody(str(BIN / "egs"), "policy", "activate", "--anyway", str(path))
    assert (done.returncode, "not_permitted" in done.stderr) == (1, True), done.stderr


def test_a_file_that_was_removed_while_nobody_looked(system: Running, program: Path, artifact: Path) -> None:
    """Removing the file of the active set does not remove the set: nothing runs until it is back."""
    file = system.instance.paths.policy_set
    content = file.read_bytes()
    system.stop()
    file.unlink()
    system.start()
    code, said = run(system, artifact, program, "fine")
    assert (code, "[policy_unavailable]" in said) == (126, True), said
    file.write_bytes(content)
    system.instance.egs("reload")
    assert run(system, artifact, program, "fine")[0] == 0


# -- another question


def test_an_artifact_of_no_set_or_of_another(system: Running, program: Path) -> None:
    for more in ((), ("--policy-digest", "ab" * 32)):
        code, said = run(system, system.issue(program, *more, name="other.json"), program, "fine")
        assert (code, "[policy_mismatch]" in said) == (126, True), said


def test_approvals_are_those_that_were_signed(system: Running, program: Path) -> None:
    digest = state(system).digest
    alone = system.issue(program, "--policy-digest", digest, "--ticket", "T-1", name="alone.json")
    code, said = run(system, alone, program, "fine")
    assert (code, "approved forbids it" in said) == (126, True), said
    twice = ("--ticket", "T-1", "--approver", "kim")
    approved = system.issue(program, "--policy-digest", digest, *twice, name="approved.json")
    assert run(system, approved, program, "fine")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("fine", "--forbidden"),
        ('"}]} --forbidden', "--forbidden"),
        ("\\", '"', "\n", "--forbidden"),
        ("Ä" * 200, "--forbidden", "\u202e"),
        (*("x" * 500), "--forbidden"),
    ],
    ids=("after another", "json", "escapes", "unicode", "many"),
)
def test_words_do_not_hide_a_word(
    system: Running, program: Path, artifact: Path, words: tuple[str, ...]
) -> None:
    code, said = run(system, artifact, program, *words)
    assert (code, "not-that forbids it" in said) == (126, True), said
    assert run(system, artifact, program, *(word.replace("--forbidden", "--other") for word in words))[0] == 0


def test_words_that_are_no_text(system: Running, program: Path, artifact: Path) -> None:
    """Policy could not compare them: refused, whoever refuses first."""
    code, said = run(system, artifact, program, os.fsdecode(b"\xff"))
    assert (code, "[argv_unreadable]" in said or "[policy_unavailable]" in said) == (126, True), said


# -- no answer


def test_an_evaluator_that_is_stopped_permits_nothing_and_keeps_nobody_waiting(
    system: Running, program: Path, artifact: Path
) -> None:
    pid = state(system).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    code, said = run(system, artifact, program, "fine")
    assert (code, "[policy_unavailable]" in said) == (126, True), said
    assert time.monotonic() - began < ASK_SECONDS + 10
    while run(system, artifact, program, "fine")[0] != 0:  # another one takes its place
        assert system.daemon is not None
        assert system.daemon.poll() is None
    assert state(system).pid != pid


def test_nobody_else_is_the_evaluator(system: Running, program: Path) -> None:
    """Its user is no account's: an unprivileged process can neither stop nor trace it."""
    pid = state(system).pid
    done = system.as_nobody("/bin/sh", "-c", f"kill -STOP {pid}")
    assert (done.returncode != 0, "not permitted" in done.stderr.lower()) == (True, True), done.stderr
    done = system.as_nobody("/bin/sh", "-c", f"cat /proc/{pid}/environ /proc/{pid}/mem")
    assert done.returncode != 0


# -- what stays open


def test_what_stands_is_asked_about_when_it_is_examined(system: Running, program: Path) -> None:
    """O-24: the arguments of an exec by a standing artifact are not known then, so policy is not asked about them."""
    free = system.issue(program, "--user", "root", "--policy-digest", state(system).digest, name="free.json")
    system.add(free)
    assert system.inside(str(program), "--forbidden") == 0
    system.instance.egs("artifacts", "remove", next(iter(system.artifacts())))
