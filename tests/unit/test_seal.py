"""The seal's pure parts: its words, its events, and what a daemon consists of."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from egs_kernel.audit.describe import describe
from egs_kernel.audit.entries import Attempt, Recorded, SealChange
from egs_kernel.audit.lines import decode, encode
from egs_kernel.config import parse_config
from egs_kernel.daemon import kept
from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.gate.events import parse_event
from egs_kernel.gate.parts import HOOKS, SHARED
from egs_kernel.gate.seal import SealState
from egs_kernel.model import AttemptEvent, Tier
from egs_kernel.paths import Paths

EVENT = AttemptEvent(what="bpf", time=5, number=30, pid=7, uid=0, comm="bpftool", device=0, inode=0, name="")


@pytest.mark.parametrize(
    ("state", "now", "word"),
    [
        (SealState(sealed=False, lifted_until=0), 1, "unsealed"),
        (SealState(sealed=True, lifted_until=0), 1, "sealed"),
        (SealState(sealed=True, lifted_until=10), 9, "lifted"),
        (SealState(sealed=True, lifted_until=10), 10, "sealed"),
    ],
)
def test_how_a_gate_is(state: SealState, now: int, word: str) -> None:
    assert state.word(now) == word
    assert state.in_force(now) is (word == "sealed")


def test_an_attempt_from_the_ring_buffer() -> None:
    raw = abi.AttemptEvent(type=abi.EventType.ATTEMPT, what=5, time=5, number=30, pid=7, comm=b"bpftool")
    assert parse_event(bytes(raw), {}, Tier.LSM) == EVENT
    raw.what = 99
    with pytest.raises(GateError, match="does not know"):
        parse_event(bytes(raw), {}, Tier.LSM)


def said(entry: Attempt | SealChange) -> str:
    line = encode(entry, seq=1, time="2026-11-23T14:00:00.000000Z")
    assert decode(line).entry == entry
    return describe(Recorded(1, "T", entry, ""))


def test_what_the_record_says_of_it() -> None:
    assert said(Attempt(event=EVENT)) == "1 T attempt refused bpf 30: pid 7 uid 0 bpftool"
    assert said(SealChange(action="sealed", cause="configured")) == "1 T seal sealed: configured"
    lifted = SealChange(
        action="lifted", until="2026-11-23T15:00:00Z", artifact_id="ab" * 32, purpose="upgrade", operator="jo"
    )
    assert "lifted until 2026-11-23T15:00:00Z" in said(lifted)
    assert said(lifted).endswith(": jo: upgrade")


def test_the_setting() -> None:
    assert parse_config(b"sealed = true").sealed
    assert not parse_config(b"").sealed


def test_what_this_process_consists_of(tmp_path: Path) -> None:
    paths = Paths.under(str(tmp_path))
    for folder in (paths.config_dir, paths.state_dir, paths.run_dir):
        folder.mkdir(parents=True)
    parts = kept.wanted(paths)
    assert {paths.config_dir, paths.state_dir, paths.run_dir, Path(os.__file__).parent} <= set(parts.folders)
    assert Path(sys.executable).resolve() in set(parts.files) & set(parts.code)
    assert any("libc.so" in path.name for path in parts.code)
    assert all(path == path.resolve() for path in (*parts.folders, *parts.files))
    assert set(parts.code) <= set(parts.files)


def test_a_second_name_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one").touch()
    (folder / "two").touch()
    (tmp_path / "elsewhere").hardlink_to(folder / "two")
    assert list(kept._hard_linked((folder,), tmp_path / "pins")) == [folder / "two"]


def test_maps_and_mounts_with_any_name() -> None:
    maps = (
        "7f0-7f1 r-xp 00000000 08:01 12 /opt/my egs/lib.so (deleted)\n"
        "7f1-7f2 r--p 00000000 08:01 13 /usr/lib/locale/C\n"
        "7f2-7f3 rw-p 00000000 00:00 0 [heap]\n"
        "7f3-7f4 rw-p 00000000 00:00 0\n"
    )
    assert list(kept._mapped(maps)) == [
        (Path("/opt/my egs/lib.so"), True),
        (Path("/usr/lib/locale/C"), False),
    ]
    mounts = "30 24 0:26 / /opt/my\\040egs rw shared:1 - tmpfs none rw\n"
    assert list(kept._mount_points(mounts)) == ["/opt/my egs"]


def test_what_is_shared_is_there() -> None:
    assert set(SHARED) < set(HOOKS)
    assert set(SHARED.values()) <= set(HOOKS) - set(SHARED)
