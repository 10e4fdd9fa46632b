"""What the monitor sees of the host: files, settings, the network, the clock; each with a real change, none without one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.drift.observations import FileEvent, HostEvent, HostState, Lost, Observation, Source
from egs_kernel.findings import Finding
from egs_kernel.monitor.sources.clock import SMALLEST, Clock
from egs_kernel.monitor.sources.files import WatchedFiles
from egs_kernel.monitor.sources.integrity import GONE, compare_objects, suspicion_of
from egs_kernel.monitor.sources.kernel import KernelState, Sysctls
from tests.harness import COMMAND_SECONDS, REPOSITORY


def told(source: Source) -> list[Observation]:
    """What a source has to say now, by itself: nothing when it is not readable."""
    ready, _, _ = select.select([source], [], [], 0)
    return list(source.read()) if ready else []


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path: Path) -> tuple[WatchedFiles, Path]:
    path = tmp_path / "script"
    path.write_text("echo as signed\n")
    source = WatchedFiles(lambda: (str(path),))
    assert list(source.sweep()) == []
    return source, path


def events(found: list[Observation]) -> list[tuple[str, bool]]:
    return [(event.path, event.gone) for event in found if isinstance(event, FileEvent)]


def test_a_file_that_is_written(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    assert told(source) == []
    path.write_text("echo something else\n")
    assert events(told(source)) == [(str(path), False)]
    assert told(source) == []
    assert list(source.sweep()) == []


def test_a_file_that_is_replaced_and_then_written(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    other = path.with_name("other")
    other.write_text("echo something else\n")
    other.rename(path)
    assert events(told(source)) == [(str(path), False)]
    path.write_text("echo and again\n")
    assert events(told(source)) == [(str(path), False)], "the new file is watched"


def test_a_file_that_is_removed_and_comes_back(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    path.unlink()
    assert events(told(source)) == [(str(path), True)]
    path.write_text("echo somebody else\n")
    assert events(told(source)) == [(str(path), False)]


def test_a_symbolic_link_on_the_way_that_is_led_elsewhere(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("good")
    source = WatchedFiles(lambda: (str(link / "tool"),))
    list(source.sweep())
    new = tmp_path / "new"
    new.symlink_to("bad")
    new.rename(link)
    assert events(told(source)) == [(str(link / "tool"), False)]
    (tmp_path / "bad/tool").write_text("worse")
    assert events(told(source)) == [(str(link / "tool"), False)], "what it leads to now is watched"


def test_a_change_that_no_event_told_is_for_the_sweep(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    source._watcher.close()
    blind = WatchedFiles(lambda: (str(path),))
    blind._states = source._states
    blind._watches = {str(path): []}
    path.write_text("echo unseen\n")
    assert told(blind) == []
    assert events(list(blind.sweep())) == [(str(path), False)]


def test_a_file_that_nobody_names_any_more_is_not_watched(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    source._named = tuple
    assert list(source.sweep()) == []
    path.write_text("echo whatever\n")
    assert told(source) == []


def test_many_writes_are_one_event(followed: tuple[WatchedFiles, Path]) -> None:
    source, path = followed
    for number in range(200):
        path.write_text(str(number))
    assert len(events(told(source))) == 1


def test_more_changes_than_the_kernel_keeps_are_lost_and_the_sweep_has_the_file(tmp_path: Path) -> None:
    """Of two files by turns, as the same change twice is kept once."""
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        path.write_text("as signed\n")
    source = WatchedFiles(lambda: map(str, paths))
    list(source.sweep())
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with paths[0].open("w") as one, paths[1].open("w") as other:
        for _ in range(room // 2 + 1):
            os.pwrite(one.fileno(), b"x", 0)
            os.pwrite(other.fileno(), b"x", 0)
    paths[0].unlink()
    found = told(source)
    assert [event.count for event in found if isinstance(event, Lost)] == [1]
    assert (str(paths[0]), True) in events([*found, *source.sweep()])


# -- the kernel --------------------------------------------------------------------------------------


def facts(found: list[Observation], suspicion: Finding) -> list[dict[str, str]]:
    return [state.facts for state in found if isinstance(state, HostState) and state.suspicion is suspicion]


def test_a_setting_that_is_not_there_is_not_watched() -> None:
    source = Sysctls(("kernel.ostype", "kernel.no_such_thing"))
    assert facts(list(source.sweep()), Finding.SYSCTL_CHANGED) == [{"kernel.ostype": "Linux"}]
    assert told(source) == []


def test_modules_and_taint(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "modules").write_text("ext4 737280 1 - Live 0x0\n")
    (tmp_path / "sys/kernel/tainted").write_text("0\n")
    source = KernelState(tmp_path)
    before = list(source.sweep())
    assert facts(before, Finding.MODULE_LOADED) == [{"ext4": "loaded"}]
    (tmp_path / "modules").write_text("rootkit 1 0 - Live 0x0 (OE)\next4 737280 1 - Live 0x0\n")
    (tmp_path / "sys/kernel/tainted").write_text("12288\n")
    after = list(source.sweep())
    assert facts(after, Finding.MODULE_LOADED) == [{"ext4": "loaded", "rootkit": "loaded"}]
    assert facts(after, Finding.KERNEL_TAINTED) == [{"tainted": "12288"}]


def test_a_kernel_without_modules_has_none() -> None:
    [modules, taint] = list(KernelState().sweep())
    assert isinstance(modules, HostState)
    assert isinstance(taint, HostState)
    assert list(taint.facts) == ["tainted"]


# -- the clock ---------------------------------------------------------------------------------------


def test_a_step_of_the_clock_is_told_with_its_size() -> None:
    """As if it had stood elsewhere when the source was made: no test sets this host's clock."""
    source = Clock()
    assert list(source.sweep()) == []
    source._offset -= 3600 * 10**9
    [event] = list(source.sweep())
    assert isinstance(event, HostEvent)
    assert event.suspicion is Finding.CLOCK_STEPPED
    assert event.was[11:13] != event.now[11:13]
    assert list(source.sweep()) == [], "told once"
    source._offset -= SMALLEST // 2
    assert list(source.sweep()) == []
    source.close()


# -- in namespaces of their own ----------------------------------------------------------------------

NETWORK = """
    from pyroute2 import IPRoute
    from egs_kernel.monitor.sources.network import Network
    source, ask = Network(), IPRoute()
    say(source.sweep())
    ask.link("set", index=1, state="up")
    say(told(source))
    ask.link("add", ifname="evil", kind="veth", peer="peer")
    say(told(source))
    number = ask.link_lookup(ifname="evil")[0]
    ask.addr("add", index=number, address="10.99.1.1", prefixlen=24)
    ask.link("set", index=number, state="up")
    ask.link("set", index=ask.link_lookup(ifname="peer")[0], state="up")
    say(told(source))
    ask.route("add", dst="10.7.0.0/16", gateway="10.99.1.2", oif=number)
    say(told(source))
    ask.addr("add", index=number, address="10.98.1.1", prefixlen=24)
    ask.addr("del", index=number, address="10.98.1.1", prefixlen=24)
    say(told(source))
    ask.link("del", index=number)
    say(told(source))
    say(told(source))
"""

SETTING = """
    from pathlib import Path
    from egs_kernel.monitor.sources.kernel import Sysctls
    source = Sysctls(("net.ipv4.ip_forward", "kernel.ostype"))
    say(source.sweep())
    say(told(source))
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    say(told(source))
"""


def in_namespaces(code: str) -> list[list[dict[str, Any]]]:
    """Run code in a network namespace of its own; what it said, each time."""
    head = """
        import msgspec, select
        def told(source):
            return list(source.read()) if select.select([source], [], [], 0)[0] else []
        def say(found):
            print(msgspec.json.encode(list(found)).decode())
    """
    whole = textwrap.dedent(head) + textwrap.dedent(code)
    command = ["unshare", *(() if os.geteuid() == 0 else ("-r",)), "-n", sys.executable, "-c", whole]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_interfaces_addresses_and_routes() -> None:
    first, *later = in_namespaces(NETWORK)
    known = {state["suspicion"]: state["facts"] for state in first}
    assert set(known) == {"interface_changed", "address_changed", "route_changed"}
    seen: list[set[str]] = []
    for observations in later:
        step: set[str] = set()
        for state in observations:
            if state["type"] == "state":
                step |= changes(known[state["suspicion"]], state["facts"])
                known[state["suspicion"]] = state["facts"]
            else:
                step.add(f"{state['subject']} {state['now']}")
        seen.append(step)
    loopback, added, used, routed, passed, removed, nothing = seen
    assert "lo" in loopback
    assert added == {"evil", "peer"}
    assert {"evil", "evil 10.99.1.1/24", "10.99.1.0/24 metric 0 table 254"} <= used
    assert routed == {"10.7.0.0/16 metric 0 table 254"}
    assert "evil 10.98.1.1/24 removed since" in passed
    assert {"evil", "peer", "evil 10.99.1.1/24", "10.7.0.0/16 metric 0 table 254"} <= removed
    assert nothing == set()


def test_a_setting_that_is_written() -> None:
    before, quiet, after = in_namespaces(SETTING)
    assert quiet == []
    assert changes(before[0]["facts"], after[0]["facts"]) == {"net.ipv4.ip_forward"}


# -- the gate ----------------------------------------------------------------------------------------


def test_what_became_of_an_object() -> None:
    noted = {"link_gate_exec": "link 1 of program 2", "tasks": "map 3", "gate_exec": "program 2, tag a"}
    found = {"tasks": "map 4", "gate_exec": "program 2, tag a", "stranger": "map 9"}
    assert compare_objects(noted, noted) == {}
    assert compare_objects(noted, found) == {
        "link_gate_exec": ("link 1 of program 2", GONE),
        "tasks": ("map 3", "map 4"),
        "stranger": ("", "map 9"),
    }


def test_only_a_link_is_the_gravest() -> None:
    assert suspicion_of("link_gate_exec") is Finding.GATE_LINK_LOST
    assert suspicion_of("drift/link_drift_call") is Finding.GATE_LINK_LOST
    assert suspicion_of("tasks") is Finding.GATE_TAMPERED
