"""Drift, the pure part: queue, rules, baselines out of entries, comparisons."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pytest

from egs_kernel.artifact.drift import DriftConstraint
from egs_kernel.artifact.limits import ResourceConstraint
from egs_kernel.artifact.reach import NetworkConstraint
from egs_kernel.audit.entries import (
    ArtifactChange,
    BaselineEntry,
    ConfigurationChange,
    Decision,
    Entry,
    Exec,
    Fact,
    FindingEntry,
    PolicyChange,
    PostureEntry,
    Recorded,
    ResponseEntry,
    ScopeState,
    WatchChange,
)
from egs_kernel.drift.authorized import Authorized
from egs_kernel.drift.baselines import Baseline, Baselines
from egs_kernel.drift.compare import Context, compare_process, compare_tree
from egs_kernel.drift.judge import compare_authorization, compare_files, judge_event
from egs_kernel.drift.observations import Lost, ProcessEvent, Queue
from egs_kernel.drift.rules import DEFAULTS, Rules, decide, parse_rules
from egs_kernel.drift.states import Executable, Mapping, Opened, ProcessState
from egs_kernel.drift.words import MEANINGS
from egs_kernel.errors import UsageError
from egs_kernel.findings import HOST_FINDINGS, Finding, Response, Severity, severity_of
from egs_kernel.model import GrantKind, Mode, OnMissing, Reason, TaskIdentity, Verdict
from tests import chains

PAGE: Final = (Path(__file__).parents[2] / "docs/drift.md").read_text()
ARTIFACT: Final = "ab" * 32
PROGRAM: Final = ("/srv/report", "11" * 32)
EVENT: Final = msgspec.structs.replace(
    next(entry.event for entry in chains.story() if isinstance(entry, Exec)),
    execution=77,
    parent_execution=0,
    pid=4242,
    start_ticks=900,
    uid=1000,
    euid=1000,
    gid=1000,
    scope="agents",
    filename=PROGRAM[0],
    artifact_id=ARTIFACT,
    no_new_privs=True,
    seccomp_mode=2,
    seccomp_filters=2,
    reason=Reason.AUTHORIZED,
)
POSTURE: Final = next(entry for entry in chains.story() if isinstance(entry, PostureEntry))
FACTS: Final = {
    "net": "1",
    "mnt": "2",
    "root": "device 0x1 inode 2",
    "capabilities": "0",
    "groups": "27 1000",
}
GOOD: Final = ProcessState(
    time=5,
    pid=EVENT.pid,
    start_ticks=EVENT.start_ticks,
    execution=EVENT.execution,
    inherited=False,
    uids=(1000, 1000, 1000, 1000),
    gids=(1000, 1000, 1000, 1000),
    capabilities=0,
    tracer=0,
    no_new_privs=True,
    seccomp_mode=2,
    seccomp_filters=2,
    namespaces=(("net", 1), ("mnt", 2)),
    root=(1, 2),
    cgroup="/agents/a",
    executable=Executable(path=PROGRAM[0], inode=EVENT.file.inode, digest=""),
    code=(Mapping(PROGRAM[0], EVENT.file.inode), Mapping("/usr/lib/libc.so.6", 9, trusted=True)),
    sockets=(),
)


@dataclass
class Told:
    """A record that is told entry by entry."""

    baselines: Baselines = field(default_factory=Baselines)
    _numbers: Any = field(default_factory=itertools.count)

    def tell(self, *entries: Entry) -> Told:
        for entry in entries:
            seq = next(self._numbers)
            time = f"2026-11-23T14:00:{seq:02}.000000Z"
            self.baselines.take(Recorded(seq=seq, time=time, entry=entry, hash=""))  # type: ignore[arg-type]  # one of them
        return self


def known(**said: Any) -> Context:
    """What is compared with: one execution, and what its artifact says."""
    told = Told().tell(Exec(event=EVENT))
    told.baselines.executions[EVENT.execution].facts = dict(FACTS)
    told.baselines.artifacts[ARTIFACT] = Authorized(id=ARTIFACT, program=PROGRAM, **said)
    return Context(
        baselines=told.baselines, rules=Rules(), library_roots=("/usr/lib",), cgroups={"agents": "/agents"}
    )


def found(context: Context, **changes: Any) -> list[Finding]:
    return [
        each.finding for each in compare_process(msgspec.structs.replace(GOOD, **changes), context, "sweep")
    ]


def test_what_is_as_it_was_authorized_is_no_finding() -> None:
    assert found(known()) == []


EXECUTABLE: Final = GOOD.executable
assert EXECUTABLE is not None


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"uids": (1000, 0, 0, 0)}, Finding.CREDENTIALS_RAISED),
        ({"gids": (1000, 0, 0, 0)}, Finding.CREDENTIALS_RAISED),
        ({"gids": (1000, 6, 6, 6)}, Finding.CREDENTIALS_RAISED),
        ({"groups": (1000, 42)}, Finding.CREDENTIALS_RAISED),
        ({"capabilities": 1 << 21}, Finding.CAPABILITIES_RAISED),
        ({"tracer": 7}, Finding.TRACED),
        ({"no_new_privs": False}, Finding.RESTRICTION_LOST),
        ({"seccomp_filters": 1}, Finding.RESTRICTION_LOST),
        ({"seccomp_mode": 0, "seccomp_filters": 0}, Finding.RESTRICTION_LOST),
        ({"namespaces": (("net", 3), ("mnt", 2))}, Finding.NAMESPACE_CHANGED),
        ({"root": (1, 3)}, Finding.ROOT_CHANGED),
        ({"cgroup": "/agentsmith"}, Finding.CGROUP_LEFT),
        ({"cgroup": "/"}, Finding.CGROUP_LEFT),
        ({"code": (Mapping(""),)}, Finding.ANONYMOUS_CODE),
        ({"code": (Mapping("/dev/zero (deleted)", 3),)}, Finding.ANONYMOUS_CODE),
        ({"code": (Mapping("/tmp/x.so", 3, trusted=True),)}, Finding.CODE_MAPPED),
        ({"code": (Mapping("/usr/lib/x.so", 3),)}, Finding.CODE_MAPPED),
        ({"code": (Mapping("/usr/lib/x.so", 3, trusted=True, written=True),)}, Finding.MEMORY_WRITTEN),
        ({"code": (Mapping("[vdso]", written=True),)}, Finding.MEMORY_WRITTEN),
        ({"variables": ("LD_PRELOAD",)}, Finding.ENVIRONMENT_LOADS_CODE),
        ({"executable": Executable("/memfd:x (deleted)", EVENT.file.inode, "")}, Finding.MEMFD_EXECUTED),
        ({"executable": Executable("/bin/sh", 99, "")}, Finding.PROGRAM_REPLACED),
        ({"executable": msgspec.structs.replace(EXECUTABLE, deleted=True)}, Finding.PROGRAM_DELETED),
        (
            {"executable": msgspec.structs.replace(EXECUTABLE, deleted=True, replaced=True)},
            Finding.PROGRAM_REPLACED,
        ),
        ({"executable": msgspec.structs.replace(EXECUTABLE, digest="22" * 32)}, Finding.PROGRAM_CHANGED),
    ],
)
def test_what_differs_is_found(changes: dict[str, Any], finding: Finding) -> None:
    assert found(known(), **changes) == [finding]


@pytest.mark.parametrize(
    ("said", "changes", "finding"),
    [
        ({"may_fork": False}, {"inherited": True}, Finding.CHILD_UNEXPECTED),
        (
            {"drift": DriftConstraint(listen=(80,))},
            {"sockets": (Opened(81, listens=True),)},
            Finding.SOCKET_LISTENS,
        ),
        (
            {"drift": DriftConstraint(connect=())},
            {"sockets": (Opened(443, listens=False),)},
            Finding.SOCKET_CONNECTED,
        ),
        (
            {"network": NetworkConstraint(mode="ports", bind=(80,))},
            {"sockets": (Opened(81, listens=True),)},
            Finding.SOCKET_LISTENS,
        ),
        ({"resources": ResourceConstraint(open_files=64)}, {"open_files": 65}, Finding.CEILING_EXCEEDED),
        (
            {"resources": ResourceConstraint(cpu_seconds=9)},
            {"processor_seconds": None},
            Finding.CEILING_EXCEEDED,
        ),
        ({"resources": ResourceConstraint(memory=1 << 22)}, {"resident": 1 << 23}, Finding.CEILING_EXCEEDED),
        ({"capabilities": 0}, {"capabilities": 1}, Finding.CAPABILITIES_RAISED),
    ],
)
def test_what_its_artifact_refuses_is_found(
    said: dict[str, Any], changes: dict[str, Any], finding: Finding
) -> None:
    assert found(known(**said), **changes) == [finding]
    assert found(known(), **changes) == ([finding] if finding is Finding.CAPABILITIES_RAISED else [])


def test_what_its_artifact_expects_is_none() -> None:
    assert found(known(makes_code=True), code=(Mapping(""),)) == []
    assert found(known(files=(("/opt/x.so", ""),)), code=(Mapping("/opt/x.so", 3),)) == []
    assert found(known(variables=frozenset({"LD_PRELOAD"})), variables=("LD_PRELOAD",)) == []
    ports = DriftConstraint(listen=(80,), connect=(443,))
    assert found(known(drift=ports), sockets=(Opened(80, listens=True), Opened(443, listens=False))) == []


def test_who_was_not_seen_to_begin_may_not_be_in_group_0_all_the_same() -> None:
    context = known()
    context.baselines.executions[EVENT.execution].facts = None
    assert found(context, gids=(1000, 6, 6, 6), groups=(42,)) == [], (
        "a set-group-ID program, for all that is known"
    )
    assert found(context, gids=(1000, 0, 0, 0)) == [Finding.CREDENTIALS_RAISED]


def test_the_groups_that_user_0_was_in_are_nobodys_elses() -> None:
    """What a service of root's executes as another user has other groups than it."""
    context = known()
    executions = context.baselines.executions
    executions[EVENT.execution].event = msgspec.structs.replace(EVENT, uid=0, euid=0, gid=0)
    child = msgspec.structs.replace(EVENT, execution=78, parent_execution=EVENT.execution)
    executions[78] = Baseline(event=child, artifact_id=ARTIFACT)
    assert found(context, execution=78, groups=(33,)) == []
    executions[78].facts = FACTS | {"groups": "1000 33"}
    assert found(context, execution=78, groups=(33,)) == []
    assert found(context, execution=78, groups=(42,)) == [Finding.CREDENTIALS_RAISED]


def test_user_0_can_raise_nothing() -> None:
    context = known()
    baseline = context.baselines.executions[EVENT.execution]
    baseline.event = msgspec.structs.replace(EVENT, uid=0, euid=0, gid=0)
    assert found(context, uids=(0, 33, 33, 33), gids=(0, 33, 33, 33), capabilities=1) == []


def test_a_tree_that_is_beyond_a_limit_together() -> None:
    said = Authorized(id=ARTIFACT, program=PROGRAM, resources=ResourceConstraint(processes=3))
    states = [msgspec.structs.replace(GOOD, threads=2)] * 2
    assert [each.finding for each in compare_tree(77, states, said, "sweep")] == [Finding.CEILING_EXCEEDED]
    assert compare_tree(77, states[:1], said, "sweep") == []


def test_what_becomes_of_an_authorization() -> None:
    context = known(signers=("k1",), not_after=100.0, resources=ResourceConstraint(wall_seconds=5))
    baselines = context.baselines
    baseline = baselines.executions[EVENT.execution]

    def now(seconds: float = 50.0, boot: int = EVENT.time) -> list[Finding]:
        return [each.finding for each in compare_authorization(baseline, context, seconds, boot, "timer")]

    assert now() == []
    assert now(100.0) == [Finding.ARTIFACT_EXPIRED]
    assert now(boot=EVENT.time + 6_000_000_000) == [Finding.OVERDUE]
    baselines.trusted, baselines.policy, baselines.policies[ARTIFACT] = frozenset({"k1"}), "p1", "p1"
    assert now() == []
    baselines.trusted, baselines.policy = frozenset({"k2"}), "p2"
    assert set(now()) == {Finding.KEY_REVOKED, Finding.POLICY_CHANGED}
    Told(baselines).tell(ArtifactChange(action="removed", artifact_id=ARTIFACT))
    assert Finding.ARTIFACT_SUPERSEDED in now()
    Told(baselines).tell(ArtifactChange(action="revoked", artifact_id=ARTIFACT))
    assert Finding.ARTIFACT_REVOKED in now()


def test_a_policy_set_that_is_activated_is_another_one_for_its_scopes() -> None:
    context = known()
    baselines = context.baselines
    baseline = baselines.executions[EVENT.execution]
    baselines.policies[ARTIFACT] = "p1"
    applied = ConfigurationChange(action="applied", cause="start", policy_digest="p1", trusted_keys=())

    def activate(digest: str, *scopes: str, refused: bool = False) -> list[Finding]:
        action: Literal["activated", "refused"] = "refused" if refused else "activated"
        told = Told(baselines).tell(PolicyChange(action=action, cause="x", digest=digest, scopes=scopes))
        assert told.baselines.take_changed()
        return [each.finding for each in compare_authorization(baseline, context, 50.0, EVENT.time, "timer")]

    Told(baselines).tell(applied)
    baselines.trusted = None
    assert activate("p1", EVENT.scope) == []
    assert activate("p2", EVENT.scope, refused=True) == []
    assert activate("p2", "elsewhere") == []
    Told(baselines).tell(msgspec.structs.replace(applied, cause="reload", policy_digest="p2"))
    baselines.trusted = None
    assert activate("p2", "elsewhere") == [], "a reload changes nothing about whom it is about"
    assert activate("p3", EVENT.scope) == [Finding.POLICY_CHANGED]


def test_files_are_compared_by_content() -> None:
    said = Authorized(id=ARTIFACT, program=PROGRAM, files=(("/s", "33" * 32),))
    now = {PROGRAM[0]: PROGRAM[1], "/s": "33" * 32}
    assert compare_files(said, now.get) == []
    assert [each for each, _ in compare_files(said, {**now, "/s": ""}.get)] == [Finding.SUBJECT_CHANGED]
    assert [each for each, _ in compare_files(said, {**now, PROGRAM[0]: "4"}.get)] == [
        Finding.PROGRAM_REPLACED
    ]
    assert compare_files(said, lambda _path: None) == [], "what cannot be told now is told by the next sweep"


def test_an_event_that_says_enough_is_a_finding_and_any_other_a_reason_to_look() -> None:
    event = ProcessEvent(
        source="drift", time=3, suspicion=Finding.MEMORY_WRITTEN, pid=4242, execution=77, by=9
    )
    assert judge_event(event, known()) is not None
    launching = known()
    launching.baselines.daemon = 9
    assert judge_event(event, launching) is None
    assert found(launching, tracer=9) == []
    for suspicion in (Finding.CODE_MAPPED, Finding.SOCKET_LISTENS):
        assert judge_event(msgspec.structs.replace(event, suspicion=suspicion), known()) is None
    capable = msgspec.structs.replace(event, suspicion=Finding.CAPABILITIES_RAISED, number=1 << 10)
    assert judge_event(capable, known()) is not None
    assert judge_event(capable, known(capabilities=1 << 10)) is None, "it was signed"
    other_ids = msgspec.structs.replace(event, suspicion=Finding.CREDENTIALS_RAISED)
    assert judge_event(other_ids, known()) is None, "the event does not say that these are more"
    code = msgspec.structs.replace(event, suspicion=Finding.ANONYMOUS_CODE)
    assert judge_event(code, known()) is not None
    assert judge_event(code, known(makes_code=True)) is None


# -- the record --------------------------------------------------------------------------------------


def test_baselines_are_the_same_for_who_was_there_and_who_comes_later() -> None:
    posture = POSTURE
    entries = (
        posture,
        ConfigurationChange(
            action="applied",
            cause="start",
            policy_digest="p",
            trusted_keys=("k",),
            scopes=(ScopeState("agents", Mode.OBSERVE, OnMissing.KILL),),
        ),
        Exec(event=EVENT),
        BaselineEntry(
            of="process",
            boot_id=posture.posture.boot_id,
            execution=77,
            facts=tuple(Fact(name, value) for name, value in FACTS.items()),
        ),
        Exec(event=msgspec.structs.replace(EVENT, execution=78, parent_execution=77, pid=4243)),
    )
    baselines = Told().tell(*entries).baselines
    assert baselines.facts_of(78) == FACTS, "what it executed has its own"
    assert baselines.mode_of("agents") is Mode.OBSERVE
    assert baselines.mode_of("unknown") is Mode.ENFORCE
    baselines.forget(frozenset({78}))
    assert baselines.facts_of(78) == FACTS


def test_the_namespaces_that_a_launch_is_given_are_no_drift_and_no_others() -> None:
    """Within a governed program: `egs run` under an artifact that gives a network of its own."""
    context = known()
    told = Told(context.baselines)
    alone = ARTIFACT.replace("ab", "cd")
    context.baselines.artifacts[alone] = Authorized(
        id=alone, program=PROGRAM, network=NetworkConstraint(mode="none")
    )
    unshared = ProcessEvent(
        source="drift",
        time=50,
        suspicion=Finding.NAMESPACE_CHANGED,
        pid=EVENT.pid,
        start_ticks=EVENT.start_ticks,
        execution=77,
        name="user, net",
    )
    other = msgspec.structs.replace(unshared, name="mnt")
    apart = {"namespaces": (("net", 9), ("mnt", 2))}
    assert judge_event(unshared, context) is not None
    assert found(context, **apart) == [Finding.NAMESPACE_CHANGED]
    decision = Decision(
        verdict=Verdict.ALLOW,
        reason=Reason.AUTHORIZED,
        scope="agents",
        policy_digest="",
        posture="",
        request="4f",
        artifact_id=alone,
        grant_kind=GrantKind.ARMED,
        task=TaskIdentity(EVENT.pid, EVENT.start_ticks),
    )
    told.tell(decision)
    assert judge_event(unshared, context) is None
    assert judge_event(other, context) is not None
    assert judge_event(msgspec.structs.replace(unshared, pid=1), context) is not None, "another process"
    assert found(context, **apart) == []
    assert found(context, namespaces=(("net", 1), ("mnt", 8))) == [Finding.NAMESPACE_CHANGED]
    launched = msgspec.structs.replace(
        EVENT, execution=78, parent_execution=77, time=60, artifact_id=alone, grant_kind=GrantKind.ARMED
    )
    told.tell(Exec(event=launched))
    assert judge_event(unshared, context) is None, "it happened before the exec, and is read after it"
    assert judge_event(msgspec.structs.replace(unshared, time=70), context) is not None
    assert context.baselines.facts_of(78) == {name: value for name, value in FACTS.items() if name != "net"}
    refused = msgspec.structs.replace(
        decision, verdict=Verdict.DENY, grant_kind=GrantKind.NONE, reason=Reason.LAUNCHER_LOST
    )
    told.tell(decision, refused)
    assert judge_event(unshared, context) is not None, "nothing came of that launch"


def test_a_response_that_is_missing_is_known() -> None:
    finding = FindingEntry(
        number=5,
        finding=Finding.TRACED,
        severity="high",
        source="sweep",
        detail="d",
        response="terminate",
        rule="artifact",
        execution=77,
        pid=4242,
    )
    told = Told().tell(Exec(event=EVENT), finding)
    assert told.baselines.unanswered() == [finding]
    assert (Finding.TRACED, 77, 4242, "d") in told.baselines.told
    told.tell(
        ResponseEntry(
            number=5, response="terminate", verified=True, processes=1, microseconds=9, execution=77
        )
    )
    assert told.baselines.unanswered() == []


def test_another_boot_begins_anew() -> None:
    told = Told().tell(POSTURE, Exec(event=EVENT), WatchChange(action="started", pid=1, boot_id=""))
    assert told.baselines.watched is not None
    posture = POSTURE
    other = msgspec.structs.replace(posture.posture, boot_id="another")
    told.tell(msgspec.structs.replace(posture, posture=other))
    assert told.baselines.executions == {}
    assert told.baselines.watched is None


# -- rules -------------------------------------------------------------------------------------------


def test_what_is_signed_goes_before_the_hosts_rules_and_never_below_the_least() -> None:
    rules = parse_rules(b"""[responses]
traced = "suspend"
[at_least]
anonymous_code = "quarantine"
""")
    signed = DriftConstraint(on={"traced": "alert", "anonymous_code": "alert"})
    assert decide(rules, Finding.TRACED, None, Mode.ENFORCE).response is Response.SUSPEND
    assert decide(rules, Finding.TRACED, signed, Mode.ENFORCE).response is Response.ALERT
    assert decide(rules, Finding.ANONYMOUS_CODE, signed, Mode.ENFORCE).response is Response.QUARANTINE
    assert decide(rules, Finding.TRACED, None, Mode.OBSERVE).response is Response.ALERT
    assert "suspend" in decide(rules, Finding.TRACED, None, Mode.OBSERVE).rule
    dry = msgspec.structs.replace(rules, dry_run=True)
    assert decide(dry, Finding.TRACED, None, Mode.ENFORCE).response is Response.ALERT


def test_by_default_only_what_was_decided_ends_anything() -> None:
    for finding in Finding:
        expected = DEFAULTS.get(finding, Response.ALERT)
        assert decide(Rules(), finding, None, Mode.ENFORCE).response is expected
    assert set(DEFAULTS) == {Finding.ARTIFACT_REVOKED, Finding.KEY_REVOKED, Finding.OVERDUE}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'[responses]\nnothing = "alert"', "nothing"),
        (b'[responses]\ntraced = "kill"', "kill"),
        (b'[responses]\nmodule_loaded = "terminate"', "module_loaded"),
        (b'[expected]\ncode = ["lib"]', "lib"),
        (b'interval = "often"', "often"),
        (b"more = 1", "more"),
        (b"\xff", "drift.toml"),
        pytest.param(b"more = " + b"9" * 5000, "digits", id="a number of 5000 digits"),
        pytest.param(b"more = " + b"[" * 5000, "recursion", id="5000 lists in each other"),
    ],
)
def test_rules_that_are_wrong_say_where(content: bytes, word: str) -> None:
    with pytest.raises(UsageError, match=re.escape(word)):
        parse_rules(content)


def test_the_document_has_the_rules_the_findings_and_their_defaults() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert parse_rules(example.encode()).at_least == {Finding.MEMORY_WRITTEN: Response.TERMINATE}
    for finding in Finding:
        done = "—" if finding in HOST_FINDINGS else DEFAULTS.get(finding, Response.ALERT).word
        row = f"| `{finding.value}` | {severity_of(finding).word} | {MEANINGS[finding]} | {done} |"
        assert row in PAGE


def test_nothing_is_graver_than_a_gate_that_is_detached() -> None:
    critical = [finding for finding in Finding if severity_of(finding) is Severity.CRITICAL]
    assert critical == [Finding.GATE_LINK_LOST]


# -- the queue ---------------------------------------------------------------------------------------


def test_a_flood_takes_room_from_nobody_and_is_counted() -> None:
    queue = Queue(room=3)
    for pid in range(10):
        queue.put(ProcessEvent(source="loud", time=pid, suspicion=Finding.TRACED, pid=pid))
    for _ in range(5):
        queue.put(ProcessEvent(source="quiet", time=9, suspicion=Finding.TRACED, pid=1))
    taken = list(iter(lambda: queue.take(99), None))
    assert [each.pid for each in taken if isinstance(each, ProcessEvent)] == [0, 1, 2, 1]
    assert [each.count for each in taken if isinstance(each, ProcessEvent)] == [1, 1, 1, 5]
    assert [each for each in taken if isinstance(each, Lost)] == [Lost(source="loud", time=99, count=7)]
    assert len(queue) == 0
    assert queue.lost == 7
