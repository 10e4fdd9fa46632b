"""The authority as a process: what it issues, what it refuses and why, and that its record says so."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import format_time, parse_statement
from egs_kernel.audit.check import verify
from egs_kernel.audit.entries import Approval, Evaluated, Issuance, Submission
from egs_kernel.audit.notes import VerifierKey
from egs_kernel.authority.approvals import sign_approval
from egs_kernel.authority.askers import Asker
from egs_kernel.authority.drafts import Draft, statement_of
from egs_kernel.authority.intent import MAX_REQUEST, IntentDocument, NamedFile
from egs_kernel.authority.settings import parse_settings
from egs_kernel.errors import EgsError, Refused, UsageError
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.sslib import Signer
from egs_kernel.trust import keys
from egs_kernel.trust.store import Role, TrustStore, revoke
from egs_kernel.verify import artifact_id
from tests.authorities import POLICY, Home, body_of, home, serving

MINUTE = timedelta(minutes=1)
PEOPLE = ("ann", "bob", "root")


@pytest.fixture(scope="module")
def authority() -> Iterator[Home]:
    with home() as made:
        for name in PEOPLE:
            made.trust(name, Role.APPROVER)
        made.start()
        yield made


@pytest.fixture(scope="module")
def people(authority: Home) -> dict[str, Signer]:
    return {name: keys.load_private(authority.root / f"{name}.key") for name in PEOPLE}


def refused(reason: Reason, *arguments: Any, by: Home, **more: Any) -> str:
    """Asking is refused for this reason, and the record says so; the message."""
    with pytest.raises(EgsError) as error:
        by.request(*arguments, **more)
    return recorded(by, error.value, reason)


def recorded(by: Home, error: EgsError, reason: Reason) -> str:
    assert error.reason is reason, error
    assert error.next_step
    entry = by.of(Issuance)[-1]
    assert (entry.action, entry.reason, entry.principal) == ("denied", reason, "user:root")
    return error.message


def send(by: Home, method: str, path: str, content: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Raw HTTP: the status and the body."""
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(by.paths.authority_socket))
    given = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): text for name, text in headers.items()
    }
    connection.request(method, path, content, given)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


# -- issuing -------------------------------------------------------------------------------------


def test_what_policy_permits_is_issued_and_recorded_first(authority: Home) -> None:
    answer = authority.request("/bin/true", purpose="a test", uses=1)
    envelope = parse_envelope(answer["artifact"].encode())
    statement = parse_statement(envelope.payload)
    assert answer["artifactId"] == artifact_id(envelope)
    (key,) = envelope.signatures
    TrustStore.load(authority.paths.trust).keys[key].key.verify_signature(
        envelope.signatures[key], envelope.pae()
    )
    submission, evaluation, issuance = authority.entries()[-3:]
    assert isinstance(submission, Submission)
    assert isinstance(evaluation, Evaluated)
    assert isinstance(issuance, Issuance)
    assert submission.request == evaluation.request == issuance.request == answer["request"]
    assert evaluation.determining == ("anybody-true",)
    assert (issuance.envelope, issuance.artifact_id) == (answer["artifact"], answer["artifactId"])
    predicate = statement.predicate
    assert predicate.identity is not None
    assert predicate.lineage is not None
    assert predicate.governance is not None
    assert (predicate.identity.uid, predicate.identity.hosts) == (0, ("test-host",))
    assert predicate.lineage.intent_digest == submission.intent_digest == answer["intentDigest"]
    assert predicate.lineage.request_id == answer["request"]
    assert predicate.governance.determining_policies == ("anybody-true",)
    assert predicate.scope.policy_digest == evaluation.policy_digest
    start, end = predicate.window
    assert end - start == timedelta(minutes=5)


def test_what_policy_does_not_permit_is_denied_with_its_reasons(authority: Home) -> None:
    with pytest.raises(EgsError, match="never-rm") as error:
        authority.request("/bin/rm")
    assert recorded(authority, error.value, Reason.POLICY_DENIED)
    assert "Nobody removes files here." in error.value.next_step
    assert authority.of(Evaluated)[-1].determining == ("never-rm",)
    assert "policy tests" in refused(Reason.POLICY_DENIED, "/bin/cat", by=authority)
    assert "not for scope other" in refused(Reason.POLICY_DENIED, by=authority, scope="other")


def test_a_user_asks_for_themselves_alone(authority: Home) -> None:
    assert "uid 7" in refused(Reason.NOT_PERMITTED, by=authority, uid=7)
    assert "for host another" in refused(Reason.HOST_MISMATCH, by=authority, host="another")
    done = authority.egs("request", "--json", "--", "/bin/true", user=65534)
    answer = json.loads(done.stdout)
    predicate = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate
    assert predicate.identity is not None
    assert predicate.identity.uid == 65534
    assert authority.of(Submission)[-1].principal == "user:nobody"


def test_an_idempotency_key_gets_the_same_answer(authority: Home) -> None:
    first = authority.request("/bin/true", "same-key", purpose="once")
    before = len(authority.entries())
    assert authority.request("/bin/true", "same-key", purpose="once") == first
    assert len(authority.entries()) == before
    with pytest.raises(EgsError) as error:
        authority.request("/bin/true", "same-key", purpose="something else")
    recorded(authority, error.value, Reason.IDEMPOTENCY_CONFLICT)
    authority.stop()
    authority.start()
    assert authority.request("/bin/true", "same-key", purpose="once") == first


def test_requests_at_the_same_time_with_one_key_are_one(authority: Home) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(authority.request, "/bin/true", "parallel-key") for _ in range(16)]
        assert len({job.result()["artifactId"] for job in jobs}) == 1


def test_a_renewal_follows_an_artifact_that_is_valid(authority: Home) -> None:
    first = authority.request("/bin/true")
    now = {"askedAt": format_time(datetime.now(UTC))}
    second = authority.ask("POST", f"/v1/artifacts/{first['artifactId']}/renewals", now)
    lineage = parse_statement(parse_envelope(second["artifact"].encode()).payload).predicate.lineage
    assert lineage is not None
    assert lineage.parent_artifact == first["artifactId"]
    assert second["intentDigest"] == first["intentDigest"]
    with pytest.raises(EgsError) as error:
        authority.ask("POST", f"/v1/artifacts/{'0' * 64}/renewals", now)
    recorded(authority, error.value, Reason.NOT_FOUND)
    done = authority.egs("request", "--renew", first["artifactId"], user=65534)
    assert done.returncode == 1
    assert "[not_found]" in done.stderr


def test_an_expired_artifact_is_not_renewed() -> None:
    with serving(more='[[quota]]\nartifacts = 1\nper = "1h"\nprincipal = "user:nobody"\n') as made:
        first = made.request("/bin/true", validFor=1)
        deadline = datetime.fromisoformat(first["notAfter"])
        while datetime.now(UTC) <= deadline:
            made.ask("GET", "/v1/status")
        now = {"askedAt": format_time(datetime.now(UTC))}
        with pytest.raises(EgsError) as error:
            made.ask("POST", f"/v1/artifacts/{first['artifactId']}/renewals", now)
        recorded(made, error.value, Reason.EXPIRED)


def test_what_was_answered_is_forgotten_in_time() -> None:
    """Not sooner than its artifact expires; the record keeps it."""
    with serving() as made:
        made.request("/bin/true", "short")
        made.request("/bin/true", "long", validFor=3600)
        made.stop()
        made.start(first="import time; real = time.time; time.time = lambda: real() + 3700")
        later = body_of() | {"askedAt": format_time(datetime.now(UTC) + timedelta(seconds=3700))}
        made.ask("POST", "/v1/requests", later)
        with sqlite3.connect(made.paths.authority_state / "state.sqlite") as state:
            rows = state.execute(
                "SELECT idempotency_key FROM requests WHERE idempotency_key IS NOT NULL"
            ).fetchall()
        assert rows == []
        assert sum(entry.action == "issued" for entry in made.of(Issuance)) == 3


# -- limits --------------------------------------------------------------------------------------


def test_quotas_hold_over_a_restart_and_without_the_state() -> None:
    with serving(more='[[quota]]\nartifacts = 2\nper = "1h"\n') as made:
        made.request()
        made.request()
        assert "had 2 artifacts" in refused(Reason.QUOTA_EXCEEDED, by=made)
        made.stop()
        for state in made.paths.authority_state.glob("state.sqlite*"):
            state.unlink()  # it is a view of the record
        made.start()
        assert "had 2 artifacts" in refused(Reason.QUOTA_EXCEEDED, by=made)


def test_a_quota_that_was_used_up_is_no_answer_for_ever() -> None:
    with serving(more='[[quota]]\nartifacts = 1\nper = "1h"\n') as made:
        made.request()
        with pytest.raises(EgsError, match="had 1 artifacts"):
            made.request("/bin/true", "again")
        made.settings('[[quota]]\nartifacts = 2\nper = "1h"\n')
        deadline, answer = datetime.now(UTC) + MINUTE, None
        while answer is None:
            assert datetime.now(UTC) < deadline
            with contextlib.suppress(EgsError):
                answer = made.request("/bin/true", "again")
        assert made.request("/bin/true", "again") == answer


def test_a_record_that_was_set_back_ends_the_start() -> None:
    with serving() as made:
        made.request()
        made.stop()
        for folder in ("record", "log-keys"):
            made.paths.authority_state.joinpath(folder).rename(made.root / folder)
        with pytest.raises(AssertionError, match="record_corrupt"):
            made.start()


def test_who_asks_too_often_is_turned_away_and_told_when_to_come_back() -> None:
    with home() as made:
        made.paths.authority_config.write_text('default_scope = "test"\nrate = 1\nburst = 3\n')
        made.start()
        answers = [send(made, "GET", "/v1/status", b"")[0] for _ in range(6)]
        assert answers[:3] == [200] * 3
        assert 429 in answers
        limited = [entry for entry in made.of(Issuance) if entry.reason is Reason.RATE_LIMITED]
        assert 1 <= len(limited) <= 3


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"{", 400, Reason.REQUEST_MALFORMED),
        (b"\xff", 400, Reason.REQUEST_MALFORMED),
        (b"[" * 10_000, 400, Reason.REQUEST_MALFORMED),
        (b'{"intent": 1}', 400, Reason.REQUEST_MALFORMED),
        (b" " * (MAX_REQUEST + 1), 413, Reason.REQUEST_TOO_LARGE),
        (b" " * 20_000_000, 413, Reason.REQUEST_TOO_LARGE),
    ],
)
def test_what_is_no_request(authority: Home, content: bytes, status: int, reason: Reason) -> None:
    answered, body = send(authority, "POST", "/v1/requests", content)
    assert (answered, body["reason"], body["state"]) == (status, reason.code, "denied")
    assert body["nextStep"]
    assert authority.of(Issuance)[-1].reason is reason


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"surprise": 1}, 400, "unknown field `surprise`"),
        ({"argv": []}, 400, "argv"),
        ({"argv": ["/bin/true", "*"]}, 403, "stands for any"),
        ({"argv": ["/bin/true", "x" * 3000, "y" * 2000]}, 403, "4096 bytes"),
        ({"scope": "Not A Scope"}, 400, "scope"),
        ({"validFor": 3601}, 403, "longer than"),
        ({"purpose": "a\u202eb"}, 400, "characters"),
        ({"program": {"path": "/bin/true", "sha256": "0" * 64}}, 400, "symbolic link"),
        ({"program": {"path": "/usr/bin/true", "sha256": "0" * 64}}, 403, "SHA-256"),
        ({"program": {"path": "/nowhere", "sha256": "0" * 64}}, 404, "/nowhere"),
        ({"program": {"path": "/dev/zero", "sha256": "0" * 64}}, 400, "no regular file"),
    ],
)
def test_what_cannot_be_asked(authority: Home, change: dict[str, Any], status: int, said: str) -> None:
    body = body_of()
    body["intent"] |= change
    answered, answer = send(authority, "POST", "/v1/requests", json.dumps(body).encode())
    assert answered == status
    assert said in answer["message"]
    assert authority.of(Issuance)[-1].detail in answer["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "authority.toml"),
        (b"colour = 1", "colour"),
        (b'valid_for = "2h"', "max_valid_for"),
        pytest.param(b"more = " + b"9" * 5000, "digits", id="a number of 5000 digits"),
        pytest.param(b"more = " + b"[" * 5000, "recursion", id="5000 lists in each other"),
    ],
)
def test_settings_that_are_wrong(content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parse_settings(content, Path("authority.toml"))
    assert error.value.reason is Reason.CONFIG_INVALID


def test_an_intent_that_no_statement_fits_is_refused() -> None:
    """The program once more among its libraries: each is a file, and together they are no artifact."""
    program = NamedFile(path="/bin/true", sha256="ab" * 32)
    intent = IntentDocument(program=program, argv=("true",), libraries=(program,), scope="test", valid_for=60)
    draft = Draft(asker=Asker(principal="user:root", name="root"), intent=intent, kind=ProgramKind.NATIVE)
    with pytest.raises(Refused, match="two subjects have the same name") as error:
        statement_of(
            draft,
            request="0" * 32,
            issuer="tests",
            policy_digest="ef" * 32,
            policies=(),
            approvers=(),
            renews=None,
            now=datetime.now(UTC),
        )
    assert error.value.reason is Reason.ARTIFACT_MALFORMED


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_asker_whose_clock_is_wrong(authority: Home, hours: int) -> None:
    body = body_of() | {"askedAt": format_time(datetime.now(UTC) + timedelta(hours=hours))}
    with pytest.raises(EgsError, match="clock") as error:
        authority.ask("POST", "/v1/requests", body)
    recorded(authority, error.value, Reason.CLOCK_WRONG)


def test_an_authority_whose_clock_went_back_issues_nothing() -> None:
    with serving() as made:
        made.request()
        made.stop()
        made.start(first="import time; real = time.time; time.time = lambda: real() - 600")
        body = body_of() | {"askedAt": format_time(datetime.now(UTC) - timedelta(minutes=10))}
        with pytest.raises(EgsError, match="behind its own record") as error:
            made.ask("POST", "/v1/requests", body)
        recorded(made, error.value, Reason.CLOCK_WRONG)


def test_a_key_twice_or_of_another_form(authority: Home) -> None:
    for key in ("", "a b", "x" * 129):
        status, body = send(authority, "POST", "/v1/requests", b"{}", Idempotency_Key=key)
        assert (status, body["reason"]) == (400, "request_malformed")


def test_another_media_type(authority: Home) -> None:
    status, body = send(authority, "POST", "/v1/requests", b"{}", Content_Type="text/plain")
    assert (status, body["reason"]) == (400, "request_malformed")


def test_what_is_not_there(authority: Home) -> None:
    for method, path, expected in (
        ("GET", "/v2", 404),
        ("GET", "/v1/requests/x", 404),
        ("GET", f"/v1/requests/{'0' * 32}", 404),
        ("DELETE", "/v1/requests", 405),
    ):
        status, body = send(authority, method, path, b"")
        assert status == expected
        assert body["state"] == "denied"


# -- approvals -----------------------------------------------------------------------------------


def signed(signer: Signer, waiting: dict[str, Any], **changes: Any) -> bytes:
    parts = {
        "request": waiting["request"],
        "digest": waiting["intentDigest"],
        "approves": True,
        "now": datetime.now(UTC),
        "valid_for": 10 * MINUTE,
    }
    return sign_approval(signer, **(parts | changes))


def approve(by: Home, waiting: dict[str, Any], content: bytes) -> dict[str, Any]:
    return by.ask("POST", f"/v1/requests/{waiting['request']}/approvals", content)


def not_counted(by: Home, waiting: dict[str, Any], content: bytes) -> str:
    with pytest.raises(EgsError) as error:
        approve(by, waiting, content)
    return recorded(by, error.value, Reason.APPROVAL_INVALID)


def test_two_people_approve_before_it_is_issued(authority: Home, people: dict[str, Signer]) -> None:
    waiting = authority.request("/bin/echo", purpose="two people")
    assert (waiting["state"], waiting["required"]) == ("pending", 2)
    assert authority.of(Issuance)[-1].artifact_id is None
    one = approve(authority, waiting, signed(people["ann"], waiting))
    assert (one["state"], [vote["name"] for vote in one["approvals"]]) == ("pending", ["ann"])
    two = approve(authority, waiting, signed(people["bob"], waiting))
    assert two["state"] == "issued"
    governance = parse_statement(parse_envelope(two["artifact"].encode()).payload).predicate.governance
    assert governance is not None
    assert governance.approvers == ("ann", "bob")
    shown = authority.ask("GET", f"/v1/requests/{waiting['request']}")
    assert shown["artifactId"] == two["artifactId"]
    assert [entry.name for entry in authority.of(Approval)[-2:]] == ["ann", "bob"]


def test_an_approval_counts_once_and_for_one_request(authority: Home, people: dict[str, Signer]) -> None:
    first, second = (authority.request("/bin/echo", purpose=f"replay {n}") for n in range(2))
    anns = signed(people["ann"], first)
    approve(authority, first, anns)
    assert "answered already" in not_counted(authority, first, anns)
    assert "another request" in not_counted(authority, second, anns)
    approve(authority, first, signed(people["bob"], first))
    assert "was answered" in not_counted(authority, first, signed(people["bob"], first))


def test_an_approval_that_is_expired_early_or_for_too_long(
    authority: Home, people: dict[str, Signer]
) -> None:
    waiting, now = authority.request("/bin/echo", purpose="times"), datetime.now(UTC)
    ann = people["ann"]
    assert "expired" in not_counted(authority, waiting, signed(ann, waiting, now=now - 20 * MINUTE))
    assert "future" in not_counted(authority, waiting, signed(ann, waiting, now=now + 20 * MINUTE))
    assert "more than" in not_counted(authority, waiting, signed(ann, waiting, valid_for=100 * MINUTE))
    assert "another intent" in not_counted(authority, waiting, signed(ann, waiting, digest="0" * 64))


def test_an_approval_by_nobody_who_may(authority: Home, people: dict[str, Signer]) -> None:
    waiting = authority.request("/bin/echo", purpose="who")
    stranger = keys.generate(keys.Algorithm.ED25519)
    assert "not trusted" in not_counted(authority, waiting, signed(stranger, waiting))
    policy = keys.load_private(authority.root / "policy.key")
    assert "may not approve" in not_counted(authority, waiting, signed(policy, waiting))
    assert "for themselves" in not_counted(authority, waiting, signed(people["root"], waiting))
    forged = json.loads(signed(people["ann"], waiting))
    forged["signatures"][0]["sig"] = json.loads(signed(people["bob"], waiting))["signatures"][0]["sig"]
    assert "not good" in not_counted(authority, waiting, json.dumps(forged).encode())


def test_one_person_s_two_keys_count_once() -> None:
    with home() as made:
        old = made.trust("ann-1", Role.APPROVER)
        new = made.trust("ann-2", Role.APPROVER, replaces=old.public_key.keyid)
        made.start(
            before="import egs_kernel.authority.process as p; p.CryptoSigner = p.HybridSigner"
        )  # decides elsewhere
        waiting = made.request("/bin/echo")
        approve(made, waiting, signed(old, waiting))
        assert "answered already" in not_counted(made, waiting, signed(new, waiting))
        status = made.ask("GET", "/v1/status")
        made.stop()
        key = VerifierKey.parse(status["recordKey"])
        assert verify(made.record, [key]).size == len(made.entries())


def test_an_approval_by_a_key_that_was_revoked_since_counts_no_more() -> None:
    with home() as made:
        ann, bob, eve = (made.trust(name, Role.APPROVER) for name in ("ann", "bob", "eve"))
        made.start()
        waiting = made.request("/bin/echo")
        approve(made, waiting, signed(ann, waiting))
        revoke(made.paths.trust, ann.public_key.keyid, datetime.now(UTC))
        deadline = datetime.now(UTC) + MINUTE
        while "revoked" not in not_counted(made, waiting, signed(ann, waiting)):
            assert datetime.now(UTC) < deadline
        assert approve(made, waiting, signed(bob, waiting))["state"] == "pending"
        assert approve(made, waiting, signed(eve, waiting))["state"] == "issued"


def test_one_no_ends_it(authority: Home, people: dict[str, Signer]) -> None:
    waiting = authority.request("/bin/echo", purpose="no")
    with pytest.raises(EgsError, match="bob does not approve") as error:
        approve(authority, waiting, signed(people["bob"], waiting, approves=False))
    recorded(authority, error.value, Reason.APPROVAL_DENIED)
    assert "was answered" in not_counted(authority, waiting, signed(people["ann"], waiting))
    with pytest.raises(EgsError) as shown:
        authority.ask("GET", f"/v1/requests/{waiting['request']}")
    assert shown.value.reason is Reason.APPROVAL_DENIED


def test_approvals_and_votes_outlive_the_process_and_its_state(
    authority: Home, people: dict[str, Signer]
) -> None:
    waiting = authority.request("/bin/echo", purpose="restart")
    approve(authority, waiting, signed(people["ann"], waiting))
    authority.stop()
    for state in authority.paths.authority_state.glob("state.sqlite*"):
        state.unlink()
    authority.start()
    assert "answered already" in not_counted(authority, waiting, signed(people["ann"], waiting))
    assert approve(authority, waiting, signed(people["bob"], waiting))["state"] == "issued"


def test_others_do_not_see_what_was_asked(authority: Home) -> None:
    waiting = authority.request("/bin/echo", purpose="private")
    assert waiting["request"] in authority.egs("approvals").stdout
    assert waiting["request"] not in authority.egs("approvals", user=65534).stdout
    done = authority.egs("request", "--id", waiting["request"], user=65534)
    assert (done.returncode, "[not_found]" in done.stderr) == (1, True)


def test_what_people_type(authority: Home, people: dict[str, Signer], tmp_path: Path) -> None:
    done = authority.egs("request", "--purpose", "typed", "--", "/bin/echo", "hello")
    assert done.returncode == 1
    assert "[approval_required]" in done.stderr
    request = done.stderr.split("request ", 1)[1].split()[0]
    for name in ("ann", "bob"):
        key = str(authority.root / f"{name}.key")
        done = authority.egs("approve", request, "--key", key, "--json")
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "issued"
    out = tmp_path / "artifact.json"
    done = authority.egs("request", "--id", request, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert artifact_id(parse_envelope(out.read_bytes())) == json.loads(done.stdout)["artifactId"]
    assert authority.egs("authority", "status", "--json").returncode == 0
    assert authority.egs("request").returncode == 2


# -- what it goes by -----------------------------------------------------------------------------


def test_a_new_policy_set_is_in_force_at_once_and_a_wrong_one_stops_all() -> None:
    with serving() as made:
        made.request()
        signer = keys.load_private(made.root / "policy.key")
        made.activate(POLICY.replace("*/true", "*/cat"), signer, version=2)
        deadline = datetime.now(UTC) + MINUTE
        while made.ask("GET", "/v1/status")["policyVersion"] == 1:
            assert datetime.now(UTC) < deadline
        refused(Reason.POLICY_DENIED, by=made)
        assert made.request("/bin/cat")["state"] == "issued"
        made.activate(POLICY, keys.generate(keys.Algorithm.ED25519), version=3)  # by nobody who may
        status = 200
        while status == 200:
            assert datetime.now(UTC) < deadline
            status, _ = send(made, "GET", "/v1/status", b"")
        refused(Reason.KEY_UNTRUSTED, "/bin/cat", by=made)


def test_it_does_not_run_as_root() -> None:
    with home() as made:
        done = made.egs("authority", "serve")
        assert (done.returncode, "[not_permitted]" in done.stderr) == (2, True)


def test_without_an_authority(tmp_path: Path) -> None:
    with home() as made:
        done = made.egs("request", "--", "/bin/true")
        assert (done.returncode, "[authority_unreachable]" in done.stderr) == (4, True)
