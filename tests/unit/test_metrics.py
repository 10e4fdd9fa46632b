from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from egs_kernel.errors import UnsafePath
from egs_kernel.metrics import DEFINITIONS, MetricsSnapshot, WitnessState, exposition, write_textfile
from egs_kernel.model import GrantKind, Mode, Posture, Reason, Tier, Verdict

DOCUMENT: Final = Path(__file__).parents[2] / "docs/metrics.md"

POSTURE: Final = Posture(
    kernel="6.1.0-40-amd64",
    boot_id="6c1b0f5e-0000-4000-8000-000000000000",
    lockdown="integrity",
    tier=Tier.TRACEPOINT,
    gate=(("decide", "0123456789abcdef"),),
    policy_digest="ab" * 32,
    clock_synchronized=True,
)
SNAPSHOT: Final = MetricsSnapshot(
    time=1_700_000_000.5,
    daemon_started=1_699_990_000,
    tier=Tier.TRACEPOINT,
    decisions={
        (Verdict.ALLOW, Reason.AUTHORIZED, True): 41,
        (Verdict.KILL, Reason.NO_GRANT, True): 7,
        (Verdict.KILL, Reason.NO_GRANT, False): 2,
    },
    grants={GrantKind.STANDING: 3, GrantKind.ARMED: 1},
    heartbeat_age=0.75,
    failures={"events_full": 5},
    program_misses=9,
    scopes={"agents": Mode.ENFORCE, "ci": Mode.OBSERVE},
    governed_tasks={"agents": 12, "ci": 0},
    held_tasks={"agents": 3, "ci": 0},
    record_bytes=123_456,
    record_entries=789,
    posture=POSTURE,
    refusals={("agents", "syscalls"): 21, ("agents", "resources"): 1},
    refusals_seen=True,
    refusals_lost=2,
    findings={("traced", "high"): 4},
    responses={("terminate", "true"): 3},
    monitor_watches=True,
    revocation_lists={"*": (7, 1_700_003_600.0)},
    revocations_stale={"agents": True},
    witnesses=(WitnessState("w.example.com/1", 1_700_000_000.0, 700, "", diverged=False),),
)


def samples(content: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_every_value_of_the_snapshot_is_exposed() -> None:
    found = samples(exposition(SNAPSHOT))
    base = {"tier": "tracepoint"}

    def value(name: str, **labels: str) -> float:
        return found.pop((name, tuple(sorted(labels.items()))))

    assert value("egs_decisions_total", verdict="allow", reason="authorized", enforced="true", **base) == 41
    assert value("egs_decisions_total", verdict="kill", reason="no_grant", enforced="true", **base) == 7
    assert value("egs_decisions_total", verdict="kill", reason="no_grant", enforced="false", **base) == 2
    assert value("egs_grants", kind="standing") == 3
    assert value("egs_grants", kind="armed") == 1
    assert value("egs_heartbeat_age_seconds") == 0.75
    assert value("egs_gate_failures_total", kind="events_full") == 5
    assert value("egs_gate_program_misses_total") == 9
    assert value("egs_scope_observed", scope="agents") == 0
    assert value("egs_scope_observed", scope="ci") == 1
    assert value("egs_governed_tasks", scope="agents") == 12
    assert value("egs_governed_tasks", scope="ci") == 0
    assert value("egs_held_tasks", scope="agents") == 3
    assert value("egs_held_tasks", scope="ci") == 0
    assert value("egs_record_bytes") == 123_456
    assert value("egs_record_entries_total") == 789
    assert value("egs_posture_ok") == 1
    assert value("egs_posture_problems") == 0
    assert value("egs_sealed") == 0
    assert value("egs_refusals_total", scope="agents", word="syscalls") == 21
    assert value("egs_refusals_total", scope="agents", word="resources") == 1
    assert value("egs_refusals_seen") == 1
    assert value("egs_refusals_lost_total") == 2
    assert value("egs_findings_total", finding="traced", severity="high") == 4
    assert value("egs_drift_responses_total", response="terminate", verified="true") == 3
    assert value("egs_monitor_watches") == 1
    assert value("egs_clock_synchronized") == 1
    assert value("egs_witness_cosigned_timestamp_seconds", witness="w.example.com/1") == 1_700_000_000
    assert value("egs_revocation_list_number", scope="*") == 7
    assert value("egs_revocation_list_next_update_timestamp_seconds", scope="*") == 1_700_003_600
    assert value("egs_revocations_stale", scope="agents") == 1
    assert value("egs_witness_cosigned_entries", witness="w.example.com/1") == 700
    assert value("egs_witness_diverged", witness="w.example.com/1") == 0
    assert value("egs_snapshot_timestamp_seconds") == 1_700_000_000.5
    assert value("egs_daemon_start_time_seconds") == 1_699_990_000
    labels = {"kernel": "6.1.0-40-amd64", "lockdown": "integrity", "policy_digest": "ab" * 32, **base}
    assert value("egs_posture_info", **labels) == 1
    assert [name for name, _ in found] == ["egs_build_info"]


def test_only_a_seal_that_is_in_force_counts() -> None:
    for word, expected in (("sealed", 1), ("lifted", 0), ("unsealed", 0)):
        snapshot = replace(SNAPSHOT, posture=msgspec.structs.replace(POSTURE, seal=word))
        assert samples(exposition(snapshot))["egs_sealed", ()] == expected


def test_a_broken_posture_shows() -> None:
    posture = msgspec.structs.replace(POSTURE, problems=("gate changed", "no lockdown"))
    broken = replace(SNAPSHOT, posture=posture)
    found = samples(exposition(broken))
    assert found["egs_posture_ok", ()] == 0
    assert found["egs_posture_problems", ()] == 2


def test_the_same_snapshot_gives_the_same_bytes_in_whatever_order_it_was_filled() -> None:
    reordered = replace(SNAPSHOT, decisions=dict(reversed(list(SNAPSHOT.decisions.items()))))
    assert exposition(reordered) == exposition(SNAPSHOT) == exposition(SNAPSHOT)


def test_the_text_is_what_a_strict_reader_takes() -> None:
    """The rules of promtool's check: names, units, HELP and TYPE once and first, no duplicate sample."""
    text = exposition(SNAPSHOT).decode()
    assert text.endswith("\n")
    declared: dict[str, str] = {}
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in declared
            declared[name] = kind
        elif not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            float(value)
            assert series not in seen
            seen.add(series)
            assert re.fullmatch(r"egs(_[a-z]+)+", name), name
            assert (declared[name] == "counter") == name.endswith("_total"), name
            assert f"# HELP {name} " in text
    for definition in DEFINITIONS:
        assert not definition.help.startswith(definition.name)
        assert definition.help.endswith(".")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|megabytes)(_|$)", definition.name)


def test_hostile_labels_stay_labels() -> None:
    hostile = 'a"} 1\negs_posture_ok 1\n\\'
    found = samples(exposition(replace(SNAPSHOT, scopes={hostile: Mode.OBSERVE}, governed_tasks={})))
    assert found["egs_scope_observed", (("scope", hostile),)] == 1


def test_every_definition_is_exposed_and_documented() -> None:
    exposed = {family.name for family in text_string_to_metric_families(exposition(SNAPSHOT).decode())}
    assert exposed == {definition.name for definition in DEFINITIONS}
    table = [
        f"| `{definition.exposed_name}` | {definition.kind} | {', '.join(definition.labels) or '—'} | {definition.help} |"
        for definition in DEFINITIONS
    ]
    documented = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `egs_")]
    assert documented == table, "docs/metrics.md must list:\n" + "\n".join(table)


def test_the_file_is_replaced_and_readable_for_the_exporter(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_textfile(tmp_path, SNAPSHOT)
    finally:
        os.umask(before)
    file = tmp_path / "egs.prom"
    assert file.read_bytes() == exposition(SNAPSHOT)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    later = replace(SNAPSHOT, record_entries=790)
    write_textfile(tmp_path, later)
    assert file.read_bytes() == exposition(later)
    assert names(tmp_path) == ["egs.prom"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    versions = {exposition(replace(SNAPSHOT, record_entries=count)) for count in range(50)}
    write_textfile(tmp_path, replace(SNAPSHOT, record_entries=0))
    done = threading.Event()

    def write() -> None:
        for count in range(50):
            write_textfile(tmp_path, replace(SNAPSHOT, record_entries=count))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert (tmp_path / "egs.prom").read_bytes() in versions
    writer.join()


@pytest.mark.parametrize("name", ["egs.prom", ".egs.prom.partial"])
def test_a_planted_link_is_replaced_and_never_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "textfile"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    write_textfile(folder, SNAPSHOT)
    assert victim.read_text() == "precious"
    assert not (folder / "egs.prom").is_symlink()
    assert names(folder) == ["egs.prom"]


@pytest.mark.parametrize("name", ["egs.prom", ".egs.prom.partial"])
def test_a_planted_hard_link_keeps_its_content(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "textfile"
    folder.mkdir()
    os.link(victim, folder / name)
    write_textfile(folder, SNAPSHOT)
    assert victim.read_text() == "precious"


def test_a_planted_pipe_does_not_hold_the_daemon(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".egs.prom.partial")
    write_textfile(tmp_path, SNAPSHOT)
    assert (tmp_path / "egs.prom").is_file()


@pytest.mark.parametrize("name", ["egs.prom", ".egs.prom.partial"])
def test_a_folder_in_its_place_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UnsafePath) as caught:
        write_textfile(tmp_path, SNAPSHOT)
    assert caught.value.next_step
    assert names(tmp_path) == [name]


def test_a_missing_or_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for folder in ("missing", "link"):
        with pytest.raises(UnsafePath, match=folder):
            write_textfile(tmp_path / folder, SNAPSHOT)
    assert names(tmp_path / "real") == []


@pytest.mark.parametrize(("ready", "line"), [(True, "1.0"), (False, "0.0"), (None, None)])
def test_whether_the_policy_set_can_be_asked(tmp_path: Path, *, ready: bool | None, line: str | None) -> None:
    write_textfile(tmp_path, replace(SNAPSHOT, policy_ready=ready))
    lines = (tmp_path / "egs.prom").read_text().splitlines()
    found = [text.split()[-1] for text in lines if text.startswith("egs_policy_ready ")]
    assert found == ([] if line is None else [line])
