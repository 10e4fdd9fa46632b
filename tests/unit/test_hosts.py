"""A host that says who asks there: an authority on another host believes it by the host's key, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.envelope import parse_envelope, sign
from egs_kernel.artifact.hosts import PAYLOAD_TYPE, STATEMENT_TYPE, sign_host_statement
from egs_kernel.artifact.statement import format_time, parse_statement
from egs_kernel.audit.entries import Issuance, Submission
from egs_kernel.authority.hosts import prove_host
from egs_kernel.authority.intent import IntentDocument, NamedFile, encode_intent, intent_digest
from egs_kernel.cli.asking import ask
from egs_kernel.errors import EgsError, Refused
from egs_kernel.hostkey import host_signer, open_host_key
from egs_kernel.model import Reason
from egs_kernel.sslib import Signer
from egs_kernel.trust.store import Role, TrustedKey, add
from tests.authorities import HTTPS, Home, body_of, home
from tests.unit.issuing import ISSUER, NOW, SECOND, STRANGER, store, trusted

HOST, MINUTE = "host-7", timedelta(minutes=1)
INTENT = IntentDocument(
    program=NamedFile(path="/usr/bin/report", sha256="ab" * 32), argv=("report",), host=HOST, uid=1000
)
DIGEST = intent_digest(encode_intent(INTENT))


def enrolled(signer: Signer = ISSUER, **changes: Any) -> TrustedKey:
    fields: dict[str, Any] = {"roles": frozenset({Role.HOST}), "scopes": frozenset({"*"}), "name": HOST}
    return trusted(signer, **(fields | changes))


def statement(signer: Signer = ISSUER, **changes: Any) -> str:
    said: dict[str, Any] = {"host_id": HOST, "uid": 1000, "intent_digest": DIGEST, "now": NOW, **changes}
    return sign_host_statement(signer, **said)


def odd(**changes: Any) -> str:
    """What no egsd signs."""
    said = {"_type": STATEMENT_TYPE, "hostId": HOST, "uid": 1000, "intentDigest": DIGEST}
    value = {**said, "signedAt": format_time(NOW), **changes}
    return sign(canonical.encode(value), [ISSUER], PAYLOAD_TYPE).decode()


def prove(said: str, intent: IntentDocument = INTENT, *keys: TrustedKey) -> str:
    return prove_host(said, intent, store(*(keys or (enrolled(),))), NOW, MINUTE)


def test_an_enrolled_host_is_proven_by_its_key() -> None:
    assert prove(statement()) == ISSUER.public_key.keyid
    for clock in (NOW - MINUTE, NOW + MINUTE):
        prove(statement(now=clock))


WRONG: dict[str, tuple[Callable[[], str], Reason]] = {
    "a stranger's": (lambda: prove(statement(STRANGER)), Reason.KEY_UNTRUSTED),
    "signed twice": (
        lambda: prove(
            sign(
                parse_envelope(statement().encode(), PAYLOAD_TYPE).payload, [ISSUER, SECOND], PAYLOAD_TYPE
            ).decode(),
            INTENT,
            enrolled(),
            enrolled(SECOND),
        ),
        Reason.HOST_STATEMENT_INVALID,
    ),
    "changed": (
        lambda: prove(statement().replace("host-statement", "host-stat3ment", 1)),
        Reason.ARTIFACT_UNKNOWN_VERSION,
    ),
    "nonsense": (lambda: prove("nonsense"), Reason.ARTIFACT_MALFORMED),
    "no text": (lambda: prove("\ud800"), Reason.ARTIFACT_MALFORMED),
    "too large": (lambda: prove("x" * 5000), Reason.ARTIFACT_TOO_LARGE),
    "an artifact": (
        lambda: prove(sign(b"{}", [ISSUER]).decode()),
        Reason.ARTIFACT_UNKNOWN_VERSION,
    ),
    "of another version": (
        lambda: prove(odd(_type="urn:egs-001:host-statement:v2")),
        Reason.HOST_STATEMENT_INVALID,
    ),
    "an unknown field": (lambda: prove(odd(more=1)), Reason.HOST_STATEMENT_INVALID),
    "no time": (lambda: prove(odd(signedAt="2026-02-30T00:00:00Z")), Reason.HOST_STATEMENT_INVALID),
    "old": (lambda: prove(statement(now=NOW - MINUTE - timedelta(seconds=1))), Reason.HOST_STATEMENT_INVALID),
    "of the future": (
        lambda: prove(statement(now=NOW + MINUTE + timedelta(seconds=1))),
        Reason.HOST_STATEMENT_INVALID,
    ),
    "for another intent": (lambda: prove(statement(intent_digest="cd" * 32)), Reason.HOST_STATEMENT_INVALID),
    "of another host": (lambda: prove(statement(host_id="host-8")), Reason.KEY_ROLE_MISMATCH),
    "by another host's key": (
        lambda: prove(statement(), INTENT, enrolled(name="host-8")),
        Reason.KEY_ROLE_MISMATCH,
    ),
    "by an issuer's key": (
        lambda: prove(statement(), INTENT, enrolled(roles=frozenset({Role.ISSUER}))),
        Reason.KEY_ROLE_MISMATCH,
    ),
    "by a key that was revoked": (
        lambda: prove(statement(), INTENT, enrolled(revoked=NOW)),
        Reason.KEY_NOT_VALID_NOW,
    ),
    "by a key of yesterday": (
        lambda: prove(statement(), INTENT, enrolled(not_after=NOW)),
        Reason.KEY_NOT_VALID_NOW,
    ),
}


@pytest.mark.parametrize(("act", "reason"), WRONG.values(), ids=WRONG)
def test_what_proves_no_host(act: Callable[[], str], reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.reason is reason
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"host": "host-8"}, Reason.HOST_MISMATCH),
        ({"host": None}, Reason.HOST_MISMATCH),
        ({"uid": 0}, Reason.NOT_PERMITTED),
        ({"uid": None}, Reason.NOT_PERMITTED),
    ],
)
def test_a_host_asks_for_itself_and_for_the_user_who_asked_it(change: dict[str, Any], reason: Reason) -> None:
    intent = msgspec.structs.replace(INTENT, **change)
    said = statement(intent_digest=intent_digest(encode_intent(intent)))
    with pytest.raises(Refused) as caught:
        prove(said, intent)
    assert caught.value.reason is reason


@pytest.mark.parametrize("digest", ["", "x" * 64, "ab" * 31, "AB" * 32, "\udcff" * 64])
def test_nothing_but_a_digest_is_signed(digest: str) -> None:
    """Egsd signs for everybody who asks: what it signs has one form."""
    with pytest.raises(Refused) as caught:
        statement(intent_digest=digest)
    assert caught.value.reason is Reason.HOST_STATEMENT_INVALID


# -- over HTTPS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Iterator[Home]:
    """An authority on another host, where hosts have to be enrolled, and one is."""
    if os.geteuid() != 0:
        pytest.skip("the authority runs as another user: needs root")
    with home() as found:
        found.secure()
        found.settings(HTTPS.format(found.root) + "enrolled_hosts = true\n")
        keyid = open_host_key(found.paths.host_keys, HOST)
        key = host_signer(found.paths.host_keys, HOST).public_key
        assert key.keyid == keyid
        roles, scopes = frozenset({Role.HOST}), frozenset({"*"})
        add(found.paths.trust, TrustedKey(key=key, roles=roles, scopes=scopes, name=HOST))
        found.start(listeners=2)
        yield found


@pytest.fixture
def signer(made: Home) -> Signer:
    """The key of the host that is enrolled."""
    return host_signer(made.paths.host_keys, HOST)


def request(made: Home, signer: Signer | None, **intent: Any) -> dict[str, Any]:
    body = body_of("/bin/true", host=HOST, uid=1000, **intent)
    if signer is not None:
        digest = intent_digest(encode_intent(msgspec.convert(body["intent"], IntentDocument)))
        body["hostStatement"] = statement(signer, intent_digest=digest, now=datetime.now(UTC))
    return ask(made.paths, "POST", "/v1/requests", body, remote=made.remote)


def hosts_of(answer: dict[str, Any]) -> tuple[str, ...]:
    identity = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate.identity
    assert identity is not None
    return identity.hosts


def test_what_an_enrolled_host_asks_for_is_for_its_key_alone(made: Home, signer: Signer) -> None:
    answer = request(made, signer)
    assert hosts_of(answer) == (signer.public_key.keyid,)
    assert made.of(Submission)[-1].host_key == signer.public_key.keyid
    now = {"askedAt": format_time(datetime.now(UTC))}
    renewed = ask(
        made.paths, "POST", f"/v1/artifacts/{answer['artifactId']}/renewals", now, remote=made.remote
    )
    assert hosts_of(renewed) == (signer.public_key.keyid,)


@pytest.mark.parametrize(
    ("who", "reason"), [(None, Reason.HOST_STATEMENT_INVALID), (STRANGER, Reason.KEY_UNTRUSTED)]
)
def test_a_host_that_is_not_enrolled_gets_nothing(made: Home, who: Signer | None, reason: Reason) -> None:
    with pytest.raises(EgsError) as caught:
        request(made, who)
    assert caught.value.reason is reason
    assert made.of(Issuance)[-1].reason is reason


def test_where_hosts_need_not_be_enrolled_a_strangers_word_is_none(made: Home, signer: Signer) -> None:
    """And the word of one that is enrolled counts, or is refused."""
    made.stop()
    made.settings(HTTPS.format(made.root))
    made.start(listeners=2)
    for who in (None, STRANGER):
        assert hosts_of(request(made, who)) == (HOST,)
    assert hosts_of(request(made, signer)) == (signer.public_key.keyid,)
    body = body_of("/bin/true", host=HOST, uid=1000) | {"hostStatement": statement(signer)}
    with pytest.raises(EgsError) as caught:
        ask(made.paths, "POST", "/v1/requests", body, remote=made.remote)
    assert caught.value.reason is Reason.HOST_STATEMENT_INVALID
