"""Policy sets: addressed by their content, signed by those who may, never older than before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import sign
from egs_kernel.checks.policy import policy_revocation
from egs_kernel.checks.policy_sets import SignedSet, authenticate_set, check_newer
from egs_kernel.checks.revocation import without
from egs_kernel.errors import EgsError, Refused
from egs_kernel.model import Reason, Revoked
from egs_kernel.policy.manifest import PAYLOAD_TYPE, SET_LIMIT, TYPE, Manifest, parse_manifest
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.vocabulary import SCHEMA
from egs_kernel.sslib import CryptoSigner
from egs_kernel.trust.store import Role, TrustedKey, TrustStore

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
PERMIT = '@id("all") permit(principal, action, resource);\n'
MANIFEST = Manifest(
    type=TYPE, name="agents", version=3, scopes=("agents",), policies={"a.cedar": PERMIT}, schema=SCHEMA
)
SIGNER, OTHER = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ecdsa()


def trust(
    *scopes: str,
    role: Role = Role.POLICY,
    thresholds: dict[str, int] | None = None,
    signers: tuple[Any, ...] = (SIGNER,),
) -> TrustStore:
    keys = [
        TrustedKey(key=signer.public_key, roles=frozenset({role}), scopes=frozenset(scopes))
        for signer in signers
    ]
    return TrustStore({key.keyid: key for key in keys}, thresholds or {})


def signed(manifest: Manifest = MANIFEST, *signers: CryptoSigner) -> bytes:
    return sign(manifest.payload, signers or (SIGNER,), PAYLOAD_TYPE, SET_LIMIT)


def reason(content: bytes, store: TrustStore) -> Reason:
    with pytest.raises(Refused) as caught:
        authenticate_set(content, store, NOW)
    return caught.value.reason


def test_a_signed_set_is_what_was_signed() -> None:
    found = authenticate_set(signed(), trust("agents"), NOW)
    assert found.manifest == MANIFEST
    assert found.digest == PolicySet.of(MANIFEST).digest
    assert found.signers == (SIGNER.public_key.keyid,)


def test_the_digest_is_that_of_the_content() -> None:
    changed = msgspec.structs.replace(MANIFEST, policies={"a.cedar": PERMIT + " "})
    assert changed.digest != MANIFEST.digest
    assert signed(MANIFEST, SIGNER) != signed(MANIFEST, OTHER)
    assert (
        authenticate_set(signed(MANIFEST, OTHER), trust("agents", signers=(OTHER,)), NOW).digest
        == MANIFEST.digest
    )


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.POLICY])
def test_a_key_without_the_role_signs_no_set(role: Role) -> None:
    assert reason(signed(), trust("agents", role=role)) is Reason.KEY_ROLE_MISMATCH


def test_a_key_must_be_for_every_scope_of_the_set() -> None:
    both = msgspec.structs.replace(MANIFEST, scopes=("agents", "trading"))
    assert reason(signed(both), trust("agents")) is Reason.KEY_ROLE_MISMATCH
    every = msgspec.structs.replace(MANIFEST, scopes=("*",))
    assert reason(signed(every), trust("agents")) is Reason.KEY_ROLE_MISMATCH
    assert authenticate_set(signed(every), trust("*"), NOW).manifest.governs("trading")


def test_a_set_for_every_scope_needs_what_the_most_careful_asks_for() -> None:
    every = msgspec.structs.replace(MANIFEST, scopes=("*",))
    store = trust("*", thresholds={"trading": 2}, signers=(SIGNER, OTHER))
    assert reason(signed(every), store) is Reason.THRESHOLD_NOT_MET
    assert authenticate_set(signed(every, SIGNER, OTHER), store, NOW)


def test_an_artifact_is_no_set() -> None:
    assert reason(sign(MANIFEST.payload, [SIGNER]), trust("agents")) is Reason.ARTIFACT_UNKNOWN_VERSION


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"version": 0},
        {"version": "3"},
        {"scopes": []},
        {"scopes": ["Agents"]},
        {"scopes": ["*x"]},
        {"policies": {}},
        {"policies": {"../a.cedar": PERMIT}},
        {"_type": "urn:egs-001:policy-set:v2"},
        {"catalog": {"agent": [{"name": "a", "account": "b", "tools": ["none"]}]}},
        {"catalog": {"agent": [{"name": "a", "account": "b"}, {"name": "c", "account": "b"}]}},
        {"catalog": {"tool": [{"name": "git"}]}},
        {"catalog": {"workload": [{"name": "w"}]}},
        {"description": None},
    ],
    ids=str,
)
def test_what_is_no_set(changes: dict[str, Any]) -> None:
    payload = canonical.encode({**msgspec.to_builtins(MANIFEST), **changes})
    with pytest.raises(Refused) as caught:
        parse_manifest(payload)
    assert caught.value.reason is Reason.POLICY_INVALID


def test_another_schema_is_refused() -> None:
    with pytest.raises(EgsError) as caught:
        PolicySet.of(msgspec.structs.replace(MANIFEST, schema="entity User;"))
    assert caught.value.reason is Reason.POLICY_INVALID


@pytest.mark.parametrize(
    ("signers", "gone", "threshold", "taken"),
    [
        ((SIGNER,), (), 1, False),
        ((SIGNER,), (SIGNER,), 1, True),
        ((SIGNER, OTHER), (SIGNER,), 1, False),
        ((SIGNER, OTHER), (SIGNER,), 2, True),
        ((SIGNER, OTHER), (SIGNER, OTHER), 1, True),
        ((SIGNER,), (OTHER,), 1, False),
    ],
)
def test_an_active_set_falls_with_too_many_of_its_keys(
    signers: tuple[CryptoSigner, ...], gone: tuple[CryptoSigner, ...], threshold: int, *, taken: bool
) -> None:
    """Whether the host was told, or the trust folder says so."""
    ids = {signer.public_key.keyid: True for signer in signers}
    store = trust("agents", signers=(SIGNER, OTHER), thresholds={"agents": threshold})
    said = Revoked(key={signer.public_key.keyid: "2026-01-01T00:00:00Z" for signer in gone})
    assert bool(policy_revocation("d", ids, store, said, "agents")) is taken
    assert bool(policy_revocation("d", ids, without(store, said.key), Revoked(), "agents")) is taken


def test_an_active_set_falls_by_its_digest_and_not_by_a_key_that_is_only_old() -> None:
    keyid = SIGNER.public_key.keyid
    told = Revoked(policy={"d": "2026-01-01T00:00:00Z"})
    assert policy_revocation("d", {keyid: True}, trust("agents"), told, "agents").endswith(
        "2026-01-01T00:00:00Z"
    )
    assert policy_revocation("e", {keyid: True}, trust("agents"), told, "agents") == ""
    assert policy_revocation("d", {keyid: True}, TrustStore(), Revoked(), "agents") == "", "it was removed"
    said = Revoked(key={keyid: "2026-01-01T00:00:00Z"})
    assert policy_revocation("d", {keyid: True}, TrustStore(), said, "agents"), "removed, and revoked as well"
    store = trust("agents", signers=(SIGNER, OTHER))
    unseen = {keyid: True, OTHER.public_key.keyid: False}
    assert policy_revocation("d", unseen, store, said, "agents"), (
        "a signature that nobody verified holds nothing up"
    )


def candidate(version: int, digest: str = "a") -> SignedSet:
    return SignedSet(manifest=msgspec.structs.replace(MANIFEST, version=version), digest=digest, signers=())


@pytest.mark.parametrize(("version", "digest"), [(2, "a"), (3, "b"), (1, "b")])
def test_an_older_set_is_refused(version: int, digest: str) -> None:
    with pytest.raises(Refused) as caught:
        check_newer(candidate(version, digest), (3, "a"))
    assert caught.value.reason is Reason.POLICY_OUTDATED


@pytest.mark.parametrize("known", [None, (3, "a"), (2, "b")])
def test_a_newer_set_or_the_same_is_taken(known: tuple[int, str] | None) -> None:
    check_newer(candidate(3), known)
