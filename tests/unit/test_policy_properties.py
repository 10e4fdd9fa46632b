"""For whatever sets and questions: the same bytes every time, and what Cedar says to the whole set under the schema."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
from cedarpy import Decision, Entities, is_authorized
from cedarpy import PolicySet as Policies
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.policy.catalog import Agent, Catalog, Files, User, Workload
from egs_kernel.policy.evaluate import answer, evaluate
from egs_kernel.policy.manifest import TYPE, Manifest
from egs_kernel.policy.questions import File, Host, HostState, Lineage, Program, Question, Who
from egs_kernel.policy.requests import Request, requests_for
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.vocabulary import SCHEMA
from tests.harness import REPOSITORY

DIGESTS = ("1" * 64, "2" * 64)
CATALOG = Catalog(
    agent=(Agent(name="research", account="agent", tools=("git", "shell"), groups=("robots",)),),
    workload=(Workload(name="batch", unit="batch.service", groups=("robots",)),),
    user=(User(name="anna", groups=("people",)),),
    tool=(Files(name="git", packages=("git",)), Files(name="shell", paths=("/bin/sh",))),
    label=(Files(name="reviewed", digests=DIGESTS[:1]),),
)

PRINCIPALS = (
    "principal",
    "principal is Agent",
    'principal == User::"anna"',
    'principal in Group::"robots"',
    'principal is User in Group::"people"',
    'principal == Workload::"batch"',
)
ACTIONS = (
    "action",
    'action == Action::"execute"',
    'action in Action::"run"',
    'action in [Action::"load", Action::"start"]',
)
RESOURCES = (
    "resource",
    "resource is Binary",
    'resource in Folder::"/usr"',
    'resource in Label::"reviewed"',
    f'resource == Binary::"sha256:{DIGESTS[1]}"',
    'resource in Package::"git"',
)
CONDITIONS = (
    "true",
    "principal is Agent && resource in principal.tools",
    'context has argv && context.argv.contains("-c")',
    'context has commandLine && context.commandLine like "git *"',
    'context.now.toTime() >= duration("9h") && context.weekday <= 5',
    "context has risk && context.risk >= 3",
    "context.approvals >= 2",
    "context has posture && context.posture.established",
    'resource.path like "/usr/*"',
    'resource in Folder::"/srv" || context.program in Tool::"git"',
    'context.host.labels.containsAny(["ci", "prod"])',
    "context.validSeconds * 4611686018427387904 > 0",
    'context.lineage has requestId && context.lineage.requestId == "r"',
    '[context].contains(context) && context.scope == "agents"',
    'context has variables && context.variables.contains("HOME")',
)


@st.composite
def policy_texts(draw: st.DrawFn) -> str:
    texts = []
    for number in range(draw(st.integers(1, 12))):
        effect = draw(st.sampled_from(("permit", "permit", "forbid")))
        scope = ", ".join(draw(st.sampled_from(words)) for words in (PRINCIPALS, ACTIONS, RESOURCES))
        condition = draw(st.sampled_from(CONDITIONS))
        kind = draw(st.sampled_from(("when", "unless")))
        texts.append(f'@id("p{number}") {effect}({scope}) {kind} {{ {condition} }};')
    return "\n".join(texts)


FILES = st.builds(
    File,
    path=st.sampled_from(("/usr/bin/git", "/bin/sh", "/srv/a.py", "/srv/a b/ü.py")),
    digest=st.sampled_from(DIGESTS),
    package=st.sampled_from((None, "git", "dash")),
)
PROGRAMS = FILES.map(lambda file: Program(path=file.path, digest=file.digest, package=file.package))
QUESTIONS = st.builds(
    Question,
    scope=st.sampled_from(("agents", "other")),
    now=st.sampled_from(("2026-11-23T14:00:00Z", "2026-11-22T03:00:00Z", "2028-02-29T23:59:59Z")),
    who=st.builds(
        Who,
        account=st.sampled_from(("agent", "anna", "root")),
        uid=st.sampled_from((None, 0, 1000)),
        groups=st.sampled_from(((), ("people",), ("people", "adm"))),
        unit=st.sampled_from((None, "batch.service")),
        spiffe_id=st.sampled_from((None, "spiffe://a/b")),
    ),
    host=st.builds(Host, id=st.just("h"), labels=st.sampled_from(((), ("ci",), ("prod", "ci")))),
    program=PROGRAMS,
    scripts=st.lists(FILES, max_size=2).map(tuple),
    libraries=st.lists(FILES, max_size=1).map(tuple),
    children=st.lists(PROGRAMS, max_size=2).map(tuple),
    argv=st.none() | st.lists(st.text(max_size=8) | st.just("-c"), min_size=1, max_size=4).map(tuple),
    standing=st.booleans(),
    cwd=st.sampled_from((None, "/srv")),
    variables=st.none() | st.lists(st.sampled_from(("HOME", "PATH")), max_size=2).map(tuple),
    purpose=st.none() | st.just("why"),
    risk=st.sampled_from((None, "low", "medium", "high", "critical")),
    valid_seconds=st.integers(0, 2**32),
    uses=st.none() | st.integers(1, 9),
    constraints=st.sampled_from(((), ("network", "network.none"))),
    approvals=st.integers(0, 3),
    lineage=st.builds(Lineage, request_id=st.sampled_from((None, "r"))),
    posture=st.none()
    | st.builds(
        HostState,
        established=st.booleans(),
        kernel=st.just("6.12"),
        lockdown=st.just("none"),
        tier=st.just("lsm"),
        seal=st.just("sealed"),
        clock_synchronized=st.booleans(),
    ),
)


def policy_set(text: str) -> PolicySet:
    return PolicySet.of(
        Manifest(
            type=TYPE,
            name="t",
            version=1,
            scopes=("*",),
            policies={"a.cedar": text},
            schema=SCHEMA,
            catalog=CATALOG,
        )
    )


def by_cedar_alone(found: PolicySet, request: Request) -> tuple[str, list[str], int]:
    """The whole set, the whole request, checked by the schema; with ids in the place of Cedar's numbers."""
    names = list(found.policies)
    whole = Policies.from_str("\n".join(policy.text for policy in found.policies.values()))
    entities = Entities.from_json_str(msgspec.json.encode(request.entities).decode(), found.schema)
    ids = {
        name: {"type": entity.type, "id": entity.id}
        for name, entity in (
            ("principal", request.principal),
            ("action", request.action),
            ("resource", request.resource),
        )
    }
    result = is_authorized({**ids, "context": request.context}, whole, entities, found.schema)
    assert result.decision is not Decision.NoDecision, result.diagnostics.errors
    reasons = sorted(names[int(reason.removeprefix("policy"))] for reason in result.diagnostics.reasons)
    return result.decision.value, reasons, len(result.diagnostics.errors)


@settings(max_examples=40)
@given(policy_texts(), QUESTIONS)
def test_slices_say_what_cedar_says_to_the_whole(text: str, question: Question) -> None:
    found = policy_set(text)
    for request in requests_for(question, CATALOG):
        said = evaluate(found, request)
        decision, reasons, errors = by_cedar_alone(found, request)
        assert (list(said.determining), len(said.errors)) == (reasons, errors)
        assert said.permitted == (decision == "Allow" and not errors)


@settings(max_examples=40)
@given(policy_texts(), QUESTIONS)
def test_the_same_set_and_question_give_the_same_bytes(text: str, question: Question) -> None:
    """Another set of the same content, another order of what is a set, another time: the same."""
    shuffled = msgspec.structs.replace(
        question,
        who=msgspec.structs.replace(question.who, groups=question.who.groups[::-1]),
        host=msgspec.structs.replace(question.host, labels=question.host.labels[::-1]),
        variables=None if question.variables is None else question.variables[::-1],
    )
    first, second = policy_set(text), policy_set(text)
    assert first.digest == second.digest
    answers = {
        answer(found, asked).canonical for found in (first, second, first) for asked in (question, shuffled)
    }
    assert len(answers) == 1


@settings(max_examples=30)
@given(QUESTIONS)
def test_a_question_survives_its_json(question: Question) -> None:
    """What the daemon asks is what the evaluator is asked."""
    assert msgspec.json.decode(msgspec.json.encode(question), type=Question) == question


def said_to_many() -> bytes:
    """What a set says by many policies at once, of somebody in many groups: whatever has no order of its own has many members."""
    permits = [f'@id("permit-{number}") permit(principal, action, resource);' for number in range(12)]
    fails = [
        f'@id("fails-{number}") forbid(principal, action, resource) when {{ context.validSeconds * 4611686018427387904 > {number} }};'
        for number in range(6)
    ]
    names = tuple(f"name-{number}" for number in range(20))
    asked = Question(
        scope="agents",
        now="2026-11-23T14:00:00Z",
        who=Who(account="anna", uid=1000, groups=names),
        host=Host(id="h", labels=names),
        program=Program(path="/usr/bin/git", digest=DIGESTS[0], package="git"),
        argv=names,
        variables=names,
        constraints=names,
        valid_seconds=600,
    )
    sets = (policy_set("\n".join(permits)), policy_set("\n".join((*permits, *fails))))
    return b"\n".join(answer(found, asked).canonical for found in sets)


def test_another_process_says_the_same() -> None:
    """Python gives texts another order in sets and dictionaries' keys by another seed."""
    code = "import sys; from tests.unit.test_policy_properties import said_to_many; sys.stdout.buffer.write(said_to_many())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {said_to_many()}
    assert (said_to_many().count(b"permit-"), said_to_many().count(b"`fails-")) == (24, 6)
