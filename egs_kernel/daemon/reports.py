"""What the daemon tells of itself: status, processes, metrics."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel import __version__
from egs_kernel.artifact.statement import format_time, parse_time
from egs_kernel.daemon import protocol
from egs_kernel.daemon.host import now
from egs_kernel.errors import EgsError
from egs_kernel.metrics import MetricsSnapshot, write_textfile
from egs_kernel.model import GrantKind, Mode, Revoked
from egs_kernel.posture import EMPTY_POLICY

if TYPE_CHECKING:
    from egs_kernel.config import ScopeConfig
    from egs_kernel.daemon.drift import Drift
    from egs_kernel.daemon.events import Events
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.refusals import Refusals
    from egs_kernel.daemon.sealing import Sealing
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.daemon.witnesses import Witnesses
    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.views import GovernedTask
    from egs_kernel.paths import Paths


_SHOWN: Final = 4096
"""Of what was revoked here, as much as fits into one answer."""


class Reports:
    """Reads the daemon's parts; changes nothing."""

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        paths: Paths,
        *,
        gate: Gate,
        host: Host,
        journal: Journal,
        standing: Standing,
        events: Events,
        sealing: Sealing,
        refusals: Refusals,
        witnesses: Witnesses,
        drift: Drift,
    ) -> None:
        self._paths = paths
        self._gate = gate
        self._host = host
        self._journal = journal
        self._standing = standing
        self._events = events
        self._sealing = sealing
        self._refusals = refusals
        self._witnesses = witnesses
        self._drift = drift
        self._started = time.time()

    def status(self, *, detailed: bool) -> protocol.StatusAnswer:
        """The state; `detailed` for root."""
        host = self._host
        return protocol.StatusAnswer(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=round(time.time() - self._started, 3),
            tier=self._gate.tier.value,
            healthy=host.healthy,
            heartbeat_age=round(self._gate.heartbeat_age(), 3),
            scopes=self._scopes(),
            standing=self._standing.count("standing"),
            refused_artifacts=self._standing.count("refused"),
            governed=len(self._gate.governed()),
            seal=self._sealing.word,
            lifted_until=self._sealing.lifted_until,
            watched=self._drift.watching,
            details=self._details() if detailed else None,
        )

    def _details(self) -> protocol.StatusDetails:
        counters = self._gate.counters()
        return protocol.StatusDetails(
            problems=self._problems(),
            policy_digest=self._host.settings.policy_digest,
            host_id=self._host.settings.host_id,
            host_key=self._host.settings.host_key,
            record=str(self._paths.record),
            record_entries=self._journal.size,
            resident_bytes=_resident_bytes(),
            artifacts=self._standing.list(),
            decisions=tuple(
                protocol.DecisionCount(
                    verdict=verdict.name.lower(), reason=reason.code, enforced=enforced, count=count
                )
                for (verdict, reason, enforced), count in sorted(counters.decisions.items())
            ),
            failures={name: count for name, count in counters.failures.items() if count},
            witnesses=tuple(
                protocol.WitnessStatus(
                    name=state.name,
                    cosigned=state.cosigned,
                    entries=state.size,
                    diverged=state.diverged,
                    problem=state.problem,
                )
                for state in self._witnesses.states()
            ),
            revocation_lists=self._lists(),
        )

    def revocations(self) -> protocol.RevocationsAnswer:
        """What is revoked, and how well that is known."""
        known = self._host.known
        said = [
            protocol.RevokedStatus(kind=kind, thing=thing, since=since)
            for kind in Revoked.__struct_fields__
            for thing, since in getattr(known.said, kind).items()
        ]
        said.sort(key=lambda one: one.since, reverse=True)
        return protocol.RevocationsAnswer(
            lists=self._lists(), demands=self._demands(), said=tuple(said[:_SHOWN]), count=len(said)
        )

    def _lists(self) -> tuple[protocol.ListStatus, ...]:
        return tuple(
            protocol.ListStatus(
                scope=scope,
                number=found.content.number,
                digest=found.digest,
                issued_at=found.content.issued_at,
                next_update=found.content.next_update,
                count=found.content.count,
                signers=found.signers,
            )
            for scope, found in sorted(self._host.known.lists.items())
        )

    def _demands(self) -> tuple[protocol.DemandStatus, ...]:
        """The scopes of which revocations must be known well, or are not known as well as they once were."""
        config = self._host.settings.config
        found = []
        for scope in config.scopes:
            knowledge = self._host.known.knowledge(scope.name, config.revocation, now())
            if knowledge.problem or config.revocation.demands(scope.name):
                until = "" if knowledge.until is None else format_time(knowledge.until)
                found.append(protocol.DemandStatus(scope=scope.name, problem=knowledge.problem, until=until))
        return tuple(found)

    def processes(self, uid: int | None) -> protocol.ProcessesAnswer:
        """The governed processes: of one user, or all."""
        offset = self._host.clock_offset
        found = []
        for task in self._gate.governed():
            owner = _owner(task.pid)
            if owner is not None and uid in (None, owner):
                found.append(self._process(task, owner, offset))
        return protocol.ProcessesAnswer(processes=tuple(sorted(found, key=lambda process: process.pid)))

    def metrics(self) -> MetricsSnapshot:
        """What operators watch."""
        counters = self._gate.counters()
        tasks = self._gate.governed()
        governed = Counter(task.scope for task in tasks)
        held = Counter(task.scope for task in tasks if task.held)
        scopes = {name: state.mode for name, state in self._gate.scopes().items()}
        return MetricsSnapshot(
            time=time.time(),
            daemon_started=self._started,
            tier=self._gate.tier,
            decisions=counters.decisions,
            grants={
                GrantKind.STANDING: len(self._gate.standing()),
                GrantKind.ARMED: len(self._gate.armed()),
            },
            heartbeat_age=self._gate.heartbeat_age(),
            failures=counters.failures,
            program_misses=counters.missed,
            scopes=scopes,
            governed_tasks={name: governed[name] for name in scopes},
            held_tasks={name: held[name] for name in scopes},
            record_bytes=self._journal.bytes,
            record_entries=self._journal.size,
            posture=self._host.posture,
            witnesses=self._witnesses.states(),
            refusals=self._refusals.totals,
            refusals_seen=self._refusals.messages is not None,
            refusals_lost=self._refusals.lost,
            findings=dict(self._drift.findings),
            responses=dict(self._drift.responses),
            monitor_watches=self._drift.watching,
            revocation_lists={
                scope: (found.content.number, parse_time(found.content.next_update).timestamp())
                for scope, found in self._host.known.lists.items()
            },
            policy_ready=self._policy_ready(),
            revocations_stale={demand.scope: bool(demand.problem) for demand in self._demands()},
        )

    def _policy_ready(self) -> bool | None:
        """Whether the active policy set can be asked, and was taken back nowhere; None: there is none."""
        if self._host.policy.digest == EMPTY_POLICY:
            return None
        return not self._host.policy.trouble and not self._host.policy_revocations()

    def write_metrics(self) -> str:
        """Write the metrics files; what went wrong in words, or "". For a thread: disks can be slow."""
        textfile = self._host.settings.config.metrics.textfile_dir
        try:
            snapshot = self.metrics()
            write_textfile(self._paths.run_dir, snapshot, "metrics.prom")
            if textfile is not None:
                write_textfile(Path(textfile), snapshot)
        except EgsError as error:
            return str(error)
        return ""

    def _problems(self) -> tuple[str, ...]:
        problems = list(self._host.posture.problems)
        if self._host.lacks:
            problems.append(f"no constraint can be attested: {self._host.lacks}")
        if self._host.unseen:
            problems.append(self._host.unseen)
        if self._journal.degraded:
            problems.append(self._journal.degraded)
        if policy := self._host.policy.trouble:
            where = ", ".join(sorted(self._host.policy.scopes))
            problems.append(
                f"nothing is authorized in scope {where}, its policy set cannot be asked: {policy}"
            )
        problems += (
            f"nothing is authorized in scope {scope}: {why}; activate another one"
            for scope, why in self._host.policy_revocations().items()
        )
        stale: dict[str, list[str]] = {}
        for demand in self._demands():
            if demand.problem:
                stale.setdefault(demand.problem, []).append(demand.scope)
        for problem, scopes in stale.items():
            problems.append(
                f"nothing is authorized in scope {', '.join(scopes)}, its revocations are not known well enough: {problem}"
            )
        return (*problems, *self._witnesses.problems())

    def _scopes(self) -> tuple[protocol.ScopeStatus, ...]:
        configured = {scope.name: scope for scope in self._host.settings.config.scopes}
        return tuple(
            protocol.ScopeStatus(
                name=name,
                mode=state.mode.value,
                compliant=state.mode is Mode.ENFORCE,
                governs=_governs(configured.get(name)),
            )
            for name, state in sorted(self._gate.scopes().items())
        )

    def _process(self, task: GovernedTask, owner: int, offset: int) -> protocol.ProcessStatus:
        known = self._events.executions.get(task.execution)
        return protocol.ProcessStatus(
            pid=task.pid,
            scope=task.scope,
            execution=str(task.execution),
            inherited=task.inherited,
            held=task.held,
            artifact=known.artifact_id if known else "",
            program=known.program if known else "",
            uid=owner,
            started=round((known.started + offset) / 1e9, 3) if known else 0.0,
            refused=tuple(
                protocol.RefusedStatus(word=word, what=what, count=count)
                for word, what, count in self._refusals.of(task.execution)
            ),
        )


def _governs(scope: ScopeConfig | None) -> str:
    if scope is None:
        return ""
    if scope.cgroup is not None:
        return f"cgroup {scope.cgroup}"
    return f"binaries {', '.join(scope.binaries)}" if scope.binaries else f"users {', '.join(scope.users)}"


def _owner(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None  # ended just now


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
