"""What everything was authorized as, folded from the record's entries: never from what is there now. Pure.

A monitor that starts folds the record from its beginning, one that runs goes on with each new entry: it is the same fold, so
a monitor that was killed comes to the same baselines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import (
    ArtifactChange,
    BaselineEntry,
    ConfigurationChange,
    DaemonStarted,
    Decision,
    Exec,
    FindingEntry,
    Outcome,
    Part,
    PolicyChange,
    PostureEntry,
    ResponseEntry,
    Revocation,
    WatchChange,
)
from egs_kernel.audit.parts import envelope_of
from egs_kernel.drift.authorized import Authorized, authorized
from egs_kernel.errors import EgsError
from egs_kernel.findings import Finding
from egs_kernel.model import GrantKind, Mode, Verdict

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Recorded
    from egs_kernel.model import ExecEvent

_AUTHORIZING: Final = (ArtifactChange, Revocation, ConfigurationChange, PolicyChange)
"""Entries by which authorizations change."""


class Baseline(msgspec.Struct, kw_only=True):
    """One execution: what the gate saw at its exec, and what it is authorized by.

    `facts`: its namespaces, root, capabilities and groups as they were when it began (`BaselineEntry`); None: nobody watched then,
    and its parent's hold.
    """

    event: ExecEvent
    artifact_id: str
    facts: dict[str, str] | None = None

    @property
    def number(self) -> int:
        """The execution."""
        return self.event.execution


class _Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A launcher that egsd has let prepare itself: the namespaces that it is given. `until`: its exec, `execution`; 0: that has not come."""

    request: str | None
    namespaces: frozenset[str]
    until: int = 0
    execution: int = 0


class Baselines:
    """Folds entries; `take` each of them in the record's order.

    Attributes:
        executions: those under way, by number.
        host: facts of the host, by the finding that a difference is.
        artifacts: what each says, by id.
        revoked: ids of artifacts.
        revoked_keys: ids of keys.
        withdrawn: artifacts that are not in the folder any more, or that another one continues.
        policies: under which each artifact was decided.
        policy: the active one; None: not known.
        policy_scopes: scopes that it is about; None: not known, any may be.
        trusted: the ids of keys that are; None: not known.
        modes: of the scopes.
        told: findings of this boot that the record has: kind, execution, process and detail.
        suspended: executions that a response stopped.
        quarantined: executions that a response lets execute nothing.
        daemon: the process id of egsd; 0: not known.
        boot_id: of the entries that were taken last.
        watched: the last time at which the monitor was there, by the record; None: never in this boot.
        last_time: of the last entry.
    """

    def __init__(self) -> None:
        self.executions: dict[int, Baseline] = {}
        self.host: dict[Finding, dict[str, str]] = {}
        self.artifacts: dict[str, Authorized] = {}
        self.revoked: set[str] = set()
        self.revoked_keys: set[str] = set()
        self.withdrawn: set[str] = set()
        self.policies: dict[str, str] = {}
        self.policy: str | None = None
        self.policy_scopes: frozenset[str] | None = None
        self.trusted: frozenset[str] | None = None
        self.modes: dict[str, Mode] = {}
        self.told: set[tuple[Finding, int, int, str]] = set()
        self.suspended: set[int] = set()
        self.quarantined: set[int] = set()
        self.daemon = 0
        self.boot_id = ""
        self.watched: str | None = None
        self.last_time = ""
        self._parts: list[Part] = []
        self._of_process: dict[int, int] = {}
        self._unanswered: dict[int, FindingEntry] = {}
        self._launches: dict[tuple[int, int], _Launch] = {}
        self._changed = False

    def unanswered(self) -> list[FindingEntry]:
        """Findings about something that still runs, to which no response is recorded."""
        return [entry for entry in self._unanswered.values() if entry.execution in self.executions]

    def take_changed(self) -> bool:
        """Whether any authorization changed since this was asked last."""
        changed, self._changed = self._changed, False
        return changed

    def take(self, recorded: Recorded) -> None:  # noqa: C901, PLR0912 - one branch a type
        """Take one more entry into account."""
        entry = recorded.entry
        self.last_time = recorded.time
        self._changed = self._changed or isinstance(entry, _AUTHORIZING)
        match entry:
            case Part():
                self._parts.append(entry)
                return
            case Exec():
                self._exec(entry.event)
            case Outcome():
                self._end(entry.event.pid, entry.event.execution)
            case Decision():
                self._decision(entry)
            case ArtifactChange():
                self._artifact(entry)
            case Revocation(kind="artifact"):
                self.revoked.add(entry.thing)
            case Revocation(kind="key"):
                self.revoked_keys.add(entry.thing)
            case ConfigurationChange() if entry.action == "applied":
                if self.policy != entry.policy_digest:
                    self.policy, self.policy_scopes = entry.policy_digest, None
                self.trusted = frozenset(entry.trusted_keys)
                self.modes = {scope.name: scope.mode for scope in entry.scopes}
            case PolicyChange(action="activated"):
                self.policy, self.policy_scopes = entry.digest, frozenset(entry.scopes)
            case DaemonStarted():
                self.daemon = entry.pid
                self._launches.clear()  # the one before it finishes none
            case PostureEntry():
                self.begin_boot(entry.posture.boot_id)
            case BaselineEntry():
                self._baseline(entry)
            case FindingEntry():
                self.told.add((entry.finding, entry.execution, entry.pid, entry.detail))
                if entry.response != "alert":
                    self._unanswered[entry.number] = entry
                self._watched(recorded.time)
            case ResponseEntry():
                self._response(entry)
                self._watched(recorded.time)
            case WatchChange():
                self._watched(recorded.time)
        self._parts.clear()

    def artifact_of(self, execution: int) -> Authorized | None:
        """What authorizes an execution; None: nothing, or it cannot be read any more."""
        known = self.executions.get(execution)
        return None if known is None else self.artifacts.get(known.artifact_id)

    def facts_of(self, execution: int) -> dict[str, str] | None:
        """Namespaces, root, capabilities and groups as an execution began: its own, or those of who executed it. None: nobody knows.

        What a launch was given in between is none of who executed it: it is left out.
        """
        given: frozenset[str] = frozenset()
        known = self.executions.get(execution)
        while known is not None:
            if known.facts is not None:
                return {name: value for name, value in known.facts.items() if name not in given}
            given |= self.given_to(known)
            known = self.executions.get(known.event.parent_execution)
        return None

    def groups_of(self, execution: int) -> frozenset[int] | None:
        """The groups that an execution of a user's began with. None: nobody knows; who is user 0 may have any, and give them away."""
        known = self.executions.get(execution)
        while known is not None and known.event.euid:
            if known.facts is not None and "groups" in known.facts:
                return frozenset(map(int, known.facts["groups"].split()))
            known = self.executions.get(known.event.parent_execution)
        return None

    def given_to(self, known: Baseline) -> frozenset[str]:
        """Kinds of the namespaces that an execution was given by its launch."""
        said = self.artifacts.get(known.artifact_id)
        launched = known.event.grant_kind is GrantKind.ARMED
        return said.own_namespaces if launched and said is not None else frozenset()

    def given_at(self, pid: int, start_ticks: int, time: int) -> frozenset[str]:
        """Kinds of the namespaces that a process is given at a time, because it prepares a launch; of itself it is in others then."""
        launch = self._launches.get((pid, start_ticks))
        return frozenset() if launch is None or (launch.until and time > launch.until) else launch.namespaces

    def mode_of(self, scope: str) -> Mode:
        """Whether a scope enforces; one that is not known does."""
        return self.modes.get(scope, Mode.ENFORCE)

    # -- entries ---------------------------------------------------------------------------------

    def begin_boot(self, boot_id: str) -> None:
        """What ran in another boot runs no more; executions are numbered anew in each."""
        if boot_id == self.boot_id:
            return
        self.boot_id = boot_id
        self.watched = None
        for known in (
            self.executions,
            self.host,
            self.told,
            self.suspended,
            self.quarantined,
            self._of_process,
            self._unanswered,
            self._launches,
        ):
            known.clear()

    def _watched(self, time: str) -> None:
        self.watched = time

    def _exec(self, event: ExecEvent) -> None:
        self._end_launch(event)
        if not event.execution:
            return
        before = self._of_process.get(event.pid)
        if before is not None and before != event.execution:
            self._end(event.pid, before)
        self._of_process[event.pid] = event.execution
        artifact_id = "" if event.verdict is Verdict.HOLD else event.artifact_id
        self.executions[event.execution] = Baseline(event=event, artifact_id=artifact_id)

    def _end(self, pid: int, execution: int) -> None:
        """The process that executed it is gone; what it forked has its execution, and is kept until `forget`."""
        if self._of_process.get(pid) == execution:
            del self._of_process[pid]

    def forget(self, live: frozenset[int]) -> None:
        """Forget every execution that no process has any more.

        Args:
            live: those that the gate's table has.
        """
        needed = set(live) | set(self._of_process.values())
        for number in live:  # whose facts may be an ancestor's
            known = self.executions.get(number)
            while known is not None and known.facts is None:
                known = self.executions.get(known.event.parent_execution)
            if known is not None:
                needed.add(known.number)
        self.executions = {number: self.executions[number] for number in needed & self.executions.keys()}
        self.told = {found for found in self.told if not found[1] or found[1] in self.executions}
        self.suspended &= self.executions.keys()
        self.quarantined &= self.executions.keys()
        self._unanswered = {
            number: entry for number, entry in self._unanswered.items() if entry.execution in self.executions
        }
        self._launches = {
            process: launch
            for process, launch in self._launches.items()
            if not launch.until or launch.execution in self.executions
        }
        used = {known.artifact_id for known in self.executions.values()}
        for table in (self.artifacts, self.policies):
            for artifact_id in [known for known in table if known not in used and known in self.withdrawn]:
                del table[artifact_id]

    def _launch(self, decision: Decision) -> None:
        """A launch is let begin, before anything is done to the launcher; or nothing comes of it."""
        if decision.task is None or decision.grant_kind is not GrantKind.ARMED:
            self._launches = {
                process: launch
                for process, launch in self._launches.items()
                if launch.request != decision.request or decision.request is None
            }
            return
        said = self.artifacts.get(decision.artifact_id or "")
        if decision.verdict is Verdict.ALLOW and said is not None and said.own_namespaces:
            process = decision.task.pid, decision.task.start_ticks
            self._launches[process] = _Launch(request=decision.request, namespaces=said.own_namespaces)

    def _end_launch(self, event: ExecEvent) -> None:
        """Its exec. What it did before is told of by events that may be read after this."""
        process = event.pid, event.start_ticks
        launch = self._launches.pop(process, None)
        if launch is not None and event.execution:
            self._launches[process] = msgspec.structs.replace(
                launch, until=event.time, execution=event.execution
            )

    def _decision(self, decision: Decision) -> None:
        self._launch(decision)
        if decision.verdict is not Verdict.ALLOW or decision.artifact_id is None:
            return
        self.policies[decision.artifact_id] = decision.policy_digest
        if decision.request is not None and decision.request.isdecimal():  # what was held
            held = self.executions.get(int(decision.request))
            if held is not None:
                held.artifact_id = decision.artifact_id

    def _artifact(self, change: ArtifactChange) -> None:
        if change.action == "revoked":
            self.revoked.add(change.artifact_id)
        elif change.action == "removed":
            self.withdrawn.add(change.artifact_id)
        else:
            self.withdrawn.discard(change.artifact_id)
            if change.envelope is not None:
                self._read(change.artifact_id, change.envelope)

    def _read(self, artifact_id: str, envelope: str) -> None:
        try:
            said = authorized(envelope_of(envelope, tuple(self._parts)))
        except EgsError:
            return  # a later version's: of what runs under it less is known, and that much is compared
        self.artifacts[artifact_id] = said
        if said.parent:
            self.withdrawn.add(said.parent)

    def _baseline(self, entry: BaselineEntry) -> None:
        if entry.boot_id != self.boot_id:
            return
        facts = {fact.name: fact.value for fact in entry.facts}
        if entry.execution:
            known = self.executions.get(entry.execution)
            if known is not None:
                known.facts = facts
            return
        finding = next((finding for finding in Finding if finding.value == entry.of), None)
        if finding is not None:
            self.host[finding] = facts

    def _response(self, entry: ResponseEntry) -> None:
        self._unanswered.pop(entry.number, None)
        marks = {"suspend": self.suspended, "quarantine": self.quarantined}
        if entry.response in marks and entry.verified:
            marks[entry.response].add(entry.execution)
        elif entry.response == "resume":
            self.suspended.discard(entry.execution)
