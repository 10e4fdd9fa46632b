"""Attacker's goal: run a program by an artifact that was never issued for it, here, for this.

Claim T-9 of docs/threat-model.md. Each forgery begins with an artifact that works; tests/unit/test_verify.py
and tests/unit/test_artifact.py have every single rule of the verifier.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import BIN
from tests.running import Running

pytestmark = pytest.mark.kernel

Envelope = dict[str, Any]


@pytest.fixture(scope="module")
def program(system: Running) -> Path:
    """What may be executed with the argument `good`, and with nothing else."""
    for name in ("stranger", "second"):
        system.instance.egs("keys", "generate", "--name", name, "--out", str(system.folder))
    return system.copy("/bin/echo", "program")


def issued(
    system: Running, program: Path, *more: str, name: str = "artifact.json", key: str = "issuer"
) -> Path:
    return system.issue(program, "--argv", str(program), "--argv", "good", *more, name=name, key=key)


def run(system: Running, artifact: Path, *command: str | Path) -> tuple[int, str, str]:
    done = system.run("--artifact", str(artifact), "--", *(str(word) for word in command))
    return done.returncode, done.stdout, done.stderr


def refused(outcome: tuple[int, str, str], reason: str) -> None:
    code, out, said = outcome
    assert (code, out, f"[{reason}]" in said) == (126, "", True), said


def test_the_artifact_that_the_forgeries_begin_with_works(system: Running, program: Path) -> None:
    assert run(system, issued(system, program), program, "good")[:2] == (0, "good\n")


# -- changed files -----------------------------------------------------------------------------------


def payload(envelope: Envelope) -> Any:
    return json.loads(base64.b64decode(envelope["payload"]))


def with_payload(envelope: Envelope, statement: Any) -> Envelope:
    content = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return envelope | {"payload": base64.b64encode(content.encode()).decode()}


def other_arguments(envelope: Envelope, _stranger: Envelope) -> Envelope:
    statement = payload(envelope)
    statement["predicate"]["intent"]["argv"][1] = "evil"
    return with_payload(envelope, statement)


def a_longer_validity(envelope: Envelope, _stranger: Envelope) -> Envelope:
    statement = payload(envelope)
    statement["predicate"]["notAfter"] = "2099-01-01T00:00:00Z"
    return with_payload(envelope, statement)


def no_signature(envelope: Envelope, _stranger: Envelope) -> Envelope:
    return envelope | {"signatures": []}


def a_strangers_signature(_envelope: Envelope, stranger: Envelope) -> Envelope:
    return stranger


def a_strangers_signature_by_the_issuers_name(envelope: Envelope, stranger: Envelope) -> Envelope:
    name = envelope["signatures"][0]["keyid"]
    return stranger | {"signatures": [stranger["signatures"][0] | {"keyid": name}]}


def the_issuers_signature_on_the_strangers_payload(envelope: Envelope, stranger: Envelope) -> Envelope:
    return stranger | {"signatures": envelope["signatures"]}


def a_truncated_payload(envelope: Envelope, _stranger: Envelope) -> Envelope:
    content = base64.b64decode(envelope["payload"])
    return envelope | {"payload": base64.b64encode(content[:-1]).decode()}


def another_payload_type(envelope: Envelope, _stranger: Envelope) -> Envelope:
    return envelope | {"payloadType": "text/plain"}


def a_field_that_nobody_knows(envelope: Envelope, _stranger: Envelope) -> Envelope:
    return envelope | {"override": True}


FORGERIES: Final = (
    (other_arguments, "signature_invalid"),
    (a_longer_validity, "signature_invalid"),
    (no_signature, "artifact_malformed"),
    (a_strangers_signature, "key_untrusted"),
    (a_strangers_signature_by_the_issuers_name, "signature_invalid"),
    (the_issuers_signature_on_the_strangers_payload, "signature_invalid"),
    (a_truncated_payload, "signature_invalid"),
    (another_payload_type, "artifact_unknown_version"),
    (a_field_that_nobody_knows, "artifact_unknown_field"),
)


@pytest.mark.parametrize(("forge", "reason"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
def test_a_forged_file(
    system: Running, program: Path, forge: Callable[[Envelope, Envelope], Envelope], reason: str
) -> None:
    good = json.loads(issued(system, program).read_bytes())
    also = issued(system, program, "--purpose", "mine", name="stranger.json", key="stranger")
    stranger = json.loads(also.read_bytes())
    forged = system.folder / "forged.json"
    forged.write_text(json.dumps(forge(good, stranger)))
    refused(run(system, forged, program, "good"), reason)


def test_half_a_file(system: Running, program: Path) -> None:
    content = issued(system, program).read_bytes()
    half = system.folder / "half.json"
    half.write_bytes(content[: len(content) // 2])
    refused(run(system, half, program, "good"), "artifact_malformed")


# -- replays -----------------------------------------------------------------------------------------


def test_for_another_host(system: Running, program: Path) -> None:
    refused(
        run(system, issued(system, program, "--host", "another-host"), program, "good"),
        "host_mismatch",
    )


def test_for_another_scope(system: Running, program: Path) -> None:
    """Its key may not sign for that scope; one that may does not help, as the host has no such scope."""
    other = system.folder / "other.json"
    command = ("issue", "--program", str(program), "--scope", "other", "--out", str(other), "--key")
    system.instance.egs(*command, str(system.folder / "issuer.key"))
    refused(run(system, other, program, "good"), "key_role_mismatch")
    trust = ("trust", "add", str(system.folder / "second.pub"), "--role", "issuer", "--scope", "other")
    system.instance.egs(*trust)
    system.instance.egs("reload")
    system.instance.egs(*command, str(system.folder / "second.key"))
    refused(run(system, other, program, "good"), "scope_unknown")


def test_for_another_program_other_arguments_another_user(system: Running, program: Path) -> None:
    other = system.copy("/bin/cat", "other")
    artifact = issued(system, program, "--uid", "0")
    refused(run(system, artifact, other, "good"), "digest_mismatch")
    refused(run(system, artifact, program, "evil"), "argv_mismatch")
    done = system.as_nobody(str(BIN / "egs"), "run", "--artifact", str(artifact), str(program), "good")
    refused((done.returncode, done.stdout, done.stderr), "identity_mismatch")


def test_once_more_than_it_may_be_used(system: Running, program: Path) -> None:
    artifact = issued(system, program, "--max-uses", "1")
    assert run(system, artifact, program, "good")[0] == 0
    refused(run(system, artifact, program, "good"), "uses_exhausted")


def test_after_it_was_revoked(system: Running, program: Path) -> None:
    artifact = issued(system, program, "--purpose", "to be revoked")
    assert run(system, artifact, program, "good")[0] == 0
    identifier = json.loads(system.instance.egs("show", str(artifact), "--json").stdout)["id"]
    system.instance.egs("revoke", identifier)
    refused(run(system, artifact, program, "good"), "revoked")


def test_after_its_key_was_revoked(system: Running, program: Path) -> None:
    """What a revoked key has signed is worth nothing from then on, whenever it was signed."""
    public = system.folder / "revoked.pub"
    system.instance.egs("keys", "generate", "--name", "revoked", "--out", str(system.folder))
    added = system.instance.egs("trust", "add", str(public), "--role", "issuer", "--scope", "test", "--json")
    system.instance.egs("reload")
    artifact = issued(system, program, key="revoked", name="by-revoked.json")
    assert run(system, artifact, program, "good")[0] == 0
    system.instance.egs("trust", "revoke", json.loads(added.stdout)["keyid"])
    system.instance.egs("reload")
    refused(run(system, artifact, program, "good"), "key_not_valid_now")
