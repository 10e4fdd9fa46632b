"""Revocation: what an artifact hangs on; signed lists, good and bad; what a host knows, and for how long."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import PAYLOAD_TYPE as STATEMENT_TYPE
from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.revocations import LIST_LIMIT, PAYLOAD_TYPE
from egs_kernel.artifact.statement import format_time
from egs_kernel.checks.revocation import (
    SKEW,
    SignedList,
    Ties,
    authenticate_list,
    check_number,
    check_revoked,
    merged,
    revocations_of,
    without,
)
from egs_kernel.config import RevocationConfig
from egs_kernel.daemon.known import Known
from egs_kernel.daemon.revocations import known_of, read_lists, write_list
from egs_kernel.errors import Refused
from egs_kernel.model import Reason, Revoked
from egs_kernel.trust.store import Role
from egs_kernel.verify import authenticate
from tests.unit.issuing import ISSUER, NOW, SECOND, STRANGER, signed, statement, store, trusted

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
SINCE = "2026-11-23T12:00:00Z"
LIST: dict[str, Any] = {
    "_type": "urn:egs-001:revocation-list:v1",
    "scope": "agents",
    "number": 7,
    "issuedAt": "2026-11-23T14:00:00Z",
    "nextUpdate": "2026-11-24T14:00:00Z",
    "revoked": {"artifact": {A: SINCE}, "host": {"web-1": SINCE}},
}
REVOKERS = {"roles": frozenset({Role.REVOKER}), "scopes": frozenset({"agents"})}
TRUST = store(trusted(ISSUER, **REVOKERS))


def content(*signers: Any, payload_type: str = PAYLOAD_TYPE, **changes: Any) -> bytes:
    """A list with changes; signed by ISSUER when no signer is named."""
    value = {**copy.deepcopy(LIST), **changes}
    return sign(canonical.encode(value), signers or (ISSUER,), payload_type, LIST_LIMIT)


def taken(**changes: Any) -> SignedList:
    return authenticate_list(content(**changes), TRUST, NOW)


def why(file: bytes, trust: Any = TRUST) -> Reason:
    with pytest.raises(Refused) as caught:
        authenticate_list(file, trust, NOW)
    assert caught.value.next_step
    return caught.value.reason


# --- what an artifact hangs on --------------------------------------------------------------------


TIES = Ties(artifact=A, scope="agents", keys=("k1", "k2"), threshold=1, subjects=(B, C), policy="p")


@pytest.mark.parametrize(
    ("revoked", "words"),
    [
        (Revoked(artifact={A: SINCE}), f"it was revoked at {SINCE}"),
        (Revoked(key={"k1": SINCE, "k2": SINCE}), "the key that signed it was revoked"),
        (Revoked(subject={C: SINCE}), f"the file with the SHA-256 {C} was revoked at {SINCE}"),
        (Revoked(policy={"p": SINCE}), f"the policy set p was revoked at {SINCE}"),
        (Revoked(host={"here": SINCE}), f"this host (here) was revoked at {SINCE}"),
    ],
    ids=str,
)
def test_each_kind_refuses_and_says_since_when(revoked: Revoked, words: str) -> None:
    with pytest.raises(Refused) as caught:
        check_revoked(TIES, revoked, "here")
    assert caught.value.reason is Reason.REVOKED
    assert words in caught.value.message
    assert SINCE in caught.value.message


def test_what_it_does_not_hang_on_changes_nothing() -> None:
    others = Revoked(
        artifact={B: SINCE}, key={"k1": SINCE}, subject={A: SINCE}, policy={"q": SINCE}, host={"there": SINCE}
    )
    check_revoked(TIES, others, "here")  # one of two keys is left, and one is enough


def test_everything_that_was_revoked_is_told() -> None:
    everything = Revoked(
        artifact={A: SINCE},
        key={"k1": SINCE, "k2": SINCE},
        subject={B: SINCE, C: SINCE},
        host={"here": SINCE},
    )
    found = [taken.kind for taken in revocations_of(TIES, everything, "here")]
    assert found == ["artifact", "host", "key", "subject", "subject"]


def test_as_many_keys_as_the_threshold_must_remain() -> None:
    content = signed(statement(), ISSUER, SECOND)
    trust = store(trusted(ISSUER), trusted(SECOND), agents=2)
    found = authenticate(content, trust, NOW)
    for signer in (ISSUER, SECOND):
        with pytest.raises(Refused):
            check_revoked(found.ties, Revoked(key={signer.public_key.keyid: SINCE}), "here")
    lenient = authenticate(content, store(trusted(ISSUER), trusted(SECOND)), NOW)
    check_revoked(lenient.ties, Revoked(key={ISSUER.public_key.keyid: SINCE}), "here")


def test_a_key_and_its_successor_are_no_two_holders_when_a_third_is_revoked() -> None:
    replaced = trusted(SECOND, replaces=ISSUER.public_key.keyid)
    trust = store(trusted(ISSUER), replaced, trusted(STRANGER), agents=2)
    found = authenticate(signed(statement(), ISSUER, SECOND, STRANGER), trust, NOW)
    with pytest.raises(Refused):
        check_revoked(found.ties, Revoked(key={STRANGER.public_key.keyid: SINCE}), "here")


def test_of_two_times_the_earlier_counts() -> None:
    late = "2026-11-23T13:00:00Z"
    found = merged([Revoked(key={A: late}), Revoked(key={A: SINCE, B: late}), Revoked(host={"h": late})])
    assert found == Revoked(key={A: SINCE, B: late}, host={"h": late})


def test_a_revoked_key_signs_nothing_else_either() -> None:
    trust = without(TRUST, {ISSUER.public_key.keyid: SINCE})
    assert why(content(), trust) is Reason.KEY_NOT_VALID_NOW


# --- a list ---------------------------------------------------------------------------------------


def test_a_list_says_what_is_revoked() -> None:
    found = taken()
    assert found.signers == (ISSUER.public_key.keyid,)
    assert found.content.things == Revoked(artifact={A: SINCE}, host={"web-1": SINCE})
    assert (found.content.count, found.content.number, found.content.scope) == (2, 7, "agents")


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "urn:egs-001:revocation-list:v2"},
        {"number": 0},
        {"number": -1},
        {"number": "7"},
        {"scope": ""},
        {"scope": "a*"},
        {"scope": "**"},
        {"scope": "A"},
        {"issuedAt": "2026-11-23 14:00:00Z"},
        {"issuedAt": "2026-13-23T14:00:00Z"},
        {"nextUpdate": "2026-11-23T14:00:00Z"},
        {"more": 1},
        {"revoked": {"artifact": {"aa": SINCE}}},
        {"revoked": {"artifact": {A.upper(): SINCE}}},
        {"revoked": {"artifact": {A: "now"}}},
        {"revoked": {"artifact": {A: "2026-02-30T00:00:00Z"}}},
        {"revoked": {"artifact": [A]}},
        {"revoked": {"artifact": {}}},
        {"revoked": {"file": {A: SINCE}}},
        {"revoked": {"host": {"a\nb": SINCE}}},
        {"revoked": []},
        {"revoked": None},
    ],
    ids=str,
)
def test_a_list_that_says_something_else_is_refused(changes: dict[str, Any]) -> None:
    assert why(content(**changes)) is Reason.REVOCATION_LIST_MALFORMED


def test_whoever_may_not_revoke_is_refused() -> None:
    assert why(content(STRANGER)) is Reason.KEY_UNTRUSTED
    assert why(content(), store(trusted(ISSUER))) is Reason.KEY_ROLE_MISMATCH  # an issuer's key
    assert why(content(scope="*")) is Reason.KEY_ROLE_MISMATCH  # of one scope, for all
    assert why(content(scope="other")) is Reason.KEY_ROLE_MISMATCH
    two = store(trusted(ISSUER, **REVOKERS), trusted(SECOND, **REVOKERS), agents=2)
    assert why(content(), two) is Reason.THRESHOLD_NOT_MET
    assert authenticate_list(content(ISSUER, SECOND), two, NOW).content.number == 7


def test_what_is_no_list_is_refused() -> None:
    assert why(b"") is Reason.ARTIFACT_MALFORMED
    assert why(content()[:-20]) is Reason.ARTIFACT_MALFORMED
    assert why(b"x" * (LIST_LIMIT + 1)) is Reason.ARTIFACT_TOO_LARGE
    assert why(content(payload_type=STATEMENT_TYPE)) is Reason.ARTIFACT_UNKNOWN_VERSION
    assert why(signed(statement())) is Reason.ARTIFACT_UNKNOWN_VERSION
    loose = sign(b'{"number": 7}', (ISSUER,), PAYLOAD_TYPE)
    assert why(loose) is Reason.ARTIFACT_NOT_CANONICAL
    forged = content().replace(b'"sig":"', b'"sig":"A', 1)
    assert why(forged) in {Reason.SIGNATURE_INVALID, Reason.ARTIFACT_MALFORMED}


def test_no_artifact_is_taken_for_a_list_nor_a_list_for_an_artifact() -> None:
    with pytest.raises(Refused) as caught:
        authenticate(content(), TRUST, NOW)
    assert caught.value.reason is Reason.ARTIFACT_UNKNOWN_VERSION


def test_a_list_from_the_future_is_refused() -> None:
    soon, later = (format_time(NOW + SKEW + timedelta(seconds=more)) for more in (0, 1))
    end = "2027-11-23T14:00:00Z"
    assert taken(issuedAt=soon, nextUpdate=end).content.issued_at == soon
    assert why(content(issuedAt=later, nextUpdate=end)) is Reason.REVOCATION_LIST_EARLY


def test_a_number_only_rises() -> None:
    found = taken()
    assert check_number(found, None)
    assert check_number(found, (6, "x"))
    assert not check_number(found, (7, found.digest))  # the same list once more
    for known in ((7, "another list of this number"), (8, "x")):
        with pytest.raises(Refused) as caught:
            check_number(found, known)
        assert caught.value.reason is Reason.REVOCATION_LIST_ROLLED_BACK


# --- what a host knows ----------------------------------------------------------------------------


def test_a_list_is_for_its_scope_and_the_next_one_takes_its_place() -> None:
    known = Known(said=Revoked(key={B: SINCE}))
    known.put(taken())
    assert known.of("agents") == Revoked(artifact={A: SINCE}, key={B: SINCE}, host={"web-1": SINCE})
    assert known.of("ci") == Revoked(key={B: SINCE})
    known.revoke("subject", C, SINCE)
    assert known.of("ci") == Revoked(key={B: SINCE}, subject={C: SINCE})
    known.put(taken(number=8, revoked={"policy": {A: SINCE}}))
    assert known.of("agents") == Revoked(key={B: SINCE}, subject={C: SINCE}, policy={A: SINCE})
    known.put(
        authenticate_list(
            content(scope="*", revoked={"host": {"h": SINCE}}),
            store(trusted(ISSUER, roles=frozenset({Role.REVOKER}), scopes=frozenset({"*"}))),
            NOW,
        )
    )
    assert known.of("ci").host == {"h": SINCE}
    assert known.of("agents").host == {"h": SINCE}
    assert known.of("ci") is known.of("others"), "a long list is not kept once for each scope"


def test_a_list_is_good_until_it_is_too_old() -> None:
    demand = RevocationConfig(max_age="1h", scopes=("agents",))
    known = Known()
    assert "no list" in known.knowledge("agents", demand, NOW).problem
    assert known.knowledge("ci", demand, NOW).problem == ""
    assert known.knowledge("agents", RevocationConfig(), NOW).problem == ""
    known.put(taken())
    end = NOW + timedelta(minutes=30)  # an hour after issuedAt
    assert known.knowledge("agents", demand, NOW).until == end
    assert known.knowledge("agents", demand, end - timedelta(seconds=1)).problem == ""
    assert "good until" in known.knowledge("agents", demand, end).problem
    assert known.next_boundary(demand, NOW) == end
    assert known.next_boundary(RevocationConfig(), NOW) is None
    known.put(taken(number=8, nextUpdate="2026-11-23T14:40:00Z"))
    assert known.knowledge("agents", demand, NOW).until == NOW + timedelta(minutes=10)
    everywhere = store(trusted(ISSUER, roles=frozenset({Role.REVOKER}), scopes=frozenset({"*"})))
    for_all = content(scope="*", nextUpdate="2026-11-23T14:35:00Z")
    known.put(authenticate_list(for_all, everywhere, NOW))
    assert known.knowledge("agents", demand, NOW).until == NOW + timedelta(minutes=5)  # the older of both


def test_a_list_from_the_first_moment_that_can_be_written() -> None:
    """Too old it is; no clock goes back behind it."""
    demand = RevocationConfig(max_age="1h")
    known = Known()
    known.put(taken(issuedAt="0001-01-01T00:00:00Z"))
    assert "good until" in known.knowledge("agents", demand, NOW).problem
    assert known.next_boundary(demand, NOW) is None


def test_a_clock_that_was_set_back_is_noticed() -> None:
    demand = RevocationConfig(max_age="1h")
    known = Known()
    known.put(taken())
    wrong = NOW - timedelta(minutes=36)
    assert "here it is" in known.knowledge("agents", demand, wrong).problem
    assert known.next_boundary(demand, wrong) == NOW - timedelta(minutes=35)


# --- its file -------------------------------------------------------------------------------------


def test_lists_are_files_that_the_record_pins_down(tmp_path: Path) -> None:
    folder = tmp_path / "revoked"
    folder.mkdir(mode=0o755)
    file = content()
    found = taken()
    write_list(folder, "agents", file)
    pinned = {"agents": (7, found.digest)}
    assert read_lists(folder, pinned) == {"agents": found}
    assert read_lists(folder, {}) == {"agents": found}  # the record had no time to name it
    assert read_lists(folder, {"agents": (6, "x")}) == {"agents": found}
    assert read_lists(folder, {"agents": (8, "x")}) == {}  # rolled back
    assert read_lists(folder, {"agents": (7, "x")}) == {}  # another one
    known = known_of(folder, Revoked(), {"agents": (8, "x")})
    assert (
        "number 8" in known.knowledge("agents", RevocationConfig(), NOW).problem
    )  # whoever demands one or not
    assert known.knowledge("ci", RevocationConfig(), NOW).problem == ""
    assert known_of(folder, Revoked(), {"agents": (6, "x")}).numbers == pinned


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", None], ids=str)
def test_a_file_that_is_no_list_is_a_list_that_is_missing(tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "revoked"
    folder.mkdir(mode=0o755)
    if content is not None:
        (folder / "list-agents.json").write_bytes(content)
    known = known_of(folder, Revoked(), {"agents": (7, "x")})
    assert "missing" in known.knowledge("agents", RevocationConfig(), NOW).problem


def test_a_list_of_another_scope_in_its_place_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "revoked"
    folder.mkdir(mode=0o755)
    write_list(folder, "ci", content())
    assert read_lists(folder, {}) == {}
