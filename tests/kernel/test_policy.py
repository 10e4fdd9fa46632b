"""Policy on the node: activated by a signed set, followed after a restart, asked again at every examination."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.audit.entries import PolicyChange, Verification
from egs_kernel.cli.client import ask
from egs_kernel.daemon import protocol
from egs_kernel.verify import artifact_id as id_of
from tests.running import SECONDS, Running, running_on_disk

pytestmark = pytest.mark.kernel

PERMIT = '@id("all") permit(principal, action, resource);\n'


@pytest.fixture(scope="module")
def node() -> Iterator[Running]:
    """One system, which trusts a policy key, for the tests that leave no trace in one another."""
    with running_on_disk() as found:
        trust_policy_key(found)
        yield found


def write_set(
    system: Running, text: str, *, version: int = 1, scope: str = "test", key: str = "policy"
) -> Path:
    """A signed set with these policies."""
    folder = system.folder / f"set-{version}"
    folder.mkdir(exist_ok=True)
    (folder / "policy.toml").write_text(f'name = "tests"\nversion = {version}\nscopes = ["{scope}"]\n')
    (folder / "a.cedar").write_text(text)
    out = system.folder / f"set-{version}-{len(text)}.json"
    system.instance.egs(
        "policy", "sign", str(folder), "--key", str(system.folder / f"{key}.key"), "--out", str(out)
    )
    return out


def trust_policy_key(system: Running) -> None:
    system.instance.egs("keys", "generate", "--name", "policy", "--out", str(system.folder))
    system.instance.egs(
        "trust", "add", str(system.folder / "policy.pub"), "--role", "policy", "--scope", "test"
    )
    system.instance.egs("reload")


def activate(system: Running, path: Path) -> Any:
    return json.loads(system.instance.egs("policy", "activate", "--anyway", "--json", str(path)).stdout)


def refused(system: Running, path: Path) -> str:
    done = system.instance.egs("policy", "activate", "--anyway", "--json", str(path), check=False)
    assert done.returncode == 1, done.stderr
    return str(json.loads(done.stdout)["error"]["reason"])


def active(system: Running) -> protocol.PolicyAnswer:
    return ask(system.instance.paths, protocol.PolicyRequest(), protocol.PolicyAnswer)


def state_of(system: Running, artifact_id: str) -> tuple[str, str]:
    found = system.artifacts()[artifact_id]
    return found["state"], found["reason"]


def wait_for_state(system: Running, artifact_id: str, *wanted: str) -> None:
    deadline = time.monotonic() + SECONDS
    while state_of(system, artifact_id) != wanted:
        assert time.monotonic() < deadline, (state_of(system, artifact_id), system.log())


def artifact_id(path: Path) -> str:
    return id_of(parse_envelope(path.read_bytes()))


def not_added(system: Running, artifact: Path) -> str:
    done = system.instance.egs("artifacts", "add", "--json", str(artifact), check=False)
    assert done.returncode == 1, done.stdout
    return str(json.loads(done.stdout)["error"]["reason"])


def test_a_set_is_activated_recorded_and_followed(running: Running) -> None:
    program = running.copy("/bin/true", "program")
    before = running.add(running.issue(program, "--user", "root"))
    assert running.inside(str(program)) == 0
    trust_policy_key(running)
    first = write_set(running, PERMIT)
    assert refused(running, write_set(running, PERMIT, version=9, key="issuer")) == "key_role_mismatch"
    digest = activate(running, first)["digest"]

    # What was issued under no set is denied from now on, standing or not: there is no waiting in between.
    assert running.inside(str(program)) != 0
    wait_for_state(running, before, "refused", "policy_mismatch")
    assert running.inside(str(program)) != 0
    launched = running.run("--artifact", str(running.issue(program, name="old.json")), "--", str(program))
    assert (launched.returncode, "policy_mismatch" in launched.stderr) == (126, True)

    # What is issued under it runs.
    under = running.add(running.issue(program, "--user", "root", "--policy-digest", digest, name="new.json"))
    assert state_of(running, under) == ("standing", "")
    assert running.inside(str(program)) == 0

    # A policy for everybody cannot be asked about what stands for everybody.
    assert (
        not_added(running, running.issue(program, "--policy-digest", digest, name="all.json"))
        == "policy_denied"
    )

    shown = json.loads(running.instance.egs("policy", "show", "--json").stdout)
    assert (shown["digest"], shown["daemon"]["problem"], shown["policies"]) == (digest, "", ["all"])

    # A restart follows the record, and an older or another set of the same version is refused.
    second = write_set(running, PERMIT + '@id("more") permit(principal, action, resource);\n', version=2)
    newer = activate(running, second)["digest"]
    assert refused(running, first) == "policy_outdated"
    assert refused(running, write_set(running, PERMIT + "// another\n", version=2)) == "policy_outdated"
    running.stop()
    running.start()
    assert (active(running).digest, active(running).problem) == (newer, "")
    assert refused(running, first) == "policy_outdated"

    # Put in the place of the file, an older one changes nothing, and says so after a restart: nothing runs then.
    running.stop()
    running.instance.paths.policy_set.write_bytes(first.read_bytes())
    running.start()
    assert "version 2" in active(running).problem
    last = running.issue(program, "--user", "root", "--policy-digest", newer, name="last.json")
    assert not_added(running, last) == "policy_unavailable"
    status = json.loads(running.instance.egs("status", "--json").stdout)
    assert any("its policy set cannot be asked" in problem for problem in status["details"]["problems"])
    assert running.inside(str(program)) != 0
    assert activate(running, second)["digest"] == newer
    wait_for_state(running, artifact_id(last), "standing", "")
    assert running.inside(str(program)) == 0

    entries = [(entry.action, entry.reason.code, entry.version) for entry in running.entries(PolicyChange)]
    assert entries[:2] == [("refused", "key_role_mismatch", 0), ("activated", "authorized", 1)]
    assert ("refused", "policy_outdated", 1) in entries
    assert entries[-1] == ("activated", "authorized", 2)


def test_the_node_asks_again_with_what_it_knows(node: Running) -> None:
    """The authority may not know the host's state; the node does."""
    program = node.copy("/bin/true", "program")
    text = PERMIT + (
        '@id("sealed") @advice("Seal the host.") forbid(principal, action, resource)\n'
        'when { context has posture && context.posture.seal != "sealed" && context has ticket };\n'
        '@id("words") forbid(principal == User::"root", action, resource)\n'
        'when { context has argv && context.argv.contains("--no") };\n'
    )
    digest = activate(node, write_set(node, text, version=2))["digest"]
    free = node.issue(program, "--policy-digest", digest)
    assert node.run("--artifact", str(free), "--", str(program), "--yes").returncode == 0
    steps = {step.name: step.detail for step in node.entries(Verification)[-1].steps}
    assert steps["policy"] == "permitted by all"
    launched = node.run("--artifact", str(free), "--", str(program), "--no")
    assert (launched.returncode, "words forbids it" in launched.stderr) == (126, True), launched.stderr
    other = node.issue(program, "--policy-digest", digest, "--ticket", "T-1", name="ticket.json")
    launched = node.run("--artifact", str(other), "--", str(program))
    assert (launched.returncode, "sealed forbids it" in launched.stderr) == (126, True)
    assert "Seal the host." in launched.stderr


def test_an_evaluator_that_dies_refuses_until_there_is_another(node: Running) -> None:
    program = node.copy("/bin/true", "program")
    digest = activate(node, write_set(node, PERMIT, version=3))["digest"]
    artifact = node.issue(program, "--policy-digest", digest)
    pid = active(node).pid
    assert pid is not None
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t" + "\t".join(4 * [str(2**32 - 3)]) in status
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    os.kill(pid, signal.SIGKILL)
    launched = node.run("--artifact", str(artifact), "--", str(program))
    assert (launched.returncode, "policy_unavailable" in launched.stderr) == (126, True), launched.stderr
    standing = node.issue(program, "--user", "root", "--policy-digest", digest, name="standing.json")
    node.instance.egs("artifacts", "add", str(standing), check=False)
    wait_for_state(node, artifact_id(standing), "standing", "")  # whether it was refused first or not
    while node.run("--artifact", str(artifact), "--", str(program)).returncode != 0:
        assert node.daemon is not None
        assert node.daemon.poll() is None
    assert active(node).pid != pid


def test_a_set_that_locks_everyone_out_is_told_before(node: Running) -> None:
    shut = write_set(node, PERMIT + '@id("shut") forbid(principal, action, resource);\n', version=4)
    done = node.instance.egs("policy", "activate", str(shut), check=False)
    assert (
        done.returncode,
        "locks everyone out" in done.stderr,
        "Break-glass" in done.stdout + done.stderr,
    ) == (
        1,
        True,
        True,
    )
    assert all(entry.version < 4 for entry in node.entries(PolicyChange))


def test_a_newer_set_in_the_place_of_the_file_is_verified_and_recorded(node: Running) -> None:
    before = active(node).digest
    file = node.instance.paths.policy_set
    file.write_bytes(write_set(node, PERMIT, version=6, key="issuer").read_bytes())
    node.instance.egs("reload")
    assert (active(node).digest, active(node).problem) == (before, ""), "what was active goes on"
    path = write_set(node, PERMIT, version=7)
    file.write_bytes(path.read_bytes())
    node.instance.egs("reload")
    assert (active(node).version, active(node).problem) == (7, "")
    entries = [(entry.action, entry.reason.code, entry.version) for entry in node.entries(PolicyChange)]
    assert entries[-2:] == [("refused", "key_role_mismatch", 0), ("activated", "authorized", 7)]


def trust_signer(system: Running, name: str) -> str:
    """Another key that may sign sets; its id."""
    system.instance.egs("keys", "generate", "--name", name, "--out", str(system.folder))
    public = str(system.folder / f"{name}.pub")
    added = system.instance.egs("trust", "add", public, "--role", "policy", "--scope", "test", "--json")
    system.instance.egs("reload")
    return str(json.loads(added.stdout)["keyid"])


@pytest.mark.parametrize("by", ["digest", "key", "trust"])
def test_an_active_set_that_is_revoked_permits_nothing_any_more(node: Running, by: str) -> None:
    """By its digest, by the key that signed it, or by that key in the trust folder; and no restart revives it."""
    number = 10 + 2 * ["digest", "key", "trust"].index(by)
    keyid = trust_signer(node, f"signer-{by}")
    digest = activate(node, write_set(node, PERMIT, version=number, key=f"signer-{by}"))["digest"]
    program = node.copy("/bin/true", f"program-{by}")
    artifact = node.issue(program, "--user", "root", "--policy-digest", digest, name=f"{by}.json")
    standing = node.add(artifact)
    assert node.inside(str(program)) == 0
    if by == "trust":
        node.instance.egs("trust", "revoke", keyid)
        node.instance.egs("reload")
        wait_for_state(node, standing, "revoked", "revoked")
    else:
        node.instance.egs("revoke", f"policy:{digest}" if by == "digest" else f"key:{keyid}")
    assert node.inside(str(program)) != 0

    def refused_still() -> None:
        launched = node.run("--artifact", str(artifact), "--", str(program))
        assert (launched.returncode, "[revoked]" in launched.stderr) == (126, True), launched.stderr
        assert "active policy set was revoked" in launched.stderr
        assert "was revoked" in active(node).problem
        problems = json.loads(node.instance.egs("status", "--json").stdout)["details"]["problems"]
        assert any("nothing is authorized in scope test" in problem for problem in problems)

    refused_still()
    if by == "key":
        node.stop()
        node.start()
        refused_still()
        assert node.inside(str(program)) != 0
    newer = activate(node, write_set(node, PERMIT, version=number + 1))["digest"]
    assert (active(node).digest, active(node).problem) == (newer, "")
    if by == "digest":
        under = node.issue(program, "--policy-digest", newer, name="again.json")
        assert node.run("--artifact", str(under), "--", str(program)).returncode == 0


def test_a_set_that_somebody_else_signs_again_stands_again(node: Running) -> None:
    lost = trust_signer(node, "lost")
    path = write_set(node, PERMIT, version=30, key="lost")
    digest = activate(node, path)["digest"]
    node.instance.egs("revoke", f"key:{lost}")
    assert "was revoked" in active(node).problem
    node.instance.egs("policy", "sign", str(path), "--key", str(node.folder / "policy.key"))
    assert activate(node, path)["digest"] == digest
    assert active(node).problem == ""
