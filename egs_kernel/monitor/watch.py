"""What the monitor knows and does: entries and observations go in, findings and responses come out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import (
    BaselineEntry,
    ConfigurationChange,
    Exec,
    Fact,
    FindingEntry,
    ResponseEntry,
)
from egs_kernel.drift.compare import Context, Found, compare_process, groups_in, root_name
from egs_kernel.drift.judge import compare_authorization, compare_files, judge_event
from egs_kernel.drift.observations import FileEvent, HostEvent, HostState, Lost, ProcessEvent
from egs_kernel.drift.rules import decide
from egs_kernel.findings import HOST_FINDINGS, Finding, Response, severity_of
from egs_kernel.gate.grants import artifact_key
from egs_kernel.model import Reason
from egs_kernel.monitor.opened import Process
from egs_kernel.monitor.told import Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from egs_kernel.audit.entries import Recorded
    from egs_kernel.drift.authorized import Authorized
    from egs_kernel.drift.baselines import Baseline, Baselines
    from egs_kernel.drift.observations import Observation
    from egs_kernel.drift.states import ProcessState
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.model import ExecEvent
    from egs_kernel.monitor.files import Digests
    from egs_kernel.monitor.hands import Hands
    from egs_kernel.monitor.processes import Reader
    from egs_kernel.monitor.report import Reporter
    from egs_kernel.monitor.respond import Responder

_FRESH: Final = 5_000_000_000
"""Nanoseconds since an exec within which what is seen of it is taken as how it began."""
_EXEC_LASTS: Final = 1_000_000_000
"""Nanoseconds: an exec that reads its program from a slow disk included."""


class Watch:
    """Belongs to one thread.

    Args:
        gate: whom it governs.
        baselines: what the record says; up to date when an observation is handed in.
        context: what is compared with; replaced when the configuration changes.
        reader: of processes.
        digests: of files.
        responder: does what is to be done.
        reporter: has it recorded.

    Attributes:
        started: when it began, CLOCK_BOOTTIME nanoseconds.
        reconfigured: whether the record has another configuration since this was last set back.
    """

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        *,
        gate: Hands,
        baselines: Baselines,
        context: Context,
        reader: Reader,
        digests: Digests,
        responder: Responder,
        reporter: Reporter,
        catch_up: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._baselines = baselines
        self.context = context
        self._reader = reader
        self._digests = digests
        self._responder = responder
        self._reporter = reporter
        self._catch_up = catch_up
        self._number = 0
        self._told = Told(baselines)
        self._executing: dict[tuple[int, int], int] = {}
        self._host: dict[Finding, dict[str, str]] = {}
        self.started = boot_now()
        self.reconfigured = False

    # -- the record ------------------------------------------------------------------------------

    def take(self, recorded: Recorded) -> ExecEvent | None:
        """One more entry. An exec that was just let run is to be looked at, when all entries are taken."""
        self._baselines.take(recorded)
        entry = recorded.entry
        self.reconfigured = self.reconfigured or isinstance(entry, ConfigurationChange)
        if not isinstance(entry, Exec) or not entry.event.execution:
            return None
        return entry.event if boot_now() - entry.event.time < _FRESH else None

    def look_first(self, event: ExecEvent) -> None:
        """An execution that has just begun: what no entry says of it becomes its baseline."""
        known = self._baselines.executions.get(event.execution)
        task = self._gate.governed_task(event.pid)
        if known is None or task is None or task.execution != event.execution or task.held:
            return
        try:
            with Process(task) as process:
                state = self._reader.look(process, known, self._baselines.artifact_of(event.execution))
        except ProcessLookupError:
            return
        found = state.executable
        if found is None or found.inode == known.event.file.inode:  # not in the middle of the next exec
            self._begin(known, state)
        self._compare(task, known, state, "exec")
        if event.reason is Reason.CHILD_REFUSED:  # in a scope that only observes
            detail = f"it was executed as {event.filename}, which the artifact of who did it refuses"
            self.tell(
                Found(
                    finding=Finding.CHILD_UNEXPECTED,
                    detail=detail,
                    source="exec",
                    time=event.time,
                    execution=event.execution,
                    pid=event.pid,
                    start_ticks=event.start_ticks,
                    by=event.parent_pid,
                )
            )

    def _begin(self, known: Baseline, state: ProcessState) -> None:
        inherited = self._baselines.facts_of(known.event.parent_execution)
        facts = facts_of(state)
        if inherited is not None:
            own = self._raised(known, state, inherited) | (self._baselines.given_to(known) & facts.keys())
            if not own:
                return  # as its parent's
            facts = inherited | {name: facts[name] for name in own}
        elif known.event.time < self.started:
            return  # nobody saw it begin
        known.facts = facts
        listed = tuple(Fact(name, value) for name, value in sorted(facts.items()))
        self._reporter.put(
            BaselineEntry(of="process", boot_id=self._baselines.boot_id, execution=known.number, facts=listed)
        )

    def _raised(self, known: Baseline, state: ProcessState, inherited: Mapping[str, str]) -> set[str]:
        """What a user's process has beyond what its parent began with: by the file's mode or capabilities, or as its parent was user 0."""
        if known.event.euid == 0:
            return set()
        before = int(inherited.get("capabilities", "0"), 16)
        groups = self._baselines.groups_of(known.number)
        raised = {"capabilities"} if state.capabilities & ~before else set()
        return raised | ({"groups"} if groups is None or groups_in(state) - groups else set())

    # -- observations ----------------------------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Compare one observation, and do what is to be done."""
        match observation:
            case ProcessEvent():
                self._process_event(observation)
            case HostEvent():
                change = (
                    f": {observation.was} → {observation.now}" if observation.was or observation.now else ""
                )
                self._tell_host(observation.suspicion, f"{observation.subject}{change}", observation)
            case HostState():
                self._host_state(observation)
            case FileEvent():
                self.check_files({observation.path})
                if observation.gone:
                    self._look_at_those_of(observation.path)
            case Lost():
                self._tell_host(
                    Finding.EVENTS_LOST, f"{observation.source}: the sweeps have to find it", observation
                )

    def _process_event(self, event: ProcessEvent) -> None:
        task = self._gate.governed_task(event.pid)
        execution = event.execution or (task.execution if task is not None else 0)
        if execution not in self._baselines.executions or event.suspicion is Finding.NAMESPACE_CHANGED:
            self._catch_up()  # a launch that changes them was decided before
        event = msgspec.structs.replace(event, execution=execution)
        found = judge_event(event, self.context)
        if found is not None:
            self.tell(found)
            self._told.by_event(found)
        elif task is not None:
            self.look_at(task, event.source)

    def _look_at_those_of(self, program: str) -> None:
        """At every process that executes a file that is not there any more."""
        for task in self._gate.governed():
            known = self._baselines.executions.get(task.execution)
            if known is not None and known.event.filename == program:
                self.look_at(task, "files")

    def look_at(self, task: GovernedTask, source: str, *, closely: bool = False) -> ProcessState | None:
        """Read a process and compare it; what was read, None: it is gone."""
        known = self._baselines.executions.get(task.execution)
        if known is None or task.held:
            return None
        try:
            with Process(task) as process:
                said = self._baselines.artifacts.get(known.artifact_id)
                state = self._reader.look(process, known, said, closely=closely)
                others = self._reader.other_threads(process, state) if closely else []
        except ProcessLookupError:
            return None
        if not self._compare(task, known, state, source):
            return None
        for other in others:
            self._tell_all(compare_process(other, self.context, source))
        return state

    def _compare(self, task: GovernedTask, known: Baseline, state: ProcessState, source: str) -> bool:
        """Tell what of a process is not as it was authorized; False: it executes something else, or is about to.

        In the middle of an exec a process has the new program already, and the gate has decided nothing yet.
        """
        again = self._gate.governed_task(task.pid)
        if again is None or again.execution != task.execution:
            return False
        key = (task.pid, task.execution)
        found = state.executable
        if found is not None and found.inode != known.event.file.inode:
            if state.time - self._executing.setdefault(key, state.time) < _EXEC_LASTS:
                return False
        else:
            self._executing.pop(key, None)
        self._tell_all(compare_process(state, self.context, source))
        return True

    @property
    def waits(self) -> bool:
        """Whether some process may be in the middle of an exec."""
        return bool(self._executing)

    def look_again(self) -> None:
        """At those that were in the middle of an exec, and must be through by now."""
        for key, since in list(self._executing.items()):
            pid, execution = key
            task = self._gate.governed_task(pid)
            if task is None or task.execution != execution:
                del self._executing[key]
            elif boot_now() - since >= _EXEC_LASTS:
                self.look_at(task, "sweep")
                self._executing.pop(key, None)

    def check_authorizations(self, source: str) -> None:
        """What became of the authorizations of everything that runs."""
        now, boot = time.time(), boot_now()
        live = {task.execution for task in self._gate.governed()}
        for number in sorted(live & self._baselines.executions.keys()):
            self._tell_all(
                compare_authorization(self._baselines.executions[number], self.context, now, boot, source)
            )

    def begin(self) -> None:
        """The record was read to its end: it has what a monitor before this one told."""
        self._told.begin()

    def next_interval(self) -> None:
        """A sweep begins: say what was only counted since the one before."""
        for found in self._told.next_interval(boot_now()):
            self._tell_new(found)
        if dropped := self._reporter.take_dropped():
            detail = "reports of the monitor found no room, while egsd recorded none"
            self._tell_new(
                Found(
                    finding=Finding.EVENTS_LOST,
                    detail=detail,
                    source="monitor",
                    time=boot_now(),
                    count=dropped,
                )
            )

    def next_deadline(self, executions: Iterable[int] | None = None) -> float | None:
        """When, in seconds since 1970, an artifact of one of these next expires, or it has run too long; None: of all that run."""
        if executions is None:
            executions = {task.execution for task in self._gate.governed()}
        now, boot = time.time(), boot_now()
        ends = []
        for known in (self._baselines.executions.get(number) for number in executions):
            said = None if known is None else self._baselines.artifacts.get(known.artifact_id)
            if known is None or said is None:
                continue
            ends.append(said.not_after)
            if said.resources is not None and said.resources.wall_seconds is not None:
                ends.append(now + said.resources.wall_seconds - (boot - known.event.time) / 1e9)
        return min((end for end in ends if end > now), default=None)

    def check_files(self, paths: set[str] | None = None) -> None:
        """Compare the files that artifacts of running executions name: all of them, or those at these paths."""
        running = self._running()
        for artifact_id, said in running.items():
            if paths is not None and not said.paths & paths:
                continue
            for finding, detail in compare_files(said, self._digests.of_known):
                for execution in self._executions_of(artifact_id):
                    event = self._baselines.executions[execution].event
                    self.tell(
                        Found(
                            finding=finding,
                            detail=detail,
                            source="files",
                            time=boot_now(),
                            execution=execution,
                            pid=event.pid,
                            start_ticks=event.start_ticks,
                        )
                    )

    def named_files(self) -> set[str]:
        """The paths of every file that artifacts of running executions name."""
        return {path for said in self._running().values() for path in said.paths}

    def _running(self) -> dict[str, Authorized]:
        live = {task.execution for task in self._gate.governed()}
        known = (self._baselines.executions[number] for number in live & self._baselines.executions.keys())
        ids = {each.artifact_id for each in known}
        return {each: self._baselines.artifacts[each] for each in ids & self._baselines.artifacts.keys()}

    def _executions_of(self, artifact_id: str) -> list[int]:
        live = {task.execution for task in self._gate.governed()}
        executions = self._baselines.executions
        return [
            number for number in live & executions.keys() if executions[number].artifact_id == artifact_id
        ]

    def _host_state(self, state: HostState) -> None:
        before = self._host.get(state.suspicion)
        if before is None:
            before = self._baselines.host.get(state.suspicion)
        self._host[state.suspicion] = state.facts
        if before is None:
            listed = tuple(Fact(name, value) for name, value in sorted(state.facts.items()))
            self._reporter.put(
                BaselineEntry(of=state.suspicion.value, boot_id=self._baselines.boot_id, facts=listed)
            )
            return
        for name in sorted(before.keys() | state.facts.keys()):
            was, now = before.get(name), state.facts.get(name)
            if was != now:
                words = f"{name}: {'none' if was is None else was} → {'none' if now is None else now}"
                self._tell_host(state.suspicion, words, state)

    # -- findings --------------------------------------------------------------------------------

    def _tell_host(self, finding: Finding, detail: str, observation: Observation) -> None:
        count = observation.count if isinstance(observation, Lost) else 1
        found = Found(
            finding=finding, detail=detail, source=observation.source, time=observation.time, count=count
        )
        if self._told.is_new_of_host(found):
            self._tell_new(found)

    def _tell_all(self, found: Iterable[Found]) -> None:
        for each in found:
            self.tell(each)

    def tell(self, found: Found) -> None:
        """Have a finding recorded, once, and do what is to be done about it."""
        if self._told.is_new(found):
            self._tell_new(found)

    def _tell_new(self, found: Found) -> None:
        of_host = found.finding in HOST_FINDINGS
        scope, artifact_id = self._authorized_by(found)
        said = self._baselines.artifacts.get(artifact_id)
        decided = decide(
            self.context.rules,
            found.finding,
            None if said is None else said.drift,
            self._baselines.mode_of(scope),
        )
        number = self._next_number()
        self._reporter.put(
            FindingEntry(
                number=number,
                finding=found.finding,
                severity=severity_of(found.finding).word,
                source=found.source,
                detail=found.detail,
                response=decided.response.word,
                rule=decided.rule,
                execution=0 if of_host else found.execution,
                scope=scope,
                artifact_id=artifact_id or None,
                pid=0 if of_host else found.pid,
                start_ticks=found.start_ticks,
                by=found.by,
                count=found.count,
            )
        )
        if decided.response is not Response.ALERT and found.execution:
            self._answer(number, decided.response, found.execution, found.time)

    def _authorized_by(self, found: Found) -> tuple[str, str]:
        """Scope and artifact of what a finding is about; of an exec that the record does not have yet, by the gate's table."""
        known = self._baselines.executions.get(found.execution)
        if known is not None:
            return known.event.scope, known.artifact_id
        task = self._gate.governed_task(found.pid) if found.execution else None
        if task is None or task.execution != found.execution:
            return "", ""
        # An artifact is in the record before anything runs by it.
        named = (each for each in self._baselines.artifacts if artifact_key(each) == task.artifact)
        return task.scope, next(named, "")

    def answer_again(self, entries: Sequence[FindingEntry]) -> None:
        """Findings that a monitor before this one told, and did not live to respond to."""
        for entry in entries:
            response = Response[entry.response.upper()]
            if response is not Response.ALERT and entry.execution:
                self._answer(entry.number, response, entry.execution, boot_now())

    def _answer(self, number: int, response: Response, execution: int, since: int) -> None:
        known = self._baselines.executions.get(execution)
        outcome = self._responder.respond(response, execution)
        self._reporter.put(
            ResponseEntry(
                number=number,
                response=response.word,
                verified=outcome.verified,
                processes=outcome.processes,
                microseconds=max(0, boot_now() - since) // 1000,
                detail=outcome.detail,
                execution=execution,
                scope="" if known is None else known.event.scope,
                artifact_id=(known and known.artifact_id) or None,
            )
        )

    def _next_number(self) -> int:
        """Later than every other one of this boot, also of a monitor before this one."""
        self._number = max(self._number + 1, boot_now() // 1000)
        return self._number


def facts_of(state: ProcessState) -> dict[str, str]:
    """What a baseline has of a process."""
    return {
        **{kind: str(inode) for kind, inode in state.namespaces},
        "root": root_name(state.root),
        "capabilities": f"{state.capabilities:x}",
        "groups": " ".join(map(str, sorted(groups_in(state)))),
    }


def boot_now() -> int:
    """CLOCK_BOOTTIME, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
