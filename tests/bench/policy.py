"""scripts/bench policy: a decision by a set of 1,000 policies; needs no root."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cedarpy import Entities, is_authorized
from cedarpy import PolicySet as Policies

from egs_kernel import __version__
from egs_kernel.daemon.evaluator import Evaluator
from egs_kernel.policy.catalog import Agent, Catalog, Files
from egs_kernel.policy.evaluate import evaluate
from egs_kernel.policy.manifest import TYPE, Manifest
from egs_kernel.policy.questions import Host, Program, Question, Who
from egs_kernel.policy.requests import Request, requests_for
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.vocabulary import SCHEMA
from tests.bench import machine
from tests.bench.part import Part
from tests.bench.report import table
from tests.bench.stats import Summary, summarize
from tests.bench.timers import say

POLICIES: Final = 1000
GOAL_US: Final = 150.0
_FULL, _QUICK = 5000, 200
_AGENTS, _TOOLS = 200, 50
_CALM: Final = 1.0


class PolicyFigures(msgspec.Struct, frozen=True):
    """One run; microseconds.

    Attributes:
        decision: of policies that name an agent, a group, a tool or a label, as the starters' do.
        processor: CPU time of such a decision, on average.
        first: the first decision by these policies: they are parsed.
        named: how many of the policies a request concerned, on average.
        unnamed: of policies that name nothing: Cedar looks at every one.
        whole: all policies, parsed once, under the schema, as a caller of cedarpy would ask.
        text: the same, parsed for each decision.
        asked: through the evaluator, as egsd asks.
        load: milliseconds to parse, check and index the set.
    """

    date: str
    version: str
    machine: machine.Machine
    disturbances: tuple[str, ...]
    decision: Summary
    processor: float
    first: Summary
    named: float
    unnamed: Summary
    whole: Summary
    text: Summary
    asked: Summary
    load: float


def measure(folder: Path, rounds: int) -> PolicyFigures:
    """Each kind asks the same requests in the same order, in this thread."""
    say(f"decisions by {POLICIES} policies")
    load = machine.load()
    chosen = random.Random(7)  # noqa: S311 - the same requests in every run
    manifest = _manifest(_named_policies())
    began = time.perf_counter()
    named = PolicySet.of(manifest)
    loading = (time.perf_counter() - began) * 1000
    unnamed = PolicySet.of(_manifest(_unnamed_policies()))
    questions = [_question(chosen) for _ in range(rounds)]
    requests = [requests_for(question, named.catalog)[0] for question in questions]
    text = "\n".join(policy.text for policy in named.policies.values())
    whole = Policies.from_str(text)
    first = _timed([lambda one=request: evaluate(named, one) for request in _of_distinct(named, requests)])  # type: ignore[misc] # mypy knows no default of a lambda
    began_cpu = time.thread_time_ns()
    decision = _timed([lambda one=request: evaluate(named, one) for request in requests])  # type: ignore[misc] # as above
    processor = (time.thread_time_ns() - began_cpu) / 1000 / rounds
    few = requests[: max(20, rounds // 50)]
    evaluator = Evaluator(manifest.payload)
    try:
        asked = _timed([lambda one=question: evaluator.ask(one) for question in questions])  # type: ignore[misc] # as above
    finally:
        evaluator.close()
    return PolicyFigures(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=machine.describe(folder),
        disturbances=(f"other work ran (load {load:.1f} at the start)",) if load > _CALM else (),
        decision=decision,
        processor=processor,
        first=first,
        named=sum(len(named.slices.names(request)) for request in requests) / len(requests),
        unnamed=_timed([lambda one=request: evaluate(unnamed, one) for request in few]),  # type: ignore[misc] # as above
        whole=_timed([lambda one=request: _plain(named, whole, one) for request in few]),  # type: ignore[misc] # as above
        text=_timed([lambda one=request: _plain(named, text, one) for request in few[:20]]),  # type: ignore[misc] # as above
        asked=asked,
        load=loading,
    )


def _timed(calls: Sequence[Callable[[], object]]) -> Summary:
    times = []
    for call in calls:
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / 1000)
    return summarize(times)


def _of_distinct(policy_set: PolicySet, requests: Sequence[Request]) -> list[Request]:
    """One request of those that concern the same policies."""
    return list({policy_set.slices.names(request): request for request in requests}.values())


def _plain(policy_set: PolicySet, policies: Policies | str, request: Request) -> object:
    entities = Entities.from_json_str(msgspec.json.encode(request.entities).decode(), policy_set.schema)
    ids = {
        name: {"type": entity.type, "id": entity.id}
        for name, entity in (
            ("principal", request.principal),
            ("action", request.action),
            ("resource", request.resource),
        )
    }
    return is_authorized({**ids, "context": request.context}, policies, entities, policy_set.schema)


def _named_policies() -> list[str]:
    """In the proportions of a large installation: most are about one agent, some about all."""
    texts = []
    for number in range(POLICIES):
        agent, tool = number % _AGENTS, number % _TOOLS
        scope, condition = (
            (
                f'principal == Agent::"a{agent}", action == Action::"execute", resource in Tool::"t{tool}"',
                "context.validSeconds <= 3600",
            ),
            (
                f'principal == Agent::"a{agent}", action in Action::"run", resource',
                "resource in principal.tools",
            ),
            (
                f'principal in Group::"g{agent % 20}", action, resource in Label::"l{tool % 10}"',
                "context has risk && context.risk <= 2",
            ),
            (
                f'principal in Group::"g{agent % 20}", action in Action::"run", resource',
                f'context has purpose && context.purpose like "*{number}*"',
            ),
            (f'principal is Workload, action, resource in Package::"p{tool}"', "context.approvals >= 1"),
        )[number // _AGENTS % 5]
        effect = "forbid" if number % 10 == 9 else "permit"
        guard = "unless" if effect == "forbid" else "when"
        texts.append(f'@id("p{number}") {effect}({scope}) {guard} {{ {condition} }};')
    return texts


def _unnamed_policies() -> list[str]:
    return [
        f'@id("p{number}") permit(principal, action, resource) '
        f'when {{ resource.path == "/opt/{number}/program" && context.approvals >= 1 }};'
        for number in range(POLICIES)
    ]


def _manifest(texts: Sequence[str]) -> Manifest:
    tools = tuple(Files(name=f"t{number}", paths=(f"/opt/{number}/program",)) for number in range(_TOOLS))
    agents = tuple(
        Agent(
            name=f"a{number}",
            account=f"agent{number}",
            tools=(f"t{number % _TOOLS}",),
            groups=(f"g{number % 20}",),
        )
        for number in range(_AGENTS)
    )
    return Manifest(
        type=TYPE,
        name="bench",
        version=1,
        scopes=("*",),
        policies={"bench.cedar": "\n".join(texts)},
        schema=SCHEMA,
        catalog=Catalog(agent=agents, tool=tools),
    )


def _question(chosen: random.Random) -> Question:
    agent, tool = chosen.randrange(_AGENTS), chosen.randrange(_TOOLS)
    return Question(
        scope="agents",
        now="2026-11-23T14:00:00Z",
        who=Who(account=f"agent{agent}", uid=10_000 + agent, groups=("users",)),
        host=Host(id="host-1", labels=("prod",)),
        program=Program(path=f"/opt/{tool}/program", digest=f"{tool:064x}"),
        argv=("program", "--input", "/srv/data"),
        cwd="/srv",
        purpose="nightly batch",
        risk="low",
        valid_seconds=900,
        uses=1,
        constraints=("network", "network.none", "syscalls"),
    )


def render(figures: PolicyFigures) -> str:
    """What stands between the markers."""
    met = "met" if figures.decision.median <= GOAL_US else "**missed**"
    rows = [
        (
            "a decision: policies name whom or what they are about",
            figures.decision,
            f"≤ {GOAL_US:g} µs: {met}",
        ),
        ("the first by a selection of policies: they are parsed", figures.first, ""),
        ("policies that name nothing: Cedar looks at every one", figures.unnamed, ""),
        ("cedarpy alone, all policies parsed once, by the schema", figures.whole, ""),
        ("cedarpy alone, the text parsed each time", figures.text, ""),
        ("through the evaluator, as egsd asks", figures.asked, ""),
    ]
    cells = [(what, _us(one.median), _us(one.p99), str(one.count), goal) for what, one, goal in rows]
    host = figures.machine
    beside = f" **Disturbed**: {'; '.join(figures.disturbances)}." if figures.disturbances else ""
    return (
        f"Measured on {figures.date} with egs-kernel {figures.version} on a {'virtual ' * host.virtual}machine: "
        f"{host.cpu}, {host.cores} cores; Linux {host.kernel}.{beside}\n\n"
        f"{table((f'{POLICIES:,} policies', 'median', 'p99', 'decisions', 'goal (median)'), cells)}\n\n"
        f"A request concerned {figures.named:.0f} of them on average; a decision took {figures.processor:.0f} µs of CPU time. Parsing, checking and indexing the set took {figures.load:.0f} ms."
    )


def _us(microseconds: float) -> str:
    return f"{microseconds:,.0f} µs"


PART: Final = Part(
    name="policy",
    description=__doc__,
    kind=PolicyFigures,
    measure=lambda folder, quick: measure(folder, _QUICK if quick else _FULL),
    render=render,
    root=False,
)
