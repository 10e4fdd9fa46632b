"""What the tests of artifacts share: a statement as plain JSON, keys, a store, a host, an intent."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import sign
from egs_kernel.model import HostFacts, Intent, Posture, ProgramKind, Tier
from egs_kernel.trust.keys import Algorithm, generate
from egs_kernel.trust.store import Role, TrustedKey, TrustStore

if TYPE_CHECKING:
    from egs_kernel.sslib import Signer

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
PROGRAM_DIGEST = "ab" * 32
SCRIPT_DIGEST = "cd" * 32
POLICY_DIGEST = "ef" * 32
ISSUER = generate(Algorithm.ED25519)
SECOND = generate(Algorithm.ECDSA_P256)
STRANGER = generate(Algorithm.ED25519)

STATEMENT: dict[str, Any] = {
    "_type": "https://in-toto.io/Statement/v1",
    "predicateType": "urn:egs-001:execution-authorization:v1",
    "subject": [
        {
            "name": "/usr/bin/report",
            "digest": {"sha256": PROGRAM_DIGEST},
            "annotations": {"role": "program"},
        }
    ],
    "predicate": {
        "issuedAt": "2026-11-23T14:00:00Z",
        "notBefore": "2026-11-23T14:00:00Z",
        "notAfter": "2026-11-23T15:00:00Z",
        "scope": {"name": "agents"},
    },
}
EVERY_FIELD: dict[str, Any] = {
    "identity": {
        "user": "svc",
        "uid": 1000,
        "groups": ["staff", 50],
        "spiffeId": "spiffe://example.org/agent",
        "hosts": ["host-1"],
        "hostLabels": ["prod"],
        "cgroup": "/egs.slice/agents",
        "unit": "report.service",
    },
    "scope": {"name": "agents", "policyDigest": POLICY_DIGEST},
    "intent": {
        "argv": ["report", "*", "--now"],
        "cwd": "/srv",
        "environment": {"allow": ["PATH"], "set": {"HOME": "/srv"}},
        "purpose": "the nightly report",
    },
    "constraints": {"syscalls": {"profile": "default", "deny": ["mount"], "action": "errno"}},
    "uses": 3,
    "lineage": {
        "parentArtifact": "01" * 32,
        "parentExecution": "17",
        "requestId": "r-1",
        "intentDigest": "02" * 32,
    },
    "governance": {
        "issuer": "platform",
        "approvers": ["kim", "lee"],
        "ticket": "CHG-1",
        "risk": "low",
        "policyEngine": "cedar 4",
        "determiningPolicies": ["nightly"],
    },
}


def statement(predicate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A valid statement with these fields of the predicate, and of the statement, instead."""
    value = copy.deepcopy(STATEMENT)
    value["predicate"].update(copy.deepcopy(predicate or {}))
    value.update(copy.deepcopy(changes))
    return value


def signed(value: Any, *signers: Signer) -> bytes:
    """The artifact file of a JSON value; signed by ISSUER when no signer is named."""
    return sign(canonical.encode(value), signers or (ISSUER,))


def trusted(signer: Signer, **changes: Any) -> TrustedKey:
    """An issuer for the scope "agents", with changes."""
    fields: dict[str, Any] = {"roles": frozenset({Role.ISSUER}), "scopes": frozenset({"agents"}), **changes}
    return TrustedKey(key=signer.public_key, **fields)


def store(*keys: TrustedKey, **thresholds: int) -> TrustStore:
    """A trust store; of ISSUER alone when no key is named."""
    entries = keys or (trusted(ISSUER),)
    return TrustStore({entry.keyid: entry for entry in entries}, thresholds)


def host(**changes: Any) -> HostFacts:
    """A host on which EVERY_FIELD is authorized."""
    posture = Posture(
        kernel="6.18",
        boot_id="b",
        lockdown="integrity",
        tier=Tier.TRACEPOINT,
        gate=(),
        policy_digest=POLICY_DIGEST,
        clock_synchronized=True,
    )
    fields: dict[str, Any] = {
        "host_id": "host-1",
        "labels": frozenset({"prod", "eu"}),
        "scopes": frozenset({"agents"}),
        "policy_digest": POLICY_DIGEST,
        "posture": posture,
        "enforceable": frozenset({"syscalls"}),
        "users": {"svc": 1000},
        "group_ids": {"staff": 20},
        **changes,
    }
    return HostFacts(**fields)


def intent(**changes: Any) -> Intent:
    """A launch that EVERY_FIELD authorizes."""
    fields: dict[str, Any] = {
        "program": "/usr/bin/report",
        "digest": PROGRAM_DIGEST,
        "argv": ("report", "anything", "--now"),
        "cwd": "/srv",
        "environment": (("HOME", "/srv"), ("PATH", "/usr/bin")),
        "uid": 1000,
        "groups": (1000, 20, 50),
        "program_kind": ProgramKind.NATIVE,
        "spiffe_id": "spiffe://example.org/agent",
        "unit": "report.service",
        **changes,
    }
    return Intent(**fields)
