"""Maintenance artifacts: what lifts a seal, and what does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.maintenance import (
    MAX_DAYS,
    MaintenancePredicate,
    host_digest,
    maintenance_statement,
    parse_maintenance,
)
from egs_kernel.artifact.statement import encode_statement, format_time
from egs_kernel.cli.main import run
from egs_kernel.errors import Refused
from egs_kernel.maintenance import authenticate_maintenance, permit, require_liftable
from egs_kernel.model import Reason
from egs_kernel.trust.keys import Algorithm, generate
from egs_kernel.trust.store import Role, TrustedKey, TrustStore

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.sslib import Signer

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
KEEPER, OTHER, ISSUER, STRANGER = (generate(Algorithm.ED25519) for _ in range(4))


def trusted(signer: Signer, role: Role = Role.MAINTENANCE, **fields: Any) -> TrustedKey:
    given: dict[str, Any] = {"scopes": frozenset({"maintenance"})} | fields
    return TrustedKey(key=signer.public_key, roles=frozenset({role}), **given)


def store(*keys: TrustedKey, **thresholds: int) -> TrustStore:
    return TrustStore({key.keyid: key for key in keys}, thresholds)


TRUST = store(trusted(KEEPER), trusted(OTHER), trusted(ISSUER, Role.ISSUER, scopes=frozenset({"*"})))


def predicate(start: timedelta = timedelta(0), end: timedelta = timedelta(hours=1)) -> MaintenancePredicate:
    return MaintenancePredicate(
        issued_at=format_time(NOW + min(start, timedelta(0))),
        not_before=format_time(NOW + start),
        not_after=format_time(NOW + end),
        purpose="upgrade to 0.4",
        operator="jo",
    )


def artifact(*signers: Signer, hosts: tuple[str, ...] = ("h1", "h2"), **window: timedelta) -> bytes:
    return sign(encode_statement(maintenance_statement(hosts, predicate(**window))), signers or (KEEPER,))


def lift(
    content: bytes, trust: TrustStore = TRUST, *, host: str = "h1", spent: frozenset[str] = frozenset()
) -> datetime:
    return permit(authenticate_maintenance(content, trust, NOW), host_id=host, spent=spent, now=NOW)


def test_it_lifts_the_seal_of_the_hosts_that_it_names_until_its_end() -> None:
    assert lift(artifact()) == lift(artifact(), host="h2") == NOW + timedelta(hours=1)
    assert authenticate_maintenance(artifact(KEEPER, STRANGER), TRUST, NOW).signers == (
        KEEPER.public_key.keyid,
    )


@pytest.mark.parametrize(
    ("content", "trust", "reason"),
    [
        (artifact(STRANGER), TRUST, Reason.KEY_UNTRUSTED),
        (artifact(ISSUER), TRUST, Reason.KEY_ROLE_MISMATCH),
        (artifact(), store(trusted(KEEPER, scopes=frozenset({"agents"}))), Reason.KEY_ROLE_MISMATCH),
        (artifact(), store(trusted(KEEPER, revoked=NOW)), Reason.KEY_NOT_VALID_NOW),
        (artifact(), store(trusted(KEEPER), trusted(OTHER), maintenance=2), Reason.THRESHOLD_NOT_MET),
        (artifact(start=timedelta(minutes=1)), TRUST, Reason.NOT_YET_VALID),
        (artifact(start=timedelta(hours=-2), end=timedelta(0)), TRUST, Reason.EXPIRED),
        (artifact(hosts=("h3",)), TRUST, Reason.HOST_MISMATCH),
    ],
)
def test_what_does_not_lift_it(content: bytes, trust: TrustStore, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        lift(content, trust)
    assert refused.value.reason is reason


def test_two_sign_where_two_are_needed() -> None:
    assert lift(artifact(KEEPER, OTHER), store(trusted(KEEPER), trusted(OTHER), maintenance=2)) > NOW


def test_it_lifts_a_seal_once() -> None:
    content = artifact()
    spent = frozenset({authenticate_maintenance(content, TRUST, NOW).id})
    with pytest.raises(Refused) as refused:
        lift(content, spent=spent)
    assert refused.value.reason is Reason.REVOKED


def test_a_changed_payload_is_not_signed() -> None:
    envelope = json.loads(artifact())
    envelope["payload"] = json.loads(artifact(hosts=("h9",)))["payload"]
    with pytest.raises(Refused) as refused:
        lift(json.dumps(envelope).encode(), host="h9")
    assert refused.value.reason is Reason.SIGNATURE_INVALID


def change(**fields: Any) -> bytes:
    payload = json.loads(encode_statement(maintenance_statement(("h1",), predicate())))
    for path, value in fields.items():
        *above, last = path.split("__")
        at = payload
        for name in above:
            at = at[name]
        at[last] = value
    return json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"[]", Reason.ARTIFACT_MALFORMED),
        (b"{ }", Reason.ARTIFACT_NOT_CANONICAL),
        (change(predicateType="urn:egs-001:execution-authorization:v1"), Reason.ARTIFACT_UNKNOWN_VERSION),
        (change(predicateType="urn:egs-001:maintenance:v2"), Reason.ARTIFACT_UNKNOWN_VERSION),
        (change(subject=[]), Reason.ARTIFACT_MALFORMED),
        (change(subject=[{"name": "h1", "digest": {"sha256": "0" * 64}}]), Reason.ARTIFACT_MALFORMED),
        (
            change(subject=[{"name": "h1", "digest": {"sha256": host_digest("h1")}}] * 2),
            Reason.ARTIFACT_MALFORMED,
        ),
        (change(predicate__forever=True), Reason.ARTIFACT_UNKNOWN_FIELD),
        (change(predicate__purpose=""), Reason.ARTIFACT_MALFORMED),
        (change(predicate__ticket=None), Reason.ARTIFACT_MALFORMED),
        (change(predicate__notAfter=format_time(NOW)), Reason.ARTIFACT_MALFORMED),
        (
            change(predicate__notAfter=format_time(NOW + timedelta(days=MAX_DAYS, seconds=1))),
            Reason.ARTIFACT_MALFORMED,
        ),
    ],
)
def test_what_is_no_maintenance_artifact(payload: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        parse_maintenance(payload)
    assert refused.value.reason is reason


def test_nobody_seals_what_nobody_could_lift() -> None:
    require_liftable(TRUST, NOW)
    for trust in (store(), store(trusted(KEEPER, not_after=NOW)), store(trusted(KEEPER), maintenance=2)):
        with pytest.raises(Refused, match="nobody could lift the seal"):
            require_liftable(trust, NOW)


def test_the_command_writes_what_others_can_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        run(["keys", "generate", "--name", name, "--out", str(tmp_path)])
    out = tmp_path / "maintenance.json"
    words = ["maintenance", "issue", "--key", str(tmp_path / "one.key"), "--host", "h1", "--out", str(out)]
    assert run([*words, "--purpose", "upgrade", "--operator", "jo", "--valid-for", "30m"]) == 0
    assert run(["sign", str(out), "--key", str(tmp_path / "two.key")]) == 0
    assert len(json.loads(out.read_text())["signatures"]) == 2
    capsys.readouterr()
    assert run([*words, "--purpose", "upgrade", "--operator", "jo", "--valid-for", "8d"]) == 2
    assert "7 days at most" in capsys.readouterr().err
