"""Attacker's goal: run what was authorized for another workload, another unit, or by half a signature.

Claims T-34 and T-35 of docs/threat-model.md. tests/unit/test_identity.py has every single rule of SVIDs, tests/unit/test_hybrid.py
those of hybrid keys; here the whole system is asked.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.hosts import PAYLOAD_TYPE, parse_host_statement
from egs_kernel.gate.cgroups import cgroup_mount
from tests.harness import Cgroup
from tests.running import Running
from tests.svids import AGENT, DOMAIN, TrustDomain

pytestmark = pytest.mark.kernel

OURS, FOREIGN = TrustDomain(), TrustDomain(name="other.example")
MLDSA_SIGNATURE = 3309


@pytest.fixture(scope="module")
def program(system: Running) -> Path:
    """A program, a trust bundle for its workload's domain, and a hybrid issuer."""
    folder, egs = system.folder, system.instance.egs
    system.instance.paths.bundles.mkdir(mode=0o755)
    OURS.write(system.instance.paths.bundles)
    egs("keys", "generate", "--name", "hybrid", "--out", str(folder), "--algorithm", "ed25519+ml-dsa-65")
    egs("trust", "add", str(folder / "hybrid.pub"), "--role", "issuer", "--scope", "test")
    egs("reload")
    return system.copy("/bin/true", "program")


def outcome(system: Running, artifact: Path, program: Path, *options: str, **how: Any) -> str:
    """The reason code of a refusal; nothing when it ran."""
    ended = system.run("--artifact", str(artifact), *options, "--", str(program), **how)
    if ended.returncode == 0:
        return ""
    assert ended.returncode == 126, ended.stderr
    return ended.stderr.rpartition("[")[2].partition("]")[0]


# -- a workload --------------------------------------------------------------------------------------


def token(system: Running, domain: TrustDomain = OURS, **claims: Any) -> str:
    """A JWT-SVID for this host's daemon, now, with these claims instead."""
    status = json.loads(system.instance.egs("status", "--json").stdout)
    now = int(time.time())
    audience = f"egs-kernel/{status['details']['host_id']}"
    return domain.token(**{"aud": [audience], "iat": now - 5, "exp": now + 300, **claims})


def unsigned(good: str) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    return f"{header}.{good.split('.')[1]}."


POSES: dict[str, tuple[Callable[[Running], str], str]] = {
    "another workload": (lambda system: token(system, sub=f"spiffe://{DOMAIN}/other"), "identity_mismatch"),
    "another host's": (lambda system: token(system, aud=["egs-kernel/" + "ab" * 16]), "svid_invalid"),
    "of yesterday": (lambda system: token(system, exp=int(time.time()) - 1), "svid_expired"),
    "unsigned": (lambda system: unsigned(token(system)), "svid_invalid"),
    "signed by oneself": (lambda system: token(system, FOREIGN), "svid_invalid"),
    "of another domain": (
        lambda system: token(system, FOREIGN, sub="spiffe://other.example/agents/report"),
        "bundle_untrusted",
    ),
    "no token at all": (lambda _system: "nonsense", "svid_invalid"),
}


@pytest.fixture(scope="module")
def for_the_workload(system: Running, program: Path) -> Path:
    return system.issue(program, "--spiffe-id", AGENT, name="workload.json")


def test_the_workload_itself_runs(system: Running, program: Path, for_the_workload: Path) -> None:
    svid = system.folder / "svid"
    svid.write_text(token(system) + "\n")
    assert outcome(system, for_the_workload, program, "--svid", str(svid)) == ""


def test_nobody_runs_it_without_an_svid(system: Running, program: Path, for_the_workload: Path) -> None:
    assert outcome(system, for_the_workload, program) == "identity_mismatch"


@pytest.mark.parametrize(("pose", "reason"), POSES.values(), ids=POSES)
def test_nobody_poses_as_the_workload(
    pose: Callable[[Running], str], reason: str, system: Running, program: Path, for_the_workload: Path
) -> None:
    svid = system.folder / "svid"
    svid.write_text(pose(system))
    assert outcome(system, for_the_workload, program, "--svid", str(svid)) == reason


# -- a unit ------------------------------------------------------------------------------------------


@contextmanager
def cgroup(*names: str) -> Iterator[Cgroup]:
    """A path of cgroups, as systemd would make it."""
    folders = [cgroup_mount().joinpath(*names[: count + 1]) for count in range(len(names))]
    made = [folder for folder in folders if not folder.exists()]
    for folder in made:
        folder.mkdir()
    try:
        yield Cgroup("/" + "/".join(names), folders[-1])
    finally:
        for folder in reversed(made):
            folder.rmdir()


def test_a_unit_is_the_one_that_the_system_started(system: Running, program: Path) -> None:
    artifact = system.issue(program, "--unit", "report.service", name="unit.json")
    top = f"egs{Path(system.folder).name.replace('-', '').replace('_', '')}.slice"
    with cgroup(top, "report.service", "worker") as inside:
        assert outcome(system, artifact, program, preexec_fn=inside.enter) == ""
    # a user's own manager may call its units what it likes, and anybody with a delegated cgroup a folder
    for path in (
        (top, "user@7.service", "app.slice", "report.service"),
        (top, "other.service", "report.service"),
        (top, "nobodys", "report.service"),
    ):
        with cgroup(*path) as inside:
            assert outcome(system, artifact, program, preexec_fn=inside.enter) == "identity_mismatch"
    assert outcome(system, artifact, program) == "identity_mismatch"


# -- a user ------------------------------------------------------------------------------------------

ASK = """
import json, socket, struct, sys
content = json.dumps({"op": "host_statement", "intent_digest": "ab" * 32, **json.loads(sys.argv[2])}).encode()
with socket.socket(socket.AF_UNIX) as egsd:
    egsd.connect(sys.argv[1])
    egsd.sendall(struct.pack(">I", len(content)) + content)
    answer = egsd.makefile("rb")
    print(answer.read(*struct.unpack(">I", answer.read(4))).decode())
"""


@pytest.mark.parametrize(
    ("user", "more", "reason"),
    [
        (65534, {}, ""),
        (0, {}, ""),
        (65534, {"uid": 0}, "protocol_error"),
        (65534, {"intent_digest": "/etc/shadow"}, "host_statement_invalid"),
    ],
)
def test_the_host_gives_its_word_for_nobody_else(
    system: Running, user: int, more: dict[str, Any], reason: str
) -> None:
    """What its key signs for an authority elsewhere names the user whom the kernel names."""
    words = [
        os.path.realpath(sys.executable),
        "-IS",
        "-c",
        ASK,
        str(system.instance.paths.socket),
        json.dumps(more),
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True, user=user, cwd="/", timeout=60)
    answer = json.loads(said.stdout)
    assert answer.get("reason", "") == reason
    if not reason:
        statement = parse_host_statement(parse_envelope(answer["statement"].encode(), PAYLOAD_TYPE).payload)
        assert (statement.uid, statement.intent_digest) == (user, "ab" * 32)


# -- half a signature --------------------------------------------------------------------------------


def zero_ed25519(signature: bytes) -> bytes:
    return signature[:MLDSA_SIGNATURE] + bytes(64)


def zero_mldsa(signature: bytes) -> bytes:
    return bytes(MLDSA_SIGNATURE) + signature[MLDSA_SIGNATURE:]


HALVES: dict[str, Callable[[bytes], bytes]] = {
    "Ed25519 alone": lambda signature: signature[MLDSA_SIGNATURE:],
    "ML-DSA alone": lambda signature: signature[:MLDSA_SIGNATURE],
    "Ed25519 broken": zero_ed25519,
    "ML-DSA broken": zero_mldsa,
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_a_hybrid_signature_is_none(
    half: Callable[[bytes], bytes], system: Running, program: Path
) -> None:
    artifact = system.issue(program, name="hybrid.json", key="hybrid")
    assert outcome(system, artifact, program) == ""
    envelope = json.loads(artifact.read_text())
    (signature,) = envelope["signatures"]
    signature["sig"] = base64.b64encode(half(base64.b64decode(signature["sig"]))).decode()
    artifact.write_text(json.dumps(envelope))
    assert outcome(system, artifact, program) == "signature_invalid"
