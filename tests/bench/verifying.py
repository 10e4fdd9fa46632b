"""How many artifacts one core authenticates and authorizes in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from egs_kernel import verify
from egs_kernel.artifact import calls, envelope, statement
from egs_kernel.model import HostFacts, Intent, Posture, ProgramKind, Tier
from egs_kernel.trust import keys, store
from tests.bench.stats import Summary, rotated, summarize
from tests.bench.timers import say

_NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
_DIGEST, _POLICY = "ab" * 32, "cd" * 32
_ALGORITHMS = (keys.Algorithm.ED25519, keys.Algorithm.ECDSA_P256)


class Verifying(msgspec.Struct, frozen=True):
    """One algorithm. `per_second`: median over the blocks, by CPU time; `slowest`: the worst block.

    Attributes:
        algorithm: of the one signature.
        per_second: authenticate and authorize, steps 1 to 15 of the plan.
        slowest: the same, of the slowest block.
        time: wall nanoseconds of each.
        size: bytes of the artifact.
    """

    algorithm: str
    per_second: float
    slowest: float
    time: Summary
    size: int


def measure_verifying(folder: Path, *, blocks: int, block: int) -> tuple[Verifying, ...]:
    """Measure both algorithms, by turns, in this thread.

    Args:
        folder: an empty folder for the trust store.
        blocks: measurements of each algorithm.
        block: verifications in each.
    """
    say("verifying artifacts")
    subjects = {algorithm.value: _subject(folder / algorithm.value, algorithm) for algorithm in _ALGORITHMS}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    times: dict[str, list[int]] = {name: [] for name in subjects}
    for number in range(blocks):
        for name in rotated(tuple(subjects), number):
            started = time.thread_time_ns()
            times[name] += _timed(subjects[name][0], block)
            rates[name].append(block / (time.thread_time_ns() - started) * 1e9)
    return tuple(
        Verifying(name, summarize(rates[name]).median, min(rates[name]), summarize(times[name]), size)
        for name, (_, size) in subjects.items()
    )


def _timed(function: Callable[[], object], count: int) -> list[int]:
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        function()
        times.append(time.perf_counter_ns() - started)
    return times


def _subject(folder: Path, algorithm: keys.Algorithm) -> tuple[Callable[[], object], int]:
    """A verification that succeeds, and the size of its artifact: one that uses most of what artifacts can say."""
    key = keys.generate(algorithm)
    content = envelope.sign(statement.encode_statement(_statement()), [key])
    store.add(
        folder,
        store.TrustedKey(
            key=key.public_key, roles=frozenset({store.Role.ISSUER}), scopes=frozenset({"agents"}), name="b"
        ),
    )
    trust = store.TrustStore.load(folder)
    host, intent = _host(), _intent()

    def verify_once() -> object:
        return verify.authorize(verify.authenticate(content, trust, _NOW), intent, host, _NOW)

    verify_once()
    return verify_once, len(content)


def _statement() -> statement.Statement:
    program = statement.Subject(
        name="/usr/bin/sha256sum",
        digest=statement.Digest(sha256=_DIGEST),
        annotations=statement.Annotations(role=statement.SubjectRole.PROGRAM),
    )
    predicate = statement.Predicate(
        issued_at="2026-11-23T14:00:00Z",
        not_before="2026-11-23T14:00:00Z",
        not_after="2026-11-23T15:00:00Z",
        scope=statement.Scope(name="agents", policy_digest=_POLICY),
        identity=statement.Identity(user="backup", hosts=("a-host",)),
        intent=statement.DeclaredIntent(
            argv=("sha256sum", "--check", "--strict", "*"), cwd="/", purpose="nightly check"
        ),
        constraints=statement.Constraints(syscalls=calls.SyscallConstraint(profile="default")),
        uses=3,
        governance=statement.Governance(issuer="Platform", approvers=("one", "two")),
    )
    return statement.Statement(
        type=statement.STATEMENT_TYPE,
        predicate_type=statement.PREDICATE_TYPE,
        subject=(program,),
        predicate=predicate,
    )


def _intent() -> Intent:
    argv = ("sha256sum", "--check", "--strict", "/srv/sums")
    return Intent(
        program="/usr/bin/sha256sum",
        digest=_DIGEST,
        argv=argv,
        cwd="/",
        uid=34,
        program_kind=ProgramKind.NATIVE,
    )


def _host() -> HostFacts:
    posture = Posture(
        kernel="",
        boot_id="",
        lockdown="",
        tier=Tier.TRACEPOINT,
        gate=(),
        policy_digest=_POLICY,
        clock_synchronized=True,
    )
    return HostFacts(
        host_id="a-host",
        labels=frozenset(),
        scopes=frozenset({"agents"}),
        policy_digest=_POLICY,
        posture=posture,
        enforceable=frozenset({"syscalls"}),
        users={"backup": 34},
    )
