"""`egs gate load|status|unload` and `egs doctor`."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.config import load_config
from egs_kernel.errors import ExitCode, GateError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.cli.main import Commands
    from egs_kernel.gate.manifest import DriftManifest
    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.tiers import Diagnosis, Finding


def add_commands(commands: Commands) -> None:
    """Add `gate` and `doctor`."""
    gate = commands.add_parser("gate", help="load, inspect or unload the enforcement point")
    actions = gate.add_subparsers(title="actions", metavar="ACTION", required=True)
    load = actions.add_parser(
        "load",
        help="compile, prove and attach the gate",
        description="Compile the gate for this kernel, prove that it sees what user space knows, attach and pin it, "
        "and govern the scopes of egs.toml. Loaded already: brings the scopes up to date.",
    )
    status = actions.add_parser("status", help="what is loaded and what it did")
    unload = actions.add_parser("unload", help="detach the gate: nothing is enforced any more")
    for parser, run in ((load, _load), (status, _status), (unload, _unload)):
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(run=run)
    doctor = commands.add_parser(
        "doctor",
        help="what this host can enforce, why, and what is missing",
        description="Try what the gate needs on this kernel: which tier it offers, and whether a scope may hold "
        "(on_missing). Exit code 3 when nothing can be enforced here.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)


def _load(options: argparse.Namespace) -> int:
    from egs_kernel.gate.loader import load_gate  # noqa: PLC0415 - the only way to bcc

    paths = Paths.from_environment()
    config = load_config(paths.config)
    started = time.monotonic()
    loaded = load_gate(paths, config)
    seconds = time.monotonic() - started
    if options.json:
        print_json(
            {
                "loaded": True,
                "already": loaded.already,
                "seconds": round(seconds, 3),
                "checks": list(loaded.checks),
                "scopes": [scope.name for scope in config.scopes],
                **msgspec.to_builtins(loaded.manifest),
            }
        )
        return ExitCode.DONE
    scopes = ", ".join(f"{scope.name} ({scope.mode.value})" for scope in config.scopes) or "none"
    if loaded.already:
        print_lines([f"The gate was loaded already; scopes brought up to date: {scopes}."])
    else:
        print_lines(
            [
                f"Gate loaded in {seconds:.1f} s, {len(loaded.checks)} self-test checks passed. Scopes: {scopes}.",
                "Until egsd runs, everything in an enforced scope is refused.",
                *_drift_missing(loaded.manifest.drift),
            ]
        )
    return ExitCode.DONE


def _drift_missing(drift: DriftManifest | None) -> list[str]:
    """What to say when drift programs were wanted and there are none."""
    if drift is None or not drift.missing:
        return []
    return [f"No drift events: {drift.missing}. The monitor has its sweeps alone."]


def _unload(options: argparse.Namespace) -> int:
    from egs_kernel.gate.loader import unload_gate  # noqa: PLC0415 - as above

    found = unload_gate(Paths.from_environment())
    if options.json:
        print_json({"unloaded": found})
    else:
        print_lines(["Gate unloaded: nothing is enforced any more." if found else "No gate was loaded."])
    return ExitCode.DONE


def _status(options: argparse.Namespace) -> int:
    from egs_kernel.gate.pins import Gate  # noqa: PLC0415 - needs libbpf

    pins = Paths.from_environment().pins
    gate = Gate.open(pins)
    try:
        answer = _describe(gate) | {"drift": _describe_drift(pins)}
    finally:
        gate.close()
    if options.json:
        print_json(answer)
    else:
        print_lines(_status_lines(answer))
    return ExitCode.DONE


def _describe(gate: Gate) -> dict[str, Any]:
    counters = gate.counters()
    age = gate.heartbeat_age()
    return {
        "loaded": True,
        "tier": gate.tier.value,
        "scopes": [msgspec.to_builtins(scope) for scope in gate.scopes().values()],
        "heartbeat_age": None if age == float("inf") else round(age, 3),
        "governed": len(gate.governed()),
        "standing_grants": len(gate.standing()),
        "armed_grants": len(gate.armed()),
        "decisions": [
            {"verdict": verdict.name.lower(), "reason": reason.code, "enforced": enforced, "count": count}
            for (verdict, reason, enforced), count in sorted(counters.decisions.items())
        ],
        "failures": counters.failures,
        "missed": counters.missed,
        "programs": gate.programs(),
    }


def _describe_drift(pins: Path) -> dict[str, Any] | None:
    """What the drift programs told and what they could not; None: the gate was loaded without them."""
    from egs_kernel.gate.drift import DriftGate  # noqa: PLC0415 - needs libbpf

    try:
        drift = DriftGate.open(pins)
    except GateError as error:
        if error.reason is Reason.GATE_NOT_LOADED:
            return None
        raise
    try:
        return dict(msgspec.to_builtins(drift.counters()))
    finally:
        drift.close()


def _drift_line(drift: dict[str, Any] | None) -> str:
    if drift is None:
        return "Drift events: none; see drift.events in egs.toml"
    told, untold = sum(drift["told"].values()), sum(drift["untold"].values()) + drift["missed"]
    failures = {name: count for name, count in drift["failures"].items() if count}
    return f"Drift events: {told} told, {untold} not{f', failures {failures}' if failures else ''}"


def _status_lines(answer: dict[str, Any]) -> list[str]:
    age = answer["heartbeat_age"]
    lines = [
        f"Gate loaded, tier {answer['tier']}.",
        f"Daemon heartbeat: {'none: everything in scope is refused' if age is None else f'{age:.1f} s ago'}",
        f"Governed processes: {answer['governed']}",
        f"Grants: {answer['standing_grants']} standing, {answer['armed_grants']} armed",
        _drift_line(answer["drift"]),
        "",
        *columns(
            ("SCOPE", "MODE", "CGROUP"),
            [(scope["name"], _mode(scope["mode"]), scope["cgroup"] or "-") for scope in answer["scopes"]],
        ),
    ]
    if answer["decisions"]:
        rows = [
            (row["verdict"], row["reason"], "yes" if row["enforced"] else "observed only", str(row["count"]))
            for row in answer["decisions"]
        ]
        lines += ["", *columns(("VERDICT", "REASON", "ENFORCED", "COUNT"), rows)]
    failures = {name: count for name, count in answer["failures"].items() if count}
    if failures or answer["missed"]:
        lines += ["", f"Failures: {failures}; skipped runs: {answer['missed']}"]
    return lines


def _mode(mode: str) -> str:
    return mode if mode == "enforce" else f"{mode} (not EGS-001 compliant: nothing is refused)"


def _doctor(options: argparse.Namespace) -> int:
    from egs_kernel.cli.hostid import describe_host, host_line  # noqa: PLC0415 - cryptography, only here
    from egs_kernel.cli.revocations import stale_scopes  # noqa: PLC0415 - as above
    from egs_kernel.gate.seal import seal_word  # noqa: PLC0415 - as above
    from egs_kernel.gate.tiers import diagnose, probe  # noqa: PLC0415 - loads what it tries

    pins = Paths.from_environment().pins
    diagnosis = diagnose(os.uname().release, probe(pins))
    seal = seal_word(pins)
    stale = stale_scopes(Paths.from_environment())
    host = describe_host(Paths.from_environment())
    if options.json:
        extra = {"seal": seal, "stale_revocations": stale, "host": host}
        print_json({**msgspec.to_builtins(diagnosis), **extra})
    else:
        print_lines([*_doctor_lines(diagnosis), "", _seal_line(seal), host_line(host)])
        print_lines(
            f"Scope {scope} refuses everything: {problem}. Bring a new list: egs revocations add FILE"
            for scope, problem in stale.items()
        )
    return ExitCode.DONE if diagnosis.tier is not None else ExitCode.HOST_LACKS


def _seal_line(seal: str) -> str:
    words = {
        "sealed": "The gate is sealed: only its daemon changes anything.",
        "lifted": "The gate's seal is lifted by a maintenance artifact.",
        "unsealed": "The gate is not sealed: egs seal, or sealed = true in egs.toml.",
    }
    return words.get(seal, "No gate is loaded that could be sealed.")


def _doctor_lines(diagnosis: Diagnosis) -> list[str]:
    tier = diagnosis.tier.value if diagnosis.tier else "none"
    return [
        f"Kernel {diagnosis.kernel}",
        f"Tier: {tier}: {diagnosis.why}",
        "",
        *(line for finding in diagnosis.findings for line in _finding_lines(finding)),
    ]


def _finding_lines(finding: Finding) -> list[str]:
    detail = f" ({finding.detail})" if finding.detail else ""
    if finding.present:
        return [f"  \N{CHECK MARK} {finding.name}{detail}"]
    return [f"  \N{BALLOT X} {finding.name}{detail}", f"      {finding.cure}"]
