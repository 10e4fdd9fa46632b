"""The shipped units, judged by systemd's own tools; no systemd has to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

UNITS: Final = Path(__file__).parents[2] / "systemd"
DOCUMENT: Final = Path(__file__).parents[2] / "docs/systemd.md"
PREFIX: Final = "/opt/egs/bin"

# `systemd-analyze security`, times ten: 0 is closed, 100 open. What the two root units need of the kernel keeps them
# where they are (docs/systemd.md); less hardening than this fails.
EXPOSURE: Final = {
    "egs-gate.service": 67,
    "egsd.service": 72,
    "egs-monitor.service": 35,
    "egs-console.service": 10,
    "egs-submit.service": 11,
    "egs-witness.service": 9,
    "egs-authority.service": 15,
}

# Each of these lines counts in systemd's own sum. Others (ReadOnlyPaths, KeyringMode, …) harden without counting.
COUNTED: Final = {
    "egs-gate.service": (
        "CapabilityBoundingSet",
        "DevicePolicy",
        "IPAddressDeny",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "ProtectSystem",
    ),
    "egsd.service": (
        "CapabilityBoundingSet",
        "DevicePolicy",
        "IPAddressDeny",
        "NoNewPrivileges",
        "PrivateMounts",
        "PrivateNetwork",
        "ProtectSystem",
    ),
    "egs-monitor.service": (
        "CapabilityBoundingSet",
        "DevicePolicy",
        "IPAddressDeny",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "NoNewPrivileges",
        "PrivateMounts",
        "ProtectClock",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectSystem",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
        "SystemCallFilter",
    ),
    "egs-console.service": (
        "CapabilityBoundingSet",
        "DynamicUser",
        "IPAddressDeny",
        "PrivateDevices",
        "PrivateUsers",
        "ProtectControlGroups",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "SystemCallArchitectures",
        "SystemCallFilter",
    ),
}

COUNTED["egs-witness.service"] = (
    *("User" if key == "DynamicUser" else key for key in COUNTED["egs-console.service"]),
    "ProtectClock",  # in the console's sum each of these is lost in rounding
    "ProtectHome",
)

COUNTED["egs-authority.service"] = (
    "CapabilityBoundingSet",
    "IPAddressDeny",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "NoNewPrivileges",
    "PrivateDevices",
    "PrivateMounts",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectSystem",
    "RemoveIPC",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
    "SystemCallFilter",
    "UMask",
    "User",
)

COUNTED["egs-submit.service"] = tuple(key for key in COUNTED["egs-console.service"] if key != "IPAddressDeny")

# systemd.exec(5): what is implemented with a seccomp filter, wholly or in part.
INSTALLS_A_FILTER: Final = frozenset(
    {
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
        "SystemCallErrorNumber",
        "SystemCallFilter",
        "SystemCallLog",
        "DynamicUser",  # implies RestrictSUIDSGID
    }
)


@pytest.fixture(autouse=True, scope="module")
def _systemd_analyze() -> None:
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is not installed (scripts/setup --dev installs it)"
        if os.environ.get("EGS_REQUIRE_KERNEL") == "1":
            pytest.fail(message)
        pytest.skip(message)


def units() -> list[Path]:
    return sorted(path for path in UNITS.iterdir() if path.is_file())


def settings(name: str) -> list[tuple[str, str]]:
    lines = (UNITS / name).read_text().splitlines()
    return [
        (key, value)
        for key, separator, value in (line.partition("=") for line in lines)
        if separator and key[0] != "#"
    ]


def verified(folder: Path) -> tuple[int, str]:
    """What systemd-analyze verify says of all units in a folder, its own units being there as well."""
    paths = sorted(str(path) for path in folder.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    return done.returncode, "\n".join(line for line in done.stderr.splitlines() if "egs" in line)


def installed(tmp_path: Path) -> Path:
    """The units as they would be installed, under a prefix where the commands exist."""
    commands, folder = tmp_path / "bin", tmp_path / "units"
    commands.mkdir()
    folder.mkdir()
    for command in ("egs", "egsd", "egs-monitor"):
        (commands / command).write_text("#!/bin/sh\n")
        (commands / command).chmod(0o755)
    for unit in units():
        (folder / unit.name).write_text(unit.read_text().replace(PREFIX, str(commands)))
    return folder


def exposure_is_within(text: str, name: str, folder: Path) -> bool:
    unit = folder / name
    unit.write_text(text)
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--no-pager",
            "--offline=true",
            f"--threshold={EXPOSURE[name]}",
            unit,
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "Overall exposure level" in done.stdout, done.stderr
    return done.returncode == 0


def test_systemd_takes_every_unit_without_a_word(tmp_path: Path) -> None:
    assert verified(installed(tmp_path)) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ProtectSystem=strict", "ProtectSytem=strict"),
        ("WatchdogSec=5", "WatchdogSec=often"),
        ("bin/egsd\n", "bin/egsd-that-is-not-there\n"),
        ("Type=notify", "Type=notifi"),
    ],
)
def test_a_mistake_in_a_unit_would_be_found(tmp_path: Path, right: str, wrong: str) -> None:
    folder = installed(tmp_path)
    unit = folder / "egsd.service"
    text = unit.read_text()
    assert right in text
    unit.write_text(text.replace(right, wrong))
    code, message = verified(folder)
    assert code != 0 or message


def test_units_refer_to_units_that_there_are() -> None:
    shipped = {unit.name for unit in units()}
    referred = {
        name
        for unit in shipped
        for key, value in settings(unit)
        if key in ("Requires", "Wants", "After", "Before", "BindsTo", "PartOf")
        for name in value.split()
        if name.startswith("egs")
    }
    assert {"egs-gate.service", "egsd.service"} <= referred <= shipped


def test_every_command_is_where_the_document_installs_it() -> None:
    commands = [value for unit in units() for key, value in settings(unit.name) if key.startswith("Exec")]
    assert len(commands) >= 4
    assert all(
        command.split()[0] in (f"{PREFIX}/egs", f"{PREFIX}/egsd", f"{PREFIX}/egs-monitor")
        for command in commands
    )
    text = DOCUMENT.read_text()
    assert "/opt/egs" in text
    for unit in units():
        assert unit.name in text


@pytest.mark.parametrize("name", sorted(EXPOSURE))
def test_the_exposure_is_no_higher_than_it_must_be(name: str, tmp_path: Path) -> None:
    assert exposure_is_within((UNITS / name).read_text(), name, tmp_path)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in COUNTED.items() for key in keys])
def test_dropping_a_hardening_line_fails(name: str, key: str, tmp_path: Path) -> None:
    text, dropped = re.subn(rf"(?m)^{key}=.*\n", "", (UNITS / name).read_text())
    assert dropped
    assert not exposure_is_within(text, name, tmp_path)


@pytest.mark.parametrize("name", ["egs-gate.service", "egsd.service"])
def test_nothing_gives_the_daemon_or_the_self_test_a_seccomp_filter(name: str) -> None:
    """With one the kernel would not show egsd what launchers installed (tests/kernel/test_attest.py)."""
    assert not INSTALLS_A_FILTER & {key for key, _ in settings(name)}


def test_the_self_test_runs_without_no_new_privs() -> None:
    """Under it, kernels before 6.17 make the effective user of an exec the real one; the self-test compares both."""
    assert "NoNewPrivileges" not in {key for key, _ in settings("egs-gate.service")}


def test_the_daemons_unit_names_what_must_stay_out() -> None:
    """For whoever writes a drop-in: systemd derives a filter from nothing else than these."""
    comment = "\n".join(
        line for line in (UNITS / "egsd.service").read_text().splitlines() if line.startswith("#")
    )
    for key in INSTALLS_A_FILTER - {"SystemCallErrorNumber", "DynamicUser"}:
        assert re.search(rf"\b{key}\b", comment), key
        assert re.search(rf"\b{key}\b", DOCUMENT.read_text()), key


def test_the_daemon_is_watched_and_comes_back() -> None:
    unit = dict(settings("egsd.service"))
    assert unit["Type"] == "notify"
    assert unit["WatchdogSec"]
    assert unit["Restart"] == "always"
    assert unit["StartLimitIntervalSec"] == "0"
    assert int(unit["OOMScoreAdjust"]) < -500
    assert unit["PrivateNetwork"] == "yes"


def test_nothing_starts_in_the_governed_slice_before_the_gate_stands() -> None:
    governed = settings("egs.slice")
    assert ("Requires", "egs-gate.service") in governed
    assert any(key == "After" and "egs-gate.service" in value.split() for key, value in governed)
    gate = dict(settings("egs-gate.service"))
    assert (gate["Type"], gate["RemainAfterExit"]) == ("oneshot", "yes")
    assert "ExecStop" not in gate  # stopping a unit must not open the gate


def test_the_users_of_the_units_are_made(tmp_path: Path) -> None:
    """By systemd's own tool, from the file that the document installs."""
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d/egs.conf")],
        check=True,
        capture_output=True,
    )
    made = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0] for line in (tmp_path / "etc/group").read_text().splitlines()}
    for unit in units():
        for key, value in settings(unit.name):
            assert key != "User" or value in made, unit
            assert key not in {"Group", "SupplementaryGroups"} or set(value.split()) <= groups, unit
    assert "sysusers.d" in DOCUMENT.read_text()


def test_the_console_s_network_is_loopback() -> None:
    console = settings("egs-console.service")
    assert ("DynamicUser", "yes") in console
    assert ("IPAddressDeny", "any") in console
    assert ("IPAddressAllow", "localhost") in console
    assert ("CapabilityBoundingSet", "") in console
