"""What the node asks policy, and the evaluator that answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.statement import Identity, Statement, parse_statement
from egs_kernel.daemon.evaluator import Evaluator
from egs_kernel.daemon.permits import _who
from egs_kernel.daemon.policy import Policy, require_permitted
from egs_kernel.daemon.questions import question_of, require_user
from egs_kernel.errors import Refused
from egs_kernel.model import Intent, ProgramKind, Reason
from egs_kernel.policy.evaluate import answer
from egs_kernel.policy.evaluation import Effect, Evaluation
from egs_kernel.policy.questions import MOST_WORDS, Question, Who
from egs_kernel.policy.requests import requests_for
from egs_kernel.posture import EMPTY_POLICY
from tests.unit.issuing import EVERY_FIELD, host, intent, statement
from tests.unit.test_policy_evaluate import policy_set, question

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)


def signed_statement() -> Statement:
    return parse_statement(canonical.encode(statement(EVERY_FIELD)))


def asked(by: Intent | None = None) -> Question:
    return question_of(
        signed_statement(),
        by or intent(),
        who=Who(account="svc", uid=7),
        host_id="host-1",
        labels=("prod",),
        posture=host().posture,
        now=NOW,
    )


def test_what_is_asked_is_what_was_found_and_what_was_signed() -> None:
    launch = asked()
    found = signed_statement()
    start, end = found.predicate.window
    assert (launch.program.path, launch.program.digest) == (intent().program, intent().digest)
    assert (launch.argv, launch.cwd, launch.standing) == (intent().argv, intent().cwd, False)
    assert launch.valid_seconds == (end - start).total_seconds()
    assert (launch.approvals, launch.ticket, launch.risk) == (2, "CHG-1", "low")
    assert {"syscalls"} <= set(launch.constraints)
    assert launch.posture is not None
    assert launch.now == "2026-11-23T14:30:00Z"
    assert requests_for(launch, policy_set().catalog)


def test_more_words_than_policy_is_asked_about_are_refused() -> None:
    """Who launches with many keeps nobody else waiting."""
    assert asked(by=msgspec.structs.replace(intent(), argv=("a",) * MOST_WORDS))
    with pytest.raises(Refused) as caught:
        asked(by=msgspec.structs.replace(intent(), argv=("a",) * (MOST_WORDS + 1)))
    assert caught.value.reason is Reason.POLICY_DENIED


def test_what_stands_is_asked_about_by_what_was_signed() -> None:
    stands = asked(by=msgspec.structs.replace(intent(), argv=None, environment=None, cwd=None))
    declared = signed_statement().predicate.intent
    assert declared is not None
    assert (stands.standing, stands.argv, stands.variables) == (True, declared.argv, None)


def test_what_stands_for_everybody_cannot_be_asked_about() -> None:
    predicate = signed_statement().predicate
    with pytest.raises(Refused) as caught:
        require_user(msgspec.structs.replace(predicate, identity=None))
    assert caught.value.reason is Reason.POLICY_DENIED
    require_user(msgspec.structs.replace(predicate, identity=Identity(uid=3)))


def test_who_asks_is_as_the_kernel_says_or_as_it_was_signed() -> None:
    launching = Intent(program="/bin/true", digest="0", argv=("true",), uid=0, groups=(0,), unit="a.service")
    found = _who(launching, Identity(user="somebody-else"))
    assert found == Who(account="root", uid=0, groups=("root",), unit="a.service")
    standing = msgspec.structs.replace(launching, argv=None, uid=None, groups=(), unit=None)
    assert _who(standing, Identity(user="root")).account == "root"
    assert _who(standing, Identity(uid=0)).account == "root"
    unknown = msgspec.structs.replace(launching, uid=2**31, groups=(2**31,), unit=None)
    assert _who(unknown, None) == Who(account=None, uid=2**31, groups=())


def test_a_denial_tells_by_what_and_what_to_do() -> None:
    said = Evaluation(
        effect=Effect.DENY,
        determining=("a", "b"),
        advice=("Ask.",),
        errors=(),
        policy_digest="",
        request_digest="",
    )
    with pytest.raises(Refused, match=r"a, b forbids it \[policy_denied\]") as caught:
        require_permitted(said)
    assert caught.value.next_step == "Ask."
    with pytest.raises(Refused, match="no policy permits it"):
        require_permitted(msgspec.structs.replace(said, determining=(), advice=()))
    with pytest.raises(Refused, match=r"cannot be evaluated denies: overflow in c \[policy_denied\]"):
        require_permitted(msgspec.structs.replace(said, errors=("overflow in c",)))
    require_permitted(msgspec.structs.replace(said, effect=Effect.PERMIT))


def test_a_node_whose_record_names_a_set_refuses_until_it_has_it() -> None:
    assert not Policy().governs("agents")
    lost = Policy({"rules": (3, "ab" * 32)}, "ab" * 32)
    assert lost.governs("agents")
    assert lost.problem
    with pytest.raises(Refused) as caught:
        lost.ask(question)
    assert caught.value.reason is Reason.POLICY_UNAVAILABLE
    assert Policy().digest == EMPTY_POLICY


# -- the evaluator


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    found = Evaluator(policy_set().manifest.payload)
    yield found
    found.close()


def test_the_evaluator_says_what_cedar_says_here(evaluator: Evaluator) -> None:
    for changes in ({}, {"who": Who(account="anna")}, {"now": "2026-11-23T23:00:00Z"}):
        wanted = answer(policy_set(), question(**changes))
        assert evaluator.ask(question(**changes)).canonical == wanted.canonical


def test_what_cannot_be_asked_is_refused_and_the_next_is_answered(evaluator: Evaluator) -> None:
    with pytest.raises(Refused, match="no text"):
        evaluator.ask(question(argv=("\udcff",)))
    with pytest.raises(Refused, match="policy cannot be asked that"):
        evaluator.ask(question(scope="NO SCOPE"))
    assert evaluator.ask(question()).permitted


def test_a_set_that_is_none_starts_no_evaluator() -> None:
    broken = msgspec.structs.replace(policy_set().manifest, policies={"a.cedar": "permit("})
    for payload in (broken.payload, b"{}"):
        with pytest.raises(Refused) as caught:
            Evaluator(payload)
        assert caught.value.reason is Reason.POLICY_INVALID


def test_an_evaluator_that_ended_is_closed(evaluator: Evaluator) -> None:
    evaluator._process.kill()
    evaluator._process.wait()
    assert evaluator.closed
    with pytest.raises(Refused) as caught:
        evaluator.ask(question())
    assert caught.value.reason is Reason.POLICY_UNAVAILABLE


def test_the_daemon_has_no_cedar_and_without_a_set_nothing_of_policy() -> None:
    """26 MB, and its memory is tested."""
    code = "import sys, egs_kernel.daemon.app; print(*(n for n in sys.modules if n.startswith(('cedarpy', 'egs_kernel.policy'))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
    code = "import sys, egs_kernel.daemon.evaluator, egs_kernel.daemon.questions, egs_kernel.checks.policy_sets; print('cedarpy' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False"]


def test_an_interpreter_is_asked_about_as_one() -> None:
    kind = asked(by=msgspec.structs.replace(intent(), program_kind=ProgramKind.INTERPRETER)).program.kind
    assert kind is ProgramKind.INTERPRETER
