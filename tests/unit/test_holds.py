"""What is held, without a kernel: how it is shown, what is issued for it, and what may let it go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import SubjectRole, parse_statement
from egs_kernel.cli.holds import hold_lines, issue_for
from egs_kernel.cli.main import run
from egs_kernel.daemon.events import Executions
from egs_kernel.daemon.held import Hold, require_conditions
from egs_kernel.daemon.protocol import HoldStatus
from egs_kernel.errors import EgsError, ExitCode, Refused
from egs_kernel.model import (
    FileIdentity,
    Grant,
    GrantKind,
    Intent,
    Measurement,
    ProgramKind,
    Reason,
    Verdict,
)
from egs_kernel.trust.keys import load_private
from tests.samples import FILE, exec_event

if TYPE_CHECKING:
    from pathlib import Path


SCRIPT = FileIdentity(1, 7, 3, 4, 5, 6)
DIGEST = "ab" * 32
HELD = HoldStatus(
    id="123456",
    pid=42,
    parent_pid=41,
    scope="agents",
    program="/usr/bin/report",
    digest=DIGEST,
    kind="native",
    argv=("report", "--all"),
    uid=1000,
    since=1000.0,
    until=1060.0,
    reason="no_grant",
    message="no artifact is for it",
)
EVENT = exec_event(
    verdict=Verdict.HOLD,
    reason=Reason.NO_GRANT,
    execution=123456,
    grant_kind=GrantKind.STANDING,
    artifact_id="cd" * 32,
    parent_pid=41,
    cgroup_id=7,
    comm="report",
    filename="/usr/bin/report",
    argv=("report", "--all"),
    argv_bytes=13,
)
GRANT = Grant(
    artifact_id=DIGEST, scope="agents", file=FILE, digest=DIGEST, not_before=0, not_after=2**62, uid=1000
)


# -- shown -------------------------------------------------------------------------------------------


def test_the_list_for_people() -> None:
    heading, row, why = hold_lines([HELD], now=1010.0)
    assert heading.split() == [
        *("HOLD", "PID", "SCOPE", "SINCE", "LEFT", "UID", "PROGRAM", "DIGEST", "ARGUMENTS")
    ]
    assert row.split() == [
        *("123456", "42", "agents", "10", "s", "50", "s", "1000", "/usr/bin/report", DIGEST[:16]),
        *("report", "--all"),
    ]
    assert why == "123456: no artifact is for it"


def test_nothing_is_held() -> None:
    assert hold_lines([], now=0.0) == ["Nothing is held."]


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    hostile = msgspec.structs.replace(HELD, argv=("report", "\x1b[2J"), message="\x1b]0;x\x07")
    assert not any("\x1b" in line for line in hold_lines([hostile], now=1010.0))


def test_a_hold_before_and_after_it_was_measured() -> None:
    hold = Hold(EVENT, until=61 * 10**9)
    before = hold.status(clock_offset=10**12)
    assert (before.digest, before.kind, before.program, before.message) == ("", "", "/usr/bin/report", "")
    assert (before.id, before.since, before.until) == ("123456", 1001.0, 1061.0)
    hold.intent = Intent(
        program="/usr/bin/real", digest=DIGEST, argv=("report", "\udcff"), program_kind=ProgramKind.NATIVE
    )
    hold.problem = Refused(Reason.NO_GRANT, "none")
    after = hold.status(clock_offset=0)
    assert (after.program, after.digest, after.kind) == ("/usr/bin/real", DIGEST, "native")
    assert (after.argv, after.message) == (("report", r"\xff"), "none")
    msgspec.json.encode(after)


def test_an_id_that_is_not_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["holds", "approve", "1"])
    assert ended.value.code == ExitCode.USAGE
    assert "--artifact" in capsys.readouterr().err


# -- issued ------------------------------------------------------------------------------------------


def issued(hold: HoldStatus, folder: Path) -> bytes:
    assert run(["keys", "generate", "--name", "k", "--out", str(folder)]) == ExitCode.DONE
    return issue_for(hold, load_private(folder / "k.key"), datetime(2026, 1, 1, tzinfo=UTC), 300)


def test_what_is_issued_binds_digest_arguments_and_user_for_one_use(tmp_path: Path) -> None:
    statement = parse_statement(parse_envelope(issued(HELD, tmp_path)).payload)
    predicate = statement.predicate
    assert (statement.program.name, statement.program.digest.sha256) == (HELD.program, DIGEST)
    assert predicate.intent is not None
    assert predicate.intent.argv == HELD.argv
    assert predicate.identity is not None
    assert predicate.identity.uid == 1000
    assert (predicate.scope.name, predicate.uses) == ("agents", 1)
    assert (predicate.not_before, predicate.not_after) == ("2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z")


def test_an_interpreters_script_is_signed_as_well(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo")
    held = msgspec.structs.replace(HELD, kind="interpreter", argv=("sh", str(script), "/does/not/exist"))
    statement = parse_statement(parse_envelope(issued(held, tmp_path)).payload)
    assert [(subject.name, subject.role) for subject in statement.subject[1:]] == [
        (str(script), SubjectRole.SCRIPT)
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": ""}, Reason.MEASUREMENT_RACED),
        ({"argv": ("report", "*")}, Reason.ARGV_MISMATCH),
    ],
)
def test_what_cannot_be_issued(tmp_path: Path, change: dict[str, object], reason: Reason) -> None:
    """A star would be an argument that is free."""
    with pytest.raises(EgsError) as refused:
        issued(msgspec.structs.replace(HELD, **change), tmp_path)
    assert refused.value.reason is reason


# -- let go ------------------------------------------------------------------------------------------


def test_a_grant_for_what_is_held() -> None:
    require_conditions(GRANT, EVENT)
    require_conditions(msgspec.structs.replace(GRANT, uid=None, cgroup_id=7), EVENT)
    named = msgspec.structs.replace(GRANT, subjects=(Measurement(DIGEST, FILE), Measurement(DIGEST, SCRIPT)))
    require_conditions(named, msgspec.structs.replace(EVENT, script=SCRIPT))


@pytest.mark.parametrize(
    ("grant", "event", "reason"),
    [
        ({"scope": "other"}, {}, Reason.SCOPE_MISMATCH),
        ({"uid": 1001}, {}, Reason.IDENTITY_MISMATCH),
        ({}, {"euid": 0}, Reason.IDENTITY_MISMATCH),
        ({"cgroup_id": 8}, {}, Reason.CGROUP_MISMATCH),
        ({}, {"script": SCRIPT}, Reason.SCRIPT_UNAUTHORIZED),
        ({"subjects": (Measurement(DIGEST, FILE),)}, {"script": SCRIPT}, Reason.SCRIPT_UNAUTHORIZED),
    ],
)
def test_a_grant_for_something_else(
    grant: dict[str, object], event: dict[str, object], reason: Reason
) -> None:
    with pytest.raises(Refused) as refused:
        require_conditions(msgspec.structs.replace(GRANT, **grant), msgspec.structs.replace(EVENT, **event))
    assert refused.value.reason is reason


def test_what_is_held_is_an_execution_without_an_artifact_until_it_is_authorized() -> None:
    executions = Executions()
    executions.take(EVENT)
    found = executions.get(EVENT.execution)
    assert found is not None
    assert found.artifact_id == ""
    executions.authorized(EVENT.execution, DIGEST)
    found = executions.get(EVENT.execution)
    assert found is not None
    assert found.artifact_id == DIGEST
    executions.authorized(1, DIGEST)
    assert len(executions) == 1
