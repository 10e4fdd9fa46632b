"""`egs profile record`: what is proposed, and recordings of real runs. No privileges are needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.constraints.profiles import NARROWEST_FIRST, PROFILES
from egs_kernel.constraints.proposal import Seen, propose, propose_exact, toml_of
from egs_kernel.constraints.seccomp import check
from egs_kernel.constraints.syscalls import LAUNCH

EGS = str(Path(sys.executable).with_name("egs"))
SECONDS = 60


def seen(*calls: tuple[Any, ...]) -> Seen:
    result = Seen()
    for name, *arguments in calls:
        convention, call = ("i386", name[5:]) if name.startswith("i386 ") else ("", name)
        result.take(convention, call, tuple(arguments))
    return result


def proposed(*calls: tuple[Any, ...]) -> SyscallConstraint:
    """What is proposed; it is valid and survives being written down."""
    constraint = propose(seen(*calls))
    check(constraint)
    again = tomllib.loads(toml_of(constraint, ["from a test"]))["syscalls"]
    assert msgspec.convert(again, SyscallConstraint) == constraint
    return constraint


def test_every_profile_has_its_place() -> None:
    assert sorted(NARROWEST_FIRST) == sorted(PROFILES)


@pytest.mark.parametrize(
    ("calls", "profile"),
    [
        ((("openat",), ("lseek",)), "strict"),
        ((("clone", 0x01200011),), "batch"),
        ((("clone", 0x3D0F00),), "strict"),
        ((("socket", 1),), "batch"),
        ((("socket", 10), ("vfork",)), "agent"),
        ((("socket", 2), ("setuid",)), "network-client"),
        ((("socket", 2), ("setuid",), ("listen",)), "default"),
        ((("clone3",),), "strict"),
    ],
)
def test_the_profile_that_needs_least_and_allows_least(calls: tuple[Any, ...], profile: str) -> None:
    constraint = proposed(*calls)
    assert (constraint.profile, constraint.allow, constraint.rules) == (profile, (), ())


def test_what_no_profile_has_is_added() -> None:
    constraint = proposed(("ptrace",), ("socket", 17), ("socket", 2), ("vfork",))
    assert (constraint.profile, constraint.allow) in {("agent", ("ptrace",)), ("default", ("ptrace",))}
    constraint = proposed(("vfork",), ("socket", 17), ("setuid",), ("listen",), ("chroot",))
    assert constraint.profile == "default"
    assert constraint.allow == ("chroot",)


def test_a_condition_is_widened_by_what_was_seen_and_no_more() -> None:
    constraint = proposed(("ioctl", 0, 0x5401), ("ioctl", 0, 0x540F), ("openat",))
    assert constraint.profile == "batch"  # fits as it is
    constraint = proposed(("ioctl", 0, 0x540F), ("listen",), ("socket", 1), ("socket", 40))
    assert constraint.profile == "default"
    only_strict = seen(("prctl", 38))
    fits = {name for name, profile in PROFILES.items() if "prctl" not in profile.conditions}
    assert propose(only_strict).profile in fits


def test_a_rule_holds_the_values_of_the_profile_and_those_seen() -> None:
    from egs_kernel.constraints.proposal import _fit  # noqa: PLC0415 - one profile's part of the choice

    fit = _fit("strict", PROFILES["strict"], seen(("prctl", 38), ("prctl", 15)))
    (rule,) = fit.rules
    assert set(rule.values) == {38, *PROFILES["strict"].conditions["prctl"][0].values}
    many = seen(*(("prctl", value) for value in range(100, 130)))
    assert _fit("strict", PROFILES["strict"], many).allow == ("prctl",)
    namespaces = _fit("default", PROFILES["default"], seen(("clone", 0x10000000)))
    assert (namespaces.allow, namespaces.rules) == (("clone",), ())


def test_another_convention_is_allowed_by_its_name_and_judged_by_what_it_means() -> None:
    constraint = proposed(("i386 stat64",), ("i386 mmap2",))
    assert (constraint.profile, constraint.architectures) == ("strict", ("i386",))
    assert proposed(("i386 stime",)).allow == ("settimeofday",)
    assert "listen" in seen(("i386 socketcall",)).calls


def test_exactly_what_was_seen() -> None:
    constraint = propose_exact(seen(("openat",), ("ptrace",), ("call 999",)))
    assert set(constraint.allow) == LAUNCH | {"openat", "ptrace"}
    assert constraint.profile is None
    check(constraint)
    assert seen(("call 999",)).unknown == ("call 999",)


def record(
    *command: str, options: tuple[str, ...] = ("--json",), **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EGS, "profile", "record", *options, "--", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        **more,
    )


def answer(*command: str, **more: Any) -> dict[str, Any]:
    done = record(*command, **more)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_real_run(tmp_path: Path) -> None:
    done = record("cat", "/etc/hostname", options=("--out", str(tmp_path / "cat.toml")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(Path("/etc/hostname").read_text())
    assert "openat" in done.stdout
    text = (tmp_path / "cat.toml").read_text()
    assert re.search(r"(?m)^# Proposed by a run of: cat /etc/hostname\n# It made: .*\bopenat \d+", text)
    table = tomllib.loads(text)
    assert table == {"syscalls": {"profile": "strict"}}


def test_the_whole_tree_threads_and_what_it_leaves_behind() -> None:
    script = (
        "import os, threading, socket\n"
        "threading.Thread(target=lambda: os.sched_yield()).start()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: os.getpriority(0, 0)\n"
        "else: os.wait()\n"
    )
    calls = answer(sys.executable, "-I", "-c", script)["calls"]
    assert {"sched_yield", "setsid", "getpriority", "wait4"} <= calls.keys()


def test_arguments_decide_the_profile() -> None:
    script = "import socket; socket.socket({})"
    for family, profile in (("socket.AF_UNIX", "batch"), ("socket.AF_INET", "agent")):
        found = answer(sys.executable, "-I", "-c", script.format(family))["constraints"]["syscalls"]
        assert found == {"profile": profile}


def test_the_exit_code_the_output_and_the_environment_are_the_commands_own() -> None:
    done = record("sh", "-c", "echo $WORD; exit 7", env=os.environ | {"WORD": "said"})
    assert json.loads(done.stdout)["exit_code"] == 7
    assert done.stderr == "said\n"
    assert answer("sh", "-c", "kill -9 $$")["exit_code"] == 137


def test_a_command_that_would_write_into_the_proposal() -> None:
    done = record("true", "x\n[syscalls]\nallow = ['mount']\n\x1b[2J", options=())
    assert tomllib.loads(done.stdout) == {"syscalls": {"profile": "strict"}}
    assert "\x1b" not in done.stdout


def test_what_cannot_be_recorded() -> None:
    missing = record("/nonexistent")
    assert (missing.returncode, "not_found" in missing.stderr) == (2, True)
    nothing = record()
    assert (nothing.returncode, "no command" in nothing.stderr) == (2, True)
    within = record(EGS, "profile", "record", "--json", "--", "true", options=("--exact",))
    assert "what it calls cannot be seen" in within.stderr  # one listener for a process, says the kernel
