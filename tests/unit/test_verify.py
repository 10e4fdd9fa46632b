"""The verifier: every reason it can refuse for, and what it lets through."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel import verify
from egs_kernel.artifact import canonical
from egs_kernel.errors import Refused
from egs_kernel.gate.grants import raw_grant
from egs_kernel.model import (
    FileIdentity,
    Grant,
    HostFacts,
    Intent,
    Measurement,
    ProgramKind,
    Reason,
    Revoked,
)
from egs_kernel.trust.store import Role
from egs_kernel.verify import STEPS, Artifact, Step, authenticate, authorize
from tests.unit.issuing import (
    EVERY_FIELD,
    ISSUER,
    NOW,
    POLICY_DIGEST,
    PROGRAM_DIGEST,
    SCRIPT_DIGEST,
    SECOND,
    STRANGER,
    host,
    intent,
    signed,
    statement,
    store,
    trusted,
)

FILE = FileIdentity(device=1, inode=2, generation=3, size=4, ctime_seconds=5, ctime_nanoseconds=6)
MEASURED = Measurement(PROGRAM_DIGEST, FILE, 99)
HOUR = timedelta(hours=1)
STANDING: dict[str, Any] = {
    "argv": None,
    "cwd": None,
    "environment": None,
    "uid": None,
    "groups": (),
    "spiffe_id": None,
}

SINCE = "2026-11-20T12:00:00Z"


def artifact(predicate: dict[str, Any] | None = None, **changes: Any) -> Artifact:
    return authenticate(signed(statement(predicate, **changes)), store(), NOW)


def refusal(
    artifact: Artifact, asked: Intent | None = None, facts: HostFacts | None = None, now: datetime = NOW
) -> tuple[Step, Reason]:
    reached: list[Step] = []
    with pytest.raises(Refused) as caught:
        authorize(artifact, asked or intent(), facts or host(), now, reached=reached.append)
    assert caught.value.next_step
    return reached[-1], caught.value.reason


# authenticate


def test_an_artifact_of_a_trusted_issuer_authenticates() -> None:
    for signer in (ISSUER, SECOND):
        content = signed(statement(EVERY_FIELD), signer)
        result = authenticate(content, store(trusted(ISSUER), trusted(SECOND)), NOW)
        assert result.signers == (signer.public_key.keyid,)
        assert canonical.encode(statement(EVERY_FIELD))
        assert result.statement.predicate.scope.name == "agents"


def test_the_id_is_the_digest_of_the_payload_whoever_signs() -> None:
    keys = store(trusted(ISSUER), trusted(SECOND))
    ids = {
        authenticate(signed(statement(), *signers), keys, NOW).id
        for signers in ([ISSUER], [SECOND], [ISSUER, SECOND])
    }
    assert len(ids) == 1


def forged(content: bytes, payload: Any) -> bytes:
    """The signatures of `content` over another payload."""
    envelope = json.loads(content)
    return json.dumps({**envelope, "payload": json.loads(signed(payload))["payload"]}).encode()


AUTHENTICATION: list[tuple[str, bytes, Any, Step, Reason]] = [
    ("malformed", b"{", store(), Step.ENVELOPE, Reason.ARTIFACT_MALFORMED),
    ("too large", b" " * 70_000, store(), Step.ENVELOPE, Reason.ARTIFACT_TOO_LARGE),
    ("no keys at all", signed(statement()), store(trusted(STRANGER)), Step.SIGNATURES, Reason.KEY_UNTRUSTED),
    ("signed by a stranger", signed(statement(), STRANGER), store(), Step.SIGNATURES, Reason.KEY_UNTRUSTED),
    (
        "another payload",
        forged(signed(statement()), statement(EVERY_FIELD)),
        store(),
        Step.SIGNATURES,
        Reason.SIGNATURE_INVALID,
    ),
    (
        "one bad signature beside a good one",
        signed(statement(), ISSUER)[:-2].replace(
            b'"signatures":[',
            b'"signatures":[{"keyid":"' + SECOND.public_key.keyid.encode() + b'","sig":"AAAA"},',
        )
        + b"}\n",
        store(trusted(ISSUER), trusted(SECOND)),
        Step.SIGNATURES,
        Reason.SIGNATURE_INVALID,
    ),
    (
        "an unknown field",
        signed({**statement(), "x": 1}),
        store(),
        Step.STATEMENT,
        Reason.ARTIFACT_UNKNOWN_FIELD,
    ),
    (
        "another version",
        signed({**statement(), "predicateType": "urn:egs-001:execution-authorization:v2"}),
        store(),
        Step.STATEMENT,
        Reason.ARTIFACT_UNKNOWN_VERSION,
    ),
    (
        "an issuer for another scope",
        signed(statement()),
        store(trusted(ISSUER, scopes=frozenset({"other"}))),
        Step.KEYS,
        Reason.KEY_ROLE_MISMATCH,
    ),
    (
        "another role",
        signed(statement()),
        store(trusted(ISSUER, roles=frozenset({Role.MAINTENANCE}))),
        Step.KEYS,
        Reason.KEY_ROLE_MISMATCH,
    ),
    (
        "a key that is not valid any more",
        signed(statement()),
        store(trusted(ISSUER, not_after=NOW)),
        Step.KEYS,
        Reason.KEY_NOT_VALID_NOW,
    ),
    (
        "a key that is not valid yet",
        signed(statement()),
        store(trusted(ISSUER, not_before=NOW + HOUR)),
        Step.KEYS,
        Reason.KEY_NOT_VALID_NOW,
    ),
    (
        "a revoked key",
        signed(statement()),
        store(trusted(ISSUER, revoked=NOW + HOUR)),
        Step.KEYS,
        Reason.KEY_NOT_VALID_NOW,
    ),
    (
        "one of two",
        signed(statement()),
        store(trusted(ISSUER), agents=2),
        Step.KEYS,
        Reason.THRESHOLD_NOT_MET,
    ),
    (
        "the second signer is for another scope",
        signed(statement(), ISSUER, SECOND),
        store(trusted(ISSUER), trusted(SECOND, scopes=frozenset({"other"})), agents=2),
        Step.KEYS,
        Reason.THRESHOLD_NOT_MET,
    ),
    (
        "the second signer is revoked",
        signed(statement(), ISSUER, SECOND),
        store(trusted(ISSUER), trusted(SECOND, revoked=NOW), agents=2),
        Step.KEYS,
        Reason.THRESHOLD_NOT_MET,
    ),
]


@pytest.mark.parametrize(
    ("content", "trust", "step", "reason"),
    [case[1:] for case in AUTHENTICATION],
    ids=[case[0] for case in AUTHENTICATION],
)
def test_what_does_not_authenticate(content: bytes, trust: Any, step: Step, reason: Reason) -> None:
    reached: list[Step] = []
    with pytest.raises(Refused) as caught:
        authenticate(content, trust, NOW, reached=reached.append)
    assert (reached[-1], caught.value.reason) == (step, reason)


def test_a_payload_is_not_parsed_before_its_signature_is_good() -> None:
    from egs_kernel.artifact.envelope import sign  # noqa: PLC0415 - only here: to sign what is no statement

    content = sign(b"not even JSON", [STRANGER])
    with pytest.raises(Refused) as caught:
        authenticate(content, store(), NOW)
    assert caught.value.reason is Reason.KEY_UNTRUSTED
    with pytest.raises(Refused) as caught:
        authenticate(sign(b'{"a": 1}', [ISSUER]), store(), NOW)
    assert caught.value.reason is Reason.ARTIFACT_NOT_CANONICAL


def test_thresholds() -> None:
    both = store(trusted(ISSUER), trusted(SECOND), agents=2)
    assert len(authenticate(signed(statement(), ISSUER, SECOND), both, NOW).signers) == 2
    every = store(trusted(ISSUER), **{"*": 2})
    with pytest.raises(Refused):
        authenticate(signed(statement()), every, NOW)
    authenticate(signed(statement()), store(trusted(ISSUER), **{"*": 2, "agents": 1}), NOW)


def test_a_signature_by_a_stranger_beside_enough_good_ones_does_not_matter() -> None:
    result = authenticate(signed(statement(), STRANGER, ISSUER), store(), NOW)
    assert result.signers == (ISSUER.public_key.keyid,)


VALID = signed(statement(EVERY_FIELD))
VALID_ID = authenticate(VALID, store(), NOW).id


@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_a_changed_byte_never_makes_another_artifact(position: int, change: int) -> None:
    changed = bytearray(VALID)
    changed[position] ^= change
    try:
        result = authenticate(bytes(changed), store(), NOW)
    except Refused:
        return
    assert result.id == VALID_ID


@given(st.integers(0, len(VALID)))
def test_a_truncated_artifact_is_refused(length: int) -> None:
    if length < len(VALID) - 1:  # the last byte is a newline after the object
        with pytest.raises(Refused):
            authenticate(VALID[:length], store(), NOW)


# authorize


def test_every_field_at_once_is_authorized() -> None:
    result = authorize(artifact(EVERY_FIELD), intent(), host(uses={}), NOW)
    assert result.argv == (b"report", b"anything", b"--now")
    assert (result.scope, result.uid, result.uses_left, result.cgroup) == (
        "agents",
        1000,
        3,
        "/egs.slice/agents",
    )
    assert result.constraints is not None


def test_steps_are_reached_in_order_and_all_are_named() -> None:
    reached: list[Step] = []
    found = authenticate(VALID, store(), NOW, reached=reached.append)
    authorize(found, intent(), host(), NOW, reached=reached.append)
    assert reached == list(Step) == list(STEPS)


def test_the_code_carries_the_numbers_of_the_plan() -> None:
    source = Path(verify.__file__).read_text(encoding="utf-8")
    for step in Step:
        assert f"reached(Step.{step.name})  # {int(step)}\n" in source
        assert f"\n{int(step):2}. " in source


def declares(**words: Any) -> dict[str, Any]:
    return {"intent": words}


ENV = (("HOME", "/srv"), ("PATH", "/usr/bin"))
RULES = {"environment": EVERY_FIELD["intent"]["environment"]}
NO_ANONYMOUS = {"constraints": {"code": {"anonymous": "refused"}}}
CONSTRAINED = {"constraints": EVERY_FIELD["constraints"]}

AUTHORIZATION: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], Step, Reason]] = [
    ("program", {}, {"digest": SCRIPT_DIGEST}, {}, Step.DIGEST, Reason.DIGEST_MISMATCH),
    ("user", {"identity": {"user": "svc"}}, {"uid": 0}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("uid", {"identity": {"uid": 1}}, {}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("no uid", {"identity": {"uid": 1}}, {"uid": None}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("unknown user", {"identity": {"user": "nobody9"}}, {}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("user, other uid", {"identity": {"user": "svc", "uid": 7}}, {}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("group", {"identity": {"groups": [50, 51]}}, {}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("group name", {"identity": {"groups": ["wheel"]}}, {}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("another unit", {"identity": {"unit": "a.service"}}, {"unit": "b.service"}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("no unit", {"identity": {"unit": "a.service"}}, {"unit": None}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("no SPIFFE id", {"identity": {"spiffeId": "spiffe://a/b"}}, {"spiffe_id": None}, {}, Step.IDENTITY, Reason.IDENTITY_MISMATCH),
    ("host", {"identity": {"hosts": ["host-2"]}}, {}, {}, Step.HOST, Reason.HOST_MISMATCH),
    ("label", {"identity": {"hostLabels": ["prod", "us"]}}, {}, {}, Step.HOST, Reason.HOST_MISMATCH),
    ("interpreter", {}, {"program_kind": ProgramKind.INTERPRETER}, {}, Step.INTENT, Reason.PROGRAM_UNBOUND),
    ("script", declares(argv=["report"]), {"program_kind": ProgramKind.SCRIPT, "argv": ("report",)}, {}, Step.INTENT, Reason.PROGRAM_UNBOUND),
    ("interpreter, code free", declares(argv=["sh", "-c", "*"]), {"program_kind": ProgramKind.INTERPRETER}, {}, Step.INTENT, Reason.PROGRAM_UNBOUND),
    ("another argument", declares(argv=["report", "--later"]), {"argv": ("report", "--now")}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("an argument more", declares(argv=["report"]), {"argv": ("report", "")}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("an argument less", declares(argv=["report", "*"]), {"argv": ("report",)}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("no arguments", {}, {"argv": ()}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("a NUL", {}, {"argv": ("report", "a\0b")}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("no text", {}, {"argv": ("report", "\ud800")}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("too long", declares(argv=["report", "*"]), {"argv": ("report", "x" * 4096)}, {}, Step.INTENT, Reason.ARGV_MISMATCH),
    ("directory", declares(cwd="/srv"), {"cwd": "/"}, {}, Step.INTENT, Reason.CWD_MISMATCH),
    ("no directory", declares(cwd="/srv"), {"cwd": None}, {}, Step.INTENT, Reason.CWD_MISMATCH),
    ("variable not allowed", declares(**RULES), {"environment": (*ENV, ("X", "1"))}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("variable missing", declares(**RULES), {"environment": ENV[1:]}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("variable other", declares(**RULES), {"environment": (("HOME", "/"),)}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("variable twice", declares(**RULES), {"environment": (*ENV, ENV[0])}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("environment unknown", declares(**RULES), {"environment": None}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("LD_PRELOAD", {}, {"environment": (("LD_PRELOAD", "/tmp/x.so"),)}, {}, Step.INTENT, Reason.ENVIRONMENT_MISMATCH),
    ("scope", {}, {}, {"scopes": frozenset({"other"})}, Step.SCOPE, Reason.SCOPE_UNKNOWN),
    ("policy", {"scope": {"name": "agents", "policyDigest": POLICY_DIGEST}}, {}, {"policy_digest": "00" * 32}, Step.POLICY, Reason.POLICY_MISMATCH),
    ("no policy", {}, {}, {"policy_required": True}, Step.POLICY, Reason.POLICY_MISMATCH),
    ("policy that cannot be asked", {}, {}, {"policy_problem": "it is gone"}, Step.POLICY, Reason.POLICY_UNAVAILABLE),
    ("posture", {}, {}, {"posture": msgspec.structs.replace(host().posture, problems=("gate changed",))}, Step.POSTURE, Reason.POSTURE_FAILED),
    ("host's constraints", CONSTRAINED, {}, {"enforceable": frozenset()}, Step.CONSTRAINTS, Reason.CONSTRAINT_UNENFORCEABLE),
    ("no tier for its code", NO_ANONYMOUS, {}, {}, Step.CONSTRAINTS, Reason.CONSTRAINT_UNENFORCEABLE),
    ("standing, no tier for its code", NO_ANONYMOUS, STANDING, {}, Step.CONSTRAINTS, Reason.CONSTRAINT_UNENFORCEABLE),
    ("standing, groups", {"identity": {"groups": [50]}}, STANDING, {}, Step.IDENTITY, Reason.LAUNCH_REQUIRED),
    ("standing, unit", {"identity": {"unit": "a.service"}}, STANDING, {}, Step.IDENTITY, Reason.LAUNCH_REQUIRED),
    ("standing, SPIFFE", {"identity": {"spiffeId": "spiffe://a/b"}}, STANDING, {}, Step.IDENTITY, Reason.LAUNCH_REQUIRED),
    ("standing, directory", declares(cwd="/srv"), STANDING, {}, Step.INTENT, Reason.LAUNCH_REQUIRED),
    ("standing, environment", declares(**RULES), STANDING, {}, Step.INTENT, Reason.LAUNCH_REQUIRED),
    ("standing, free argument", declares(argv=["report", "*"]), STANDING, {}, Step.INTENT, Reason.LAUNCH_REQUIRED),
    ("standing, constraints", CONSTRAINED, STANDING, {}, Step.CONSTRAINTS, Reason.LAUNCH_REQUIRED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("predicate", "asked", "facts", "step", "reason"),
    [case[1:] for case in AUTHORIZATION],
    ids=[case[0] for case in AUTHORIZATION],
)
def test_what_is_not_authorized(
    predicate: dict[str, Any], asked: dict[str, Any], facts: dict[str, Any], step: Step, reason: Reason
) -> None:
    assert refusal(artifact(predicate), intent(**asked), host(**facts)) == (step, reason)


def test_policy_is_asked_where_the_digests_agree() -> None:
    def denies(found: Artifact, asked: Intent) -> str:
        raise Refused(Reason.POLICY_DENIED, f"{found.id} {asked.program}")

    reached: list[Step] = []
    with pytest.raises(Refused) as caught:
        authorize(artifact(), intent(), host(), NOW, reached=reached.append, permit=denies)
    assert (caught.value.reason, reached[-1]) == (Reason.POLICY_DENIED, Step.POLICY)


def test_the_window_is_half_open() -> None:
    found = artifact()
    start, end = found.statement.predicate.window
    tick = timedelta(microseconds=1)
    for moment in (start, end - tick):
        authorize(found, intent(), host(), moment)
    assert refusal(found, now=start - tick) == (Step.WINDOW, Reason.NOT_YET_VALID)
    assert refusal(found, now=end) == (Step.WINDOW, Reason.EXPIRED)


def test_what_is_not_known_well_enough_is_refused_and_ends_the_window() -> None:
    found = artifact()
    stale = Step.REVOCATION, Reason.REVOCATION_LIST_STALE
    assert refusal(found, facts=host(revocations_problem="no list")) == stale
    assert refusal(found, facts=host(revocations_until=NOW)) == stale
    until = NOW + timedelta(seconds=1)
    assert authorize(found, intent(), host(revocations_until=until), NOW).window[1] == until
    start, end = found.statement.predicate.window
    late = end + timedelta(seconds=1)
    assert authorize(found, intent(), host(revocations_until=late), NOW).window == (start, end)


def test_a_revoked_artifact_is_refused() -> None:
    found = artifact()
    assert refusal(found, facts=host(revoked=Revoked(artifact={found.id: SINCE}))) == (
        Step.REVOCATION,
        Reason.REVOKED,
    )
    authorize(found, intent(), host(revoked=Revoked(artifact={"00" * 32: SINCE})), NOW)


def test_uses_run_out() -> None:
    found = artifact({"uses": 2})
    assert authorize(found, intent(), host(uses={found.id: 1}), NOW).uses_left == 1
    for used in (2, 3):
        assert refusal(found, facts=host(uses={found.id: used})) == (Step.USES, Reason.USES_EXHAUSTED)


def test_scripts_and_libraries_must_be_measured_and_equal() -> None:
    for role in ("script", "library"):
        other = {"name": "/srv/job.py", "digest": {"sha256": SCRIPT_DIGEST}, "annotations": {"role": role}}
        found = artifact(subject=[*statement()["subject"], other])
        assert refusal(found) == (Step.DIGEST, Reason.DIGEST_MISMATCH)
        wrong = intent(measured=(("/srv/job.py", PROGRAM_DIGEST),))
        assert refusal(found, wrong) == (Step.DIGEST, Reason.DIGEST_MISMATCH)
        authorize(found, intent(measured=(("/srv/job.py", SCRIPT_DIGEST),)), host(), NOW)


def test_a_child_need_not_be_measured() -> None:
    other = {"name": "/usr/bin/tar", "digest": {"sha256": SCRIPT_DIGEST}, "annotations": {"role": "child"}}
    authorize(artifact(subject=[*statement()["subject"], other]), intent(), host(), NOW)


def interpreted(argv: list[str]) -> Artifact:
    script = {"name": "/srv/job.py", "digest": {"sha256": SCRIPT_DIGEST}, "annotations": {"role": "script"}}
    return artifact({"intent": {"argv": argv}}, subject=[*statement()["subject"], script])


def test_arguments_after_a_signed_script_may_be_free() -> None:
    asked = intent(
        argv=("python3", "/srv/job.py", "x"),
        program_kind=ProgramKind.INTERPRETER,
        measured=(("/srv/job.py", SCRIPT_DIGEST),),
    )
    result = authorize(interpreted(["python3", "/srv/job.py", "*"]), asked, host(), NOW)
    assert result.argv == (b"python3", b"/srv/job.py", b"x")
    for argv in (["python3", "*", "/srv/job.py"], ["/srv/job.py", "*", "x"], ["python3", "job.py", "*"]):
        assert refusal(interpreted(argv), asked) == (Step.INTENT, Reason.PROGRAM_UNBOUND)


def test_an_interpreter_that_was_copied_to_another_name() -> None:
    """The file looks native under its new name; what was signed is an interpreter."""
    interpreter = statement()["subject"][0] | {"name": "/usr/bin/python3"}
    asked = intent(program="/srv/report", program_kind=ProgramKind.NATIVE)
    assert refusal(artifact(subject=[interpreter]), asked) == (Step.INTENT, Reason.PROGRAM_UNBOUND)
    authorize(artifact(), asked, host(), NOW)


def test_an_intent_is_held_to_be_an_interpreter_unless_it_says_otherwise() -> None:
    assert Intent(program="/x", digest=PROGRAM_DIGEST).program_kind is ProgramKind.INTERPRETER


def test_a_launch_is_held_to_what_it_asked_for() -> None:
    result = authorize(artifact(), intent(argv=("report", "\udcff")), host(), NOW)
    assert (result.argv, result.uid) == ((b"report", b"\xff"), 1000)


def test_free_arguments_longer_than_the_gate_compares_stay_free() -> None:
    assert authorize(artifact(), intent(argv=("report", "x" * 5000)), host(), NOW).argv is None


def test_a_standing_permission_binds_what_is_signed_and_no_more() -> None:
    free = authorize(artifact(), intent(**STANDING), host(), NOW)
    assert (free.argv, free.uid) == (None, None)
    bound = authorize(
        artifact({"identity": {"user": "svc"}, "intent": {"argv": ["report", "é"]}}),
        intent(**STANDING),
        host(),
        NOW,
    )
    assert (bound.argv, bound.uid) == ((b"report", "é".encode()), 1000)


def test_a_signed_value_lets_a_loader_variable_pass() -> None:
    fixed = artifact(declares(environment={"set": {"LD_LIBRARY_PATH": "/srv/lib"}}))
    authorize(fixed, intent(environment=(("LD_LIBRARY_PATH", "/srv/lib"),)), host(), NOW)
    other = intent(environment=(("LD_LIBRARY_PATH", "/tmp"),))
    assert refusal(fixed, other) == (Step.INTENT, Reason.ENVIRONMENT_MISMATCH)


# Few arguments of few kinds, so that equal lists and free arguments are common.
argument_lists = st.lists(st.sampled_from(["*", "a", "b", "é", ""]), min_size=1, max_size=2)


@given(argument_lists, argument_lists)
def test_argv_is_authorized_when_it_is_the_same_list_and_never_otherwise(
    signed_argv: list[str], asked: list[str]
) -> None:
    found = artifact(declares(argv=signed_argv))
    pairs = zip(signed_argv, asked, strict=False)
    equal = len(signed_argv) == len(asked) and all(wanted in ("*", given) for wanted, given in pairs)
    if equal:
        result = authorize(found, intent(argv=tuple(asked)), host(), NOW)
        assert result.argv == tuple(item.encode() for item in asked)
    else:
        assert refusal(found, intent(argv=tuple(asked))) == (Step.INTENT, Reason.ARGV_MISMATCH)


@given(st.sampled_from(AUTHORIZATION))
def test_same_inputs_same_decision(case: Any) -> None:
    _name, predicate, asked, facts, _step, _reason = case
    assert refusal(artifact(predicate), intent(**asked), host(**facts)) == refusal(
        artifact(predicate), intent(**asked), host(**facts)
    )
    found = artifact(EVERY_FIELD)
    assert authorize(found, intent(), host(), NOW) == authorize(found, intent(), host(), NOW)


def test_every_reason_of_the_verifier_is_tested_here() -> None:
    """Every reason named in the sources of the verifier occurs in these two tables, or in a test by name."""
    package = Path(verify.__file__).parent
    sources = [
        package / "verify.py",
        *(
            path
            for path in (package / "checks").glob("*.py")
            if path.name not in {"policy_sets.py", "revocation.py"}
        ),  # test_policy_sets.py, test_revocations.py
        *(
            path
            for path in (package / "artifact").glob("*.py")
            if path.name not in {"hosts.py", "revocations.py"}
        ),  # test_hosts.py, test_revocations.py
    ]
    raised = {
        node.attr
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }
    tests = Path(__file__).read_text(encoding="utf-8")
    assert sorted(name for name in raised if f"Reason.{name}" not in tests) == []


# grants


def test_a_grant_says_what_was_authorized() -> None:
    found = artifact(EVERY_FIELD)
    authorization = authorize(found, intent(), host(), NOW)
    offset = 1_700_000_000_000_000_000
    grant = authorization.grant(MEASURED, boot_offset=offset, cgroup_id=9, seccomp_filters=1)
    start, end = (int(time.timestamp()) * 10**9 - offset for time in found.statement.predicate.window)
    assert grant == Grant(
        artifact_id=found.id,
        scope="agents",
        file=FILE,
        digest=found.statement.program.digest.sha256,
        measured=99,
        subjects=(MEASURED,),
        not_before=start,
        not_after=end,
        uid=1000,
        cgroup_id=9,
        argv=(b"report", b"anything", b"--now"),
        uses=3,
        no_new_privs=True,
        seccomp_filters=1,
    )


def test_a_grant_before_boot_starts_at_boot() -> None:
    grant = authorize(artifact(), intent(), host(), NOW).grant(
        MEASURED, boot_offset=2 * 10**18, cgroup_id=None, seccomp_filters=None
    )
    assert (grant.not_before, grant.not_after) == (0, 0)
    assert not grant.no_new_privs


@pytest.mark.parametrize("year", ["2555", "9999"])
def test_what_outlasts_the_gates_clock_is_valid_as_long_as_it_counts(year: str) -> None:
    """64 bits of nanoseconds end in 2554: an end behind that must not come round to one long ago."""
    found = artifact({"notAfter": f"{year}-12-31T23:59:59Z"})
    grant = authorize(found, intent(), host(), NOW).grant(
        MEASURED, boot_offset=0, cgroup_id=None, seccomp_filters=None
    )
    assert raw_grant(grant, 1, 1, None).not_after == 2**64 - 1


@pytest.mark.parametrize(
    ("cgroup_id", "filters", "reason"),
    [
        (None, 1, Reason.CGROUP_MISMATCH),
        (9, None, Reason.CONSTRAINT_NOT_ATTESTED),
        (9, 0, Reason.CONSTRAINT_NOT_ATTESTED),
    ],
)
def test_no_grant_without_what_it_requires(
    cgroup_id: int | None, filters: int | None, reason: Reason
) -> None:
    authorization = authorize(artifact(EVERY_FIELD), intent(), host(), NOW)
    with pytest.raises(Refused) as caught:
        authorization.grant(MEASURED, boot_offset=0, cgroup_id=cgroup_id, seccomp_filters=filters)
    assert caught.value.reason is reason


def named_script() -> tuple[Artifact, Intent]:
    """An artifact that names a script, and the intent to execute it."""
    subject = {"name": "/srv/x", "digest": {"sha256": SCRIPT_DIGEST}, "annotations": {"role": "script"}}
    found = artifact(subject=[*statement()["subject"], subject])
    return found, intent(measured=(("/srv/x", SCRIPT_DIGEST),))


def test_a_grant_names_what_was_measured() -> None:
    script = Measurement(SCRIPT_DIGEST, msgspec.structs.replace(FILE, inode=3), 98)
    grant = authorize(*named_script(), host(), NOW).grant(
        MEASURED, [script], boot_offset=0, cgroup_id=None, seccomp_filters=None
    )
    assert (grant.subjects, grant.measured) == ((MEASURED, script), 99)


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (PROGRAM_DIGEST, ()),
        (PROGRAM_DIGEST, (PROGRAM_DIGEST,)),
        (PROGRAM_DIGEST, (SCRIPT_DIGEST, PROGRAM_DIGEST)),
        (SCRIPT_DIGEST, (SCRIPT_DIGEST,)),
    ],
)
def test_no_grant_for_other_files_than_those_authorized(program: str, named: tuple[str, ...]) -> None:
    files = [Measurement(digest, FILE, 1) for digest in (program, *named)]
    with pytest.raises(Refused) as caught:
        authorize(*named_script(), host(), NOW).grant(
            files[0], files[1:], boot_offset=0, cgroup_id=None, seccomp_filters=None
        )
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_code_that_is_refused_needs_no_launcher() -> None:
    facts = host(enforceable=frozenset({"code.anonymous"}))
    grant = authorize(artifact(NO_ANONYMOUS), intent(**STANDING), facts, NOW).grant(
        MEASURED, boot_offset=0, cgroup_id=None, seccomp_filters=None
    )
    assert (grant.refuse_anonymous_code, grant.no_new_privs) == (True, False)


def test_code_that_is_allowed_needs_nothing() -> None:
    allowed = artifact({"constraints": {"code": {"anonymous": "allowed"}}})
    grant = authorize(allowed, intent(**STANDING), host(), NOW).grant(
        MEASURED, boot_offset=0, cgroup_id=None, seccomp_filters=None
    )
    assert not grant.refuse_anonymous_code


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Refused) as caught:
        authorize(artifact(NO_ANONYMOUS), intent(), host(), NOW)
    assert caught.value.message == "this host cannot enforce code.anonymous, which takes the tier lsm"


def test_an_authorization_cannot_be_changed() -> None:
    authorization = authorize(artifact(), intent(), host(), NOW)
    with pytest.raises(AttributeError):
        authorization.uid = 0  # type: ignore[misc]  # that it is refused is the test
    assert replace(authorization) == authorization
