"""The daemon's pure parts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from egs_kernel.artifact import canonical
from egs_kernel.artifact.statement import parse_statement
from egs_kernel.cli.tables import printable
from egs_kernel.config import parse_config
from egs_kernel.constraints.proc import parse_environment
from egs_kernel.daemon.events import Executions
from egs_kernel.daemon.intents import interpreted_intent, recorded_intent
from egs_kernel.daemon.revocations import read_revocations, require_thing, write_revocation
from egs_kernel.daemon.scoping import Moves, is_below, parse_cgroup, target_cgroup
from egs_kernel.daemon.verdicts import Trial, use_until
from egs_kernel.errors import GateError, RecordError, Refused, UnsafePath, UsageError
from egs_kernel.gate import abi
from egs_kernel.gate.events import parse_event
from egs_kernel.model import (
    CodeEvent,
    ExecEvent,
    ExitEvent,
    FileIdentity,
    GrantKind,
    Intent,
    Reason,
    Revoked,
    TaskIdentity,
    Tier,
    Verdict,
)
from egs_kernel.processes import start_ticks
from egs_kernel.verify import Artifact
from tests.samples import exec_event
from tests.unit.issuing import ISSUER, NOW, host, intent, signed, statement, store


def executed(pid: int, execution: int) -> ExecEvent:
    return exec_event(
        verdict=Verdict.ALLOW if execution else Verdict.KILL,
        reason=Reason.AUTHORIZED if execution else Reason.NO_GRANT,
        scope="test",
        time=execution,
        execution=execution,
        grant_id=1,
        grant_kind=GrantKind.STANDING,
        artifact_id="ab" * 32,
        pid=pid,
        start_ticks=1,
    )


def ended(pid: int, execution: int) -> ExitEvent:
    return ExitEvent(scope="test", time=99, execution=execution, pid=pid, status=0)


def test_executions_begin_and_end() -> None:
    executions = Executions()
    executions.take(executed(10, 100))
    executions.take(executed(11, 0))  # refused: never began
    executions.take(executed(12, 120))
    assert len(executions) == 2
    executions.take(executed(10, 101))  # the same process executes again: the first one is over
    assert executions.get(100) is None
    assert executions.get(101) is not None
    executions.take(ended(10, 101))
    executions.take(ended(77, 777))  # one that began before anybody listened
    assert len(executions) == 1
    executions.take(executed(13, 130))
    executions.keep([130])
    assert executions.get(120) is None
    executions.take(ended(13, 130))
    assert len(executions) == 0


def code(reason: Reason, file: abi.FileId | None = None) -> bytes:
    """What the gate writes of refused code."""
    raw = abi.CodeEvent(
        type=abi.EventType.CODE,
        scope=1,
        time=7,
        execution=100,
        reason=reason,
        enforced=1,
        pid=10,
        name=b"x.so",
    )
    if file is not None:
        raw.file = file
    return bytes(raw)


def test_refused_code_is_an_event_and_ends_no_execution() -> None:
    raw = abi.FileId(inode=2, size=3, ctime_sec=4, ctime_nsec=5, generation=6, device=1)
    event = parse_event(code(Reason.CODE_UNTRUSTED, raw), {1: "test"}, Tier.LSM)
    assert event == CodeEvent(
        reason=Reason.CODE_UNTRUSTED,
        enforced=True,
        scope="test",
        time=7,
        execution=100,
        pid=10,
        file=FileIdentity(device=1, inode=2, generation=6, size=3, ctime_seconds=4, ctime_nanoseconds=5),
        name="x.so",
    )
    executions = Executions()
    executions.take(executed(10, 100))
    executions.take(event)
    assert executions.get(100) is not None


def test_refused_memory_of_no_file_has_none() -> None:
    event = parse_event(code(Reason.CODE_ANONYMOUS), {}, Tier.LSM)
    assert isinstance(event, CodeEvent)
    assert (event.file, event.scope) == (None, "#1")


def test_a_truncated_event_of_code_is_no_event() -> None:
    with pytest.raises(GateError) as caught:
        parse_event(code(Reason.CODE_ANONYMOUS)[:-1], {}, Tier.LSM)
    assert caught.value.reason is Reason.GATE_VERSION_MISMATCH


def test_a_script_is_intended_as_what_the_kernel_executes_for_it() -> None:
    said = Intent(program="./job", digest="", argv=("job", "now", "x y"))
    assert interpreted_intent(said, ("/bin/sh", "-eu")).argv == ("/bin/sh", "-eu", "./job", "now", "x y")


def test_environments() -> None:
    assert parse_environment(b"A=1\0B=x=y\0\0C\0D=\xff\0") == (
        ("A", "1"),
        ("B", "x=y"),
        ("C", ""),
        ("D", os.fsdecode(b"\xff")),
    )
    assert parse_environment(b"") == ()


def artifact_with(**predicate: object) -> Artifact:
    return Artifact(
        id="ab" * 32, statement=parse_statement(canonical.encode(statement(predicate))), signers=()
    )


def test_the_record_gets_no_secrets_from_the_environment() -> None:
    said = Intent(program="/p", digest="", environment=(("TOKEN", "secret"), ("HOME", "/srv")))
    assert recorded_intent(said, None).environment is None
    assert recorded_intent(said, artifact_with()).environment is None
    fixed = artifact_with(intent={"environment": {"allow": ["TOKEN"], "set": {"HOME": "/srv"}}})
    assert recorded_intent(said, fixed).environment == (("HOME", "/srv"),)
    other = artifact_with(intent={"environment": {"set": {"TOKEN": "expected"}}})
    assert recorded_intent(said, other).environment == ()


def test_only_limited_uses_are_counted() -> None:
    assert use_until(artifact_with()) is None
    assert use_until(artifact_with(uses=2)) == "2026-11-23T15:00:00Z"


@pytest.mark.parametrize(
    ("cgroup", "ancestor", "below"),
    [
        ("/egs/agents", "/egs/agents", True),
        ("/egs/agents/a", "/egs/agents", True),
        ("/egs/agents2", "/egs/agents", False),
        ("/egs", "/egs/agents", False),
        ("", "/egs", False),
    ],
)
def test_cgroups_below(cgroup: str, ancestor: str, *, below: bool) -> None:
    assert is_below(cgroup, ancestor) is below


def test_the_cgroup_of_a_process_and_of_a_scope() -> None:
    assert parse_cgroup("4:memory:/x\n0::/egs/agents\n") == "/egs/agents"
    assert parse_cgroup("4:memory:/x\n") == ""
    config = parse_config(b'[[scope]]\nname = "a"\ncgroup = "/x"\n[[scope]]\nname = "b"\nusers = ["1"]\n')
    assert target_cgroup(config, "a", None) == "/x"
    assert target_cgroup(config, "a", "/x/y") == "/x/y"
    with pytest.raises(Refused):
        target_cgroup(config, "a", "/xy")
    assert target_cgroup(config, "b", None) is None
    assert target_cgroup(config, "b", "/x") is None, "nobody is moved for a scope of users"


def test_a_move_is_announced_until_it_has_been_seen_that_moves_take_no_time() -> None:
    scopes = parse_config(b'[[scope]]\nname = "a"\ncgroup = "/x"\n', "egs.toml")
    time, begun, takes = 0.0, 0, 0.0

    def begin() -> None:
        nonlocal time, begun
        time, begun = time + takes, begun + 1

    async def announce(moves: Moves) -> None:
        moves.announce(scopes)

    def begins(moves: Moves, times: int, pause: float = 1.0) -> int:
        nonlocal time
        before = begun
        for _ in range(times):
            time += pause
            asyncio.run(announce(moves))  # its end waits for what was begun
        return begun - before

    takes = 0.010
    assert begins(Moves(lambda: time, begin), 9) == 9, "each would have to be waited for"
    takes = 0.0003
    quick = Moves(lambda: time, begin)
    assert begins(quick, 9) == 3, "enough to know"
    assert begins(Moves(lambda: time, begin), 9, pause=0.01) == 9, "what came right before may be why"
    waits = Moves(lambda: time, begin)
    assert begins(waits, 2) == 2
    takes = 0.010
    assert begins(waits, 1) == 1
    takes = 0.0003
    assert begins(waits, 9) == 3, "one that had to wait, and it is counted anew"


def test_a_launcher_that_had_to_wait_has_moves_announced_again() -> None:
    here = TaskIdentity(os.getpid(), start_ticks(os.getpid()))
    times = iter([0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.5])
    moves = Moves(lambda: next(times), lambda: None)
    for _ in range(3):
        moves._announce()
    assert moves._quick == 3
    moves.enter(
        here, _own_cgroup(), exactly=True
    )  # it is there: nothing is moved, and yet it took half a second
    assert moves._quick == 0


def _own_cgroup() -> str:
    return parse_cgroup(Path("/proc/self/cgroup").read_text())


def unasked(_artifact: Artifact, _intent: Intent) -> str:
    """No policy set is active."""
    return ""


def test_a_trial_tells_how_far_it_came() -> None:
    trial = Trial()
    trial.authenticate(signed(statement(), ISSUER), store(), NOW)
    trial.authorize(intent(), host(), NOW, unasked)
    assert trial.error is None
    assert [step.passed for step in trial.steps] == [True] * 15
    assert trial.verification("r").passed
    again = trial.progress
    trial.authorize(intent(), host(), NOW, unasked)
    assert trial.progress == again, "judged twice, recorded once"

    expired = Trial()
    expired.authenticate(signed(statement(), ISSUER), store(), NOW.replace(year=2027))
    expired.authorize(intent(), host(), NOW.replace(year=2027), unasked)
    assert expired.reason is Reason.EXPIRED
    assert expired.steps[-1].name == "window"
    assert not expired.steps[-1].passed

    garbage = Trial()
    garbage.authenticate(b"{", store(), NOW)
    garbage.authorize(intent(), host(), NOW, unasked)
    assert garbage.artifact_id is None
    assert [step.name for step in garbage.steps] == ["envelope"]


def test_it_is_known_who_started_whom_also_when_that_has_ended() -> None:
    executions = Executions()
    for pid, number, parent in ((1, 10, 0), (2, 20, 10), (2, 21, 20), (3, 30, 21), (4, 40, 0)):
        executions.take(msgspec.structs.replace(executed(pid, number), parent_execution=parent))
    executions.take(ExitEvent(scope="test", time=50, execution=21, pid=2, status=0))
    assert list(executions.above(30)) == [21, 20, 10]
    assert list(executions.above(40)) == []
    executions.forget([30])
    assert list(executions.above(30)) == [21, 20, 10]
    executions.forget([21])
    assert list(executions.above(30)) == []
    assert not executions.crowded
    for number in range(100, 1200):
        executions.take(msgspec.structs.replace(executed(5, number), parent_execution=number - 1))
    assert executions.crowded
    executions.forget([])
    assert not executions.crowded


def test_revocations_are_files(tmp_path: Path) -> None:
    folder = tmp_path / "revoked"
    assert read_revocations(folder) == Revoked()
    things = {
        "artifact": "ab" * 32,
        "key": "cd" * 32,
        "subject": "ef" * 32,
        "policy": "01" * 32,
        "host": "web-1",
    }
    for kind, thing in things.items():
        for since in ("2026-11-23T12:00:00Z", "2026-11-24T12:00:00Z"):  # the first one counts
            write_revocation(folder, kind, thing, since)
    (folder / "notes.txt").touch()
    (folder / ("12" * 32)).touch()  # as an earlier version wrote it
    found = read_revocations(folder)
    assert found.artifact.pop("12" * 32) == "1970-01-01T00:00:00Z"
    assert found == Revoked(**{kind: {thing: "2026-11-23T12:00:00Z"} for kind, thing in things.items()})
    for text in ("", "ab", "AB" * 32, "../" + "ab" * 31, "ab" * 32 + "\n"):
        with pytest.raises(UsageError):
            require_thing("artifact", text)
    for text in ("", "a b", "a/b", "-a", "a\n"):
        with pytest.raises(UsageError):
            require_thing("host", text)
    (folder / ("key-" + "cd" * 32)).write_text("{}")
    with pytest.raises(RecordError, match="does not say what is revoked"):
        read_revocations(folder)
    folder.chmod(0o777)
    with pytest.raises(UnsafePath):
        read_revocations(folder)


def test_nothing_reaches_the_terminal_that_it_would_obey() -> None:
    assert printable("a\x1b[31mb\n\u202ec") == "a\ufffd[31mb\ufffd\ufffdc"
