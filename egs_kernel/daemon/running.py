"""What runs under what has been revoked since, and what is done about it: egsd's own response, at once.

An execution's artifact says what (`constraints.drift.on`, artifact_revoked and key_revoked); without a word, it ends. A
response is to the whole tree: the execution, and everything governed that it started.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import format_time, parse_statement
from egs_kernel.audit.entries import ArtifactChange, FindingEntry, ResponseEntry
from egs_kernel.checks.revocation import Taken, Ties, merged, revocations_of
from egs_kernel.errors import EgsError
from egs_kernel.findings import Finding, Response, severity_of
from egs_kernel.gate.grants import artifact_key
from egs_kernel.model import Mode, Revoked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from egs_kernel import verify
    from egs_kernel.artifact.statement import Statement
    from egs_kernel.audit.entries import Entry
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.restraint import Restraint
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.views import GovernedTask

_REMEMBERED: Final = 1024
"""Artifacts outside of the folder that are remembered before those of which nothing runs are forgotten."""

_log = logging.getLogger(__name__)


class Bond(msgspec.Struct, frozen=True):
    """What an artifact can be revoked by, and what it says is done about it then."""

    ties: Ties
    responses: tuple[tuple[Finding, Response], ...] = ()

    def response(self, finding: Finding) -> tuple[Response, str]:
        """What is done about a finding, and what says so."""
        signed = dict(self.responses).get(finding)
        return (Response.TERMINATE, "default") if signed is None else (signed, "artifact")


def bond_of(ties: Ties, statement: Statement) -> Bond:
    """What counts of an artifact."""
    constraints = statement.predicate.constraints
    drift = None if constraints is None else constraints.drift
    found = [] if drift is None else [(name, drift.response(name)) for name in _FINDINGS]
    return Bond(ties, tuple((name, response) for name, response in found if response is not None))


_FINDINGS: Final = (Finding.ARTIFACT_REVOKED, Finding.KEY_REVOKED)


class _Hit(NamedTuple):
    """An execution whose artifact is revoked; `task` is one of its processes."""

    execution: int
    task: GovernedTask
    artifact_id: str
    taken: Taken
    finding: Finding
    response: Response
    rule: str


class Running:
    """Belongs to the event loop's thread."""

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        *,
        gate: Gate,
        host: Host,
        journal: Journal,
        standing: Standing,
        events: Events,
        restraint: Restraint,
    ) -> None:
        self._gate = gate
        self._host = host
        self._journal = journal
        self._standing = standing
        self._events = events
        self._restraint = restraint
        self._bonds: dict[int, Bond] = {}
        self._answered: set[tuple[int, str, Finding]] = set()
        self._number = 0
        self.told: Callable[[Sequence[Entry]], None] = lambda _entries: None

    def note(self, artifact: verify.Artifact) -> None:
        """Something may run by this artifact, which is not, or not much longer, in the folder."""
        if len(self._bonds) >= _REMEMBERED:
            alive = {task.artifact for task in self._gate.governed()}
            self._bonds = {key: bond for key, bond in self._bonds.items() if key in alive}
        self._bonds[artifact_key(artifact.id)] = bond_of(artifact.ties, artifact.statement)

    async def recall(self) -> None:
        """After a restart: find out under what everything runs, and respond to what was revoked meanwhile."""
        running = {task.artifact for task in self._gate.governed()} - {0}
        unknown = running - self._bonds_of(running).keys()
        if unknown:
            for change, signers in await asyncio.to_thread(self._journal.artifacts, unknown):
                self._remember(change, signers)
        missing = unknown - self._bonds.keys()
        if missing:
            _log.warning("the record does not say under which artifact %d executions run", len(missing))
        await self.respond()

    def _remember(self, change: ArtifactChange, signers: tuple[str, ...]) -> None:
        try:
            statement = parse_statement(parse_envelope((change.envelope or "").encode()).payload)
        except EgsError as error:
            _log.warning("artifact %s of the record: %s", change.artifact_id, error.message)
            return
        scope = statement.predicate.scope
        ties = Ties(
            artifact=change.artifact_id,
            scope=scope.name,
            keys=signers,
            threshold=self._host.settings.trust.threshold(scope.name),
            subjects=tuple(subject.digest.sha256 for subject in statement.subject),
            policy=scope.policy_digest,
        )
        self._bonds[artifact_key(change.artifact_id)] = bond_of(ties, statement)

    async def respond(self) -> int:
        """Do what is due to all that runs by something revoked; how many processes that were.

        Returns when it is done and seen to be so; the entries are handed in.
        """
        hits = self._hits(self._gate.governed())
        return sum(await asyncio.gather(*(self._respond(hit) for hit in hits)))

    def _bonds_of(self, keys: Collection[int]) -> dict[int, Bond]:
        """What is known of the artifacts with these keys."""
        found = {key: bond for key, bond in self._bonds.items() if key in keys}
        for artifact in self._standing.all():
            if (key := artifact_key(artifact.id)) in keys:
                found[key] = bond_of(artifact.ties, artifact.statement)
        return found

    def _hits(self, tasks: Sequence[GovernedTask]) -> list[_Hit]:
        """The executions to respond to: of each tree the first one alone, and none twice for the same."""
        bonds = self._bonds_of({task.artifact for task in tasks} | self._named(tasks))
        observed = {name for name, state in self._gate.scopes().items() if state.mode is Mode.OBSERVE}
        keys = self._host.settings.trust.keys.items()
        in_store = Revoked(
            key={keyid: format_time(key.revoked) for keyid, key in keys if key.revoked is not None}
        )
        revoked: dict[str, Revoked] = {}
        found: dict[int, _Hit] = {}
        for task in tasks:
            if not task.execution:
                continue  # it came into the scope as it is, and has executed nothing there
            bond = bonds.get(task.artifact) or self._known_by_name(bonds, task)
            name = bond.ties.artifact
            scope = bond.ties.scope
            if scope not in revoked:
                revoked[scope] = merged([self._host.known.of(scope), in_store])
            for taken in revocations_of(bond.ties, revoked[scope], self._host.settings.host_id):
                finding = Finding.KEY_REVOKED if taken.kind == "key" else Finding.ARTIFACT_REVOKED
                if (task.execution, name, finding) in self._answered:
                    continue
                response, rule = bond.response(finding)
                if task.scope in observed:
                    response, rule = Response.ALERT, "observe"
                hit = _Hit(task.execution, task, name, taken, finding, response, rule)
                strongest = found.get(task.execution, hit)
                found[task.execution] = hit if hit.response > strongest.response else strongest
        alive = {task.execution for task in tasks}
        self._answered = {one for one in self._answered if one[0] in alive}
        self._answered |= {(hit.execution, hit.artifact_id, hit.finding) for hit in found.values()}
        return _outermost(found, self._events.executions.above)

    def _known_by_name(self, bonds: Mapping[int, Bond], task: GovernedTask) -> Bond:
        """Of a process whose artifact the gate does not tell (a quarantine takes its key), or nobody knows: its id, at most."""
        name = self._name(task)
        known = bonds.get(artifact_key(name)) if name else None
        return known or Bond(Ties(artifact=name, scope=task.scope))

    def _name(self, task: GovernedTask) -> str:
        execution = self._events.executions.get(task.execution)
        return "" if execution is None else execution.artifact_id

    def _named(self, tasks: Sequence[GovernedTask]) -> set[int]:
        return {artifact_key(name) for task in tasks if (name := self._name(task))}

    async def _respond(self, hit: _Hit) -> int:
        began = time.monotonic_ns()
        finding, response, artifact_id = hit.finding, hit.response, hit.artifact_id
        done = await self._restraint.apply(response, hit.execution)
        number = self._number = max(self._number + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)
        if artifact_id:
            self._gate.withdraw_children(artifact_id)
        entries: list[Entry] = [
            FindingEntry(
                number=number,
                finding=finding,
                severity=severity_of(finding).word,
                source="egsd",
                detail=hit.taken.words,
                response=response.word,
                rule=hit.rule,
                execution=hit.execution,
                scope=hit.task.scope,
                artifact_id=artifact_id or None,
                pid=hit.task.pid,
            ),
            ResponseEntry(
                number=number,
                response=response.word,
                verified=done.verified,
                processes=done.processes,
                microseconds=(time.monotonic_ns() - began) // 1000,
                detail=done.detail,
                execution=hit.execution,
                scope=hit.task.scope,
                artifact_id=artifact_id or None,
            ),
        ]
        self.told(entries)
        self._journal.submit(entries, essential=True)
        if not done.verified:
            _log.error("execution %d is not %s: %s", hit.execution, response.word, done.detail)
        return done.processes


def _outermost(found: Mapping[int, _Hit], above: Callable[[int], Iterable[int]]) -> list[_Hit]:
    """Those that no other one ends with its tree."""
    ending = {number for number, hit in found.items() if hit.response is Response.TERMINATE}
    return [hit for number, hit in found.items() if ending.isdisjoint(above(number))]
