"""What operators watch, as Prometheus metrics: a frozen snapshot in, the text exposition out.

The daemon takes a snapshot every few seconds and writes it to files: one in node exporter's textfile folder, one
that `egs console serve` (not root) serves on loopback. The daemon itself listens on no port.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from egs_kernel import __version__
from egs_kernel.errors import UnsafePath
from egs_kernel.model import GrantKind, Mode, Reason, Tier, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from egs_kernel.model import Posture

TEXTFILE: Final = "egs.prom"
_PARTIAL: Final = ".egs.prom.partial"  # node exporter reads names that end in .prom only
_MODE: Final = 0o644

_EMPTY: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True)
class WitnessState:
    """One witness of the record.

    Attributes:
        name: what its key is called.
        cosigned: when it cosigned last, Unix seconds; 0: never.
        size: entries of the checkpoint that it cosigned last.
        problem: why it does not cosign, in words, or "".
        diverged: whether it has seen another record than this one.
    """

    name: str
    cosigned: float
    size: int
    problem: str
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class MetricsSnapshot:
    """The state of one host at one moment.

    Attributes:
        time: when it was taken, Unix seconds.
        daemon_started: when the daemon started, Unix seconds.
        tier: how this kernel stops an exec.
        decisions: totals by verdict, reason, and whether the decision was enforced (False: observe mode).
        grants: grants in the gate now, by kind.
        heartbeat_age: seconds since the gate heard the daemon.
        failures: what went wrong inside the gate, totals by kind: full ring buffer, unreadable state, …
        program_misses: times the kernel skipped a program of the gate.
        scopes: the mode of each scope.
        governed_tasks: processes in each scope now.
        held_tasks: those of them that wait for an authorization.
        record_bytes: size of the record.
        record_entries: entries in the record, which is the next sequence number.
        posture: the host's integrity.
        witnesses: what the witnesses of the record have cosigned.
        refusals: what constraints refused running programs, by scope and constraint word.
        refusals_seen: whether the kernel reports what filters and Landlock refuse.
        refusals_lost: times that the kernel dropped messages of refusals.
        revocation_lists: number and nextUpdate (Unix seconds) of the revocation list in force, by scope.
        policy_ready: whether the active policy set can be asked; None: there is none.
        revocations_stale: whether nothing is authorized for lack of a list, by scope that demands one.
    """

    time: float
    daemon_started: float
    tier: Tier
    decisions: Mapping[tuple[Verdict, Reason, bool], int]
    grants: Mapping[GrantKind, int]
    heartbeat_age: float
    failures: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    program_misses: int = 0
    scopes: Mapping[str, Mode]
    governed_tasks: Mapping[str, int]
    held_tasks: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    record_bytes: int
    record_entries: int
    posture: Posture
    witnesses: tuple[WitnessState, ...] = ()
    refusals: Mapping[tuple[str, str], int] = field(default_factory=dict)
    refusals_seen: bool = False
    refusals_lost: int = 0
    findings: Mapping[tuple[str, str], int] = field(default_factory=dict)
    responses: Mapping[tuple[str, str], int] = field(default_factory=dict)
    monitor_watches: bool = False
    revocation_lists: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    policy_ready: bool | None = None
    revocations_stale: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """One metric, as docs/metrics.md lists it. `name` is without the `_total` that a counter ends in."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str

    @property
    def exposed_name(self) -> str:
        """The name that a query uses."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


DEFINITIONS: Final = (
    Definition("egs_build_info", "gauge", ("version",), "Always 1; the version that runs."),
    Definition(
        "egs_snapshot_timestamp_seconds",
        "gauge",
        (),
        "When these values were taken. Old: the daemon is not running.",
    ),
    Definition("egs_daemon_start_time_seconds", "gauge", (), "When the daemon started."),
    Definition(
        "egs_decisions",
        "counter",
        ("verdict", "reason", "tier", "enforced"),
        'Decisions of the gate since it was loaded; enforced="false": observe mode, not EGS-001 compliant.',
    ),
    Definition("egs_grants", "gauge", ("kind",), "Grants in the gate."),
    Definition(
        "egs_heartbeat_age_seconds",
        "gauge",
        (),
        "Since the gate heard the daemon; beyond daemon_grace it refuses all.",
    ),
    Definition(
        "egs_gate_failures",
        "counter",
        ("kind",),
        "What went wrong inside the gate; anything but 0 deserves a look.",
    ),
    Definition(
        "egs_gate_program_misses", "counter", (), "Times that the kernel skipped a program of the gate."
    ),
    Definition(
        "egs_scope_observed",
        "gauge",
        ("scope",),
        "1: the scope only observes and is not EGS-001 compliant; 0: it enforces.",
    ),
    Definition("egs_governed_tasks", "gauge", ("scope",), "Processes in the scope."),
    Definition("egs_held_tasks", "gauge", ("scope",), "Those of them that wait for an authorization."),
    Definition("egs_record_bytes", "gauge", (), "Size of the record."),
    Definition("egs_record_entries", "counter", (), "Entries in the record."),
    Definition(
        "egs_posture_ok", "gauge", (), "1: the host's integrity is established; 0: nothing is authorized."
    ),
    Definition(
        "egs_posture_problems", "gauge", (), "Problems of the host's integrity; `egs status` names them."
    ),
    Definition(
        "egs_posture_info",
        "gauge",
        ("kernel", "lockdown", "tier", "policy_digest"),
        "Always 1; what the host is.",
    ),
    Definition(
        "egs_policy_ready",
        "gauge",
        (),
        "1: the active policy set can be asked, and was not revoked; 0: the scopes under it execute nothing. Absent without a set.",
    ),
    Definition(
        "egs_sealed",
        "gauge",
        (),
        "1: the gate is sealed; 0: whoever is root can change it, or stop the daemon.",
    ),
    Definition(
        "egs_refusals",
        "counter",
        ("scope", "word"),
        "Refused to running programs by a constraint, since the daemon started.",
    ),
    Definition(
        "egs_refusals_seen", "gauge", (), "1: the kernel reports what constraints refuse; 0: it does not."
    ),
    Definition(
        "egs_findings", "counter", ("finding", "severity"), "Drift that was found since the daemon started."
    ),
    Definition(
        "egs_drift_responses",
        "counter",
        ("response", "verified"),
        'What was done about it; verified="false": it did not take effect, or that is not known.',
    ),
    Definition("egs_monitor_watches", "gauge", (), "1: the monitor is there; 0: nobody watches for drift."),
    Definition("egs_refusals_lost", "counter", (), "Times that refusals came faster than they were counted."),
    Definition(
        "egs_witness_cosigned_timestamp_seconds",
        "gauge",
        ("witness",),
        "When the witness cosigned the record last; 0: never.",
    ),
    Definition(
        "egs_revocation_list_number",
        "gauge",
        ("scope",),
        "Number of the revocation list in force for the scope.",
    ),
    Definition(
        "egs_revocation_list_next_update_timestamp_seconds",
        "gauge",
        ("scope",),
        "By when there is a newer list.",
    ),
    Definition(
        "egs_revocations_stale",
        "gauge",
        ("scope",),
        "1: what is revoked is not known well enough, and nothing is authorized in the scope.",
    ),
    Definition("egs_witness_cosigned_entries", "gauge", ("witness",), "Entries of what it cosigned last."),
    Definition(
        "egs_witness_diverged",
        "gauge",
        ("witness",),
        "1: the witness has seen another record than this one: rolled back, or forked.",
    ),
    Definition("egs_clock_synchronized", "gauge", (), "1: the host's clock is synchronized."),
)
_BY_NAME: Final = {definition.name: definition for definition in DEFINITIONS}


def registry(snapshot: MetricsSnapshot) -> CollectorRegistry:
    """A registry that holds the snapshot's metrics and nothing else."""
    result = CollectorRegistry(auto_describe=False)
    result.register(_Snapshot(snapshot))
    return result


def exposition(snapshot: MetricsSnapshot) -> bytes:
    """The snapshot in Prometheus' text format. Pure: the same snapshot gives the same bytes."""
    return generate_latest(registry(snapshot))


def write_textfile(folder: Path, snapshot: MetricsSnapshot, name: str = TEXTFILE) -> None:
    """Replace the metrics file in a folder, at once: a reader sees the old content or the new.

    The folder may belong to somebody else: no link that is planted there is followed, no file outside it is
    touched. Not synced to disk: after a crash the values mean nothing.

    Raises:
        UnsafePath: the folder is missing or a symbolic link, or the file cannot be written.
    """
    content = exposition(snapshot)
    try:
        with _opened(folder) as directory, _partial(directory) as descriptor:
            os.fchmod(descriptor, _MODE)  # whatever the umask is
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.rename(_PARTIAL, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        raise UnsafePath(
            Reason.PATH_UNSAFE,
            f"cannot write {folder / name}: {error.strerror}",
            f"Make {folder} a folder that egsd can write, or change metrics.textfile_dir.",
        ) from error


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _partial(directory: int) -> Iterator[int]:
    """A new file of ours, whatever bore its name before: what a crash left, or what somebody planted."""
    with suppress(FileNotFoundError):
        os.unlink(_PARTIAL, dir_fd=directory)
    descriptor = os.open(
        _PARTIAL,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        stat.S_IRUSR,
        dir_fd=directory,
    )
    try:
        yield descriptor
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(_PARTIAL, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)


class _Snapshot(Collector):
    def __init__(self, snapshot: MetricsSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name, samples in _samples(self._snapshot).items():
            definition = _BY_NAME[name]
            make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
            family = make(name, definition.help, labels=definition.labels)
            for labels, value in sorted(samples):
                family.add_metric(labels, value)
            yield family


def _samples(snapshot: MetricsSnapshot) -> dict[str, list[tuple[tuple[str, ...], float]]]:
    """Label values and value of every sample, by metric."""
    posture, tier = snapshot.posture, snapshot.tier.value
    return {
        "egs_build_info": [((__version__,), 1)],
        "egs_snapshot_timestamp_seconds": _plain(snapshot.time),
        "egs_daemon_start_time_seconds": _plain(snapshot.daemon_started),
        "egs_decisions": [
            ((verdict.name.lower(), reason.code, tier, _truth(enforced)), count)
            for (verdict, reason, enforced), count in snapshot.decisions.items()
        ],
        "egs_grants": [((kind.name.lower(),), count) for kind, count in snapshot.grants.items()],
        "egs_heartbeat_age_seconds": _plain(snapshot.heartbeat_age),
        "egs_gate_failures": [((kind,), count) for kind, count in snapshot.failures.items()],
        "egs_gate_program_misses": _plain(snapshot.program_misses),
        "egs_scope_observed": [((scope,), mode is Mode.OBSERVE) for scope, mode in snapshot.scopes.items()],
        "egs_governed_tasks": [((scope,), count) for scope, count in snapshot.governed_tasks.items()],
        "egs_held_tasks": [((scope,), count) for scope, count in snapshot.held_tasks.items()],
        "egs_record_bytes": _plain(snapshot.record_bytes),
        "egs_record_entries": _plain(snapshot.record_entries),
        "egs_revocation_list_number": [
            ((scope,), number) for scope, (number, _) in snapshot.revocation_lists.items()
        ],
        "egs_revocation_list_next_update_timestamp_seconds": [
            ((scope,), until) for scope, (_, until) in snapshot.revocation_lists.items()
        ],
        "egs_revocations_stale": [((scope,), stale) for scope, stale in snapshot.revocations_stale.items()],
        "egs_witness_cosigned_timestamp_seconds": [((one.name,), one.cosigned) for one in snapshot.witnesses],
        "egs_witness_cosigned_entries": [((one.name,), one.size) for one in snapshot.witnesses],
        "egs_witness_diverged": [((one.name,), one.diverged) for one in snapshot.witnesses],
        "egs_posture_ok": _plain(not posture.problems),
        "egs_posture_problems": _plain(len(posture.problems)),
        "egs_posture_info": [
            ((posture.kernel, posture.lockdown, posture.tier.value, posture.policy_digest), 1)
        ],
        "egs_policy_ready": [] if snapshot.policy_ready is None else _plain(snapshot.policy_ready),
        "egs_sealed": _plain(posture.seal == "sealed"),
        "egs_refusals": list(snapshot.refusals.items()),
        "egs_refusals_seen": _plain(snapshot.refusals_seen),
        "egs_refusals_lost": _plain(snapshot.refusals_lost),
        "egs_findings": list(snapshot.findings.items()),
        "egs_drift_responses": list(snapshot.responses.items()),
        "egs_monitor_watches": _plain(snapshot.monitor_watches),
        "egs_clock_synchronized": _plain(posture.clock_synchronized),
    }


def _plain(value: float) -> list[tuple[tuple[str, ...], float]]:
    return [((), float(value))]


def _truth(value: bool) -> str:  # noqa: FBT001 - it is the value itself
    return "true" if value else "false"
