"""Lineage: every chain of a record that has all kinds of them, across restarts and boots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.audit.index import Index
from egs_kernel.audit.lineage import Lineage
from egs_kernel.audit.log import open_log
from egs_kernel.cli.lineage import LIMIT
from egs_kernel.cli.main import run
from egs_kernel.errors import EgsError
from egs_kernel.model import GrantKind, Reason
from tests import chains
from tests.recording import open_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    folder = tmp_path / "var/lib/egs/record"
    with open_record(folder) as record:
        record.append(chains.story())
    return folder


@pytest.fixture
def lineage(folder: Path) -> Iterator[Lineage]:
    with open_log(folder) as log, Index.open(None, log) as index:
        yield Lineage(index)


def test_a_launch_has_its_whole_chain(lineage: Lineage) -> None:
    (link, later) = lineage.of("5000000000")
    assert [item.seq for item in link.entries] == [2, 3, 4, 5, 6]
    assert (link.request.seq, link.verification.seq, link.decision.seq, link.artifact.seq) == (3, 4, 5, 2)  # type: ignore[union-attr]
    assert (link.end.state, link.end.execution) == ("replaced", 5_000_000_002)
    assert link.boot_id == "boot-one"
    assert lineage.ancestors(link) == ()
    assert [child.subject.seq for child in lineage.children(link)] == [10, 20]
    assert (later.boot_id, later.subject.seq, later.end.state) == ("boot-two", 27, "running")
    assert [child.subject.seq for child in lineage.children(later)] == []


def test_a_standing_exec_ends_under_another_daemon(lineage: Lineage) -> None:
    (link,) = lineage.of("5000000001")
    assert [item.seq for item in link.entries] == [7, 8, 9, 10, 11, 12, 16]
    assert (link.end.state, link.end.exit_code, link.end.max_rss_bytes) == ("ended", 3, 4096)
    assert [item.seq for item in link.refused] == [11, 12]
    assert [above.subject.seq for above in lineage.ancestors(link)] == [6]


def test_what_was_refused_by_the_gate_and_by_the_verifier(lineage: Lineage) -> None:
    (killed,) = lineage.of("entry:13")
    assert (killed.end.state, killed.decision) == ("refused", None)
    assert [above.subject.seq for above in lineage.ancestors(killed)] == [6, 10]
    for entry in ("entry:17", "entry:18", "entry:19"):
        (denied,) = lineage.of(entry)
        assert (denied.event, denied.end.state) == (None, "refused")
        assert [item.seq for item in denied.entries] == [2, 17, 18, 19]


def test_what_was_held_has_what_let_it_go(lineage: Lineage) -> None:
    (link,) = lineage.of("entry:23")
    assert [item.seq for item in link.entries] == [2, 21, 22, 23, 24]
    assert link.end.state == "lost"  # the host went down
    assert [above.subject.seq for above in lineage.ancestors(link)] == [6, 20]


def test_by_process_and_by_artifact(lineage: Lineage) -> None:
    assert [link.subject.seq for link in lineage.of("100")] == [27]
    assert [link.subject.seq for link in lineage.of("101")] == [10]
    assert [link.subject.seq for link in lineage.of(chains.LAUNCHED[:9])] == [6, 21]
    assert [link.subject.seq for link in lineage.of(chains.STANDING)] == [10, 20, 27]


@pytest.mark.parametrize("wanted", ["4194303", "77777777777", "c" * 64, "entry:1", "entry:99"])
def test_what_is_not_there(lineage: Lineage, wanted: str) -> None:
    with pytest.raises(EgsError) as caught:
        lineage.of(wanted)
    assert caught.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize("wanted", ["", "x", "-1", "entry:", "entry:x", "a" * 65, "../etc"])
def test_what_is_no_name(lineage: Lineage, wanted: str) -> None:
    with pytest.raises(EgsError) as caught:
        lineage.of(wanted)
    assert caught.value.reason in {Reason.USAGE, Reason.NOT_FOUND}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["lineage", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "101")
    for part in (
        "ended with 3",
        "verified",
        "policy pppp",
        "syscalls: socket",
        "parents",
        "/bin/sh",
    ):
        assert part in text
    tree = said(capsys, "5000000001", "--tree").splitlines()
    assert [line.strip("└├│─ ").split()[0] for line in tree] == ["/bin/x", "/bin/x", "/bin/sh"]
    assert "refused: no_grant" in tree[2]
    assert "the host went down" in said(capsys, "entry:21")


@pytest.mark.usefixtures("folder")
def test_the_command_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    answer: dict[str, Any] = json.loads(said(capsys, "5000000001", "--json"))
    (found,) = answer["executions"]
    assert (found["state"], found["outcome"]["exit_code"], found["boot_id"]) == ("ended", 3, "boot-one")
    assert found["verification"]["signers"] == [chains.SIGNER]
    assert [above["execution"] for above in found["ancestors"]] == ["5000000000"]
    assert [child["state"] for child in found["children"]] == ["refused"]
    deep = json.loads(said(capsys, "entry:6", "--json", "--tree"))["executions"][0]["descendants"]
    assert {item["subject"]["seq"] for item in deep} == {10, 13, 20, 21}


def test_a_chain_that_is_longer_than_pythons_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that executes itself again and again."""
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    base, count = 5_000_000_000, 1200
    entries = [
        chains.executed(
            base + n, pid=7, parent=base + n - 1 if n else 0, kind=GrantKind.STANDING, artifact="ab" * 32
        )
        for n in range(count)
    ]
    with open_record(tmp_path / "var/lib/egs/record") as record:
        record.append([*chains.boot("b"), *entries])
    assert len(said(capsys, str(base), "--tree", "--limit", "0").splitlines()) == count
    deep = json.loads(said(capsys, str(base), "--tree", "--limit", "0", "--json"))["executions"][0]
    assert (len(deep["descendants"]), deep["more"]) == (count - 1, False)
    assert len(said(capsys, str(base), "--tree").splitlines()) == LIMIT + 2
    assert said(capsys, "ab" * 32).splitlines()[0] == f"the last {LIMIT}; there are more: --limit N"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("limit", "seqs", "more"), [("1", [27], True), ("2", [20, 27], True), ("3", [10, 20, 27], False)]
)
def test_the_last_executions_of_an_artifact(
    capsys: pytest.CaptureFixture[str], limit: str, seqs: list[int], *, more: bool
) -> None:
    answer = json.loads(said(capsys, chains.STANDING, "--limit", limit, "--json"))
    assert [found["subject"]["seq"] for found in answer["executions"]] == seqs
    assert answer["more"] is more
    assert ("there are more" in said(capsys, chains.STANDING, "--limit", limit).splitlines()[0]) is more
    assert len(said(capsys, chains.STANDING, "--limit", "0").split("/bin/x [")) > 3


@pytest.mark.usefixtures("folder")
def test_the_first_of_what_was_executed(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "entry:6", "--limit", "1", "--json"))["executions"][0]
    assert ([child["subject"]["seq"] for child in found["children"]], found["more"]) == ([10], True)
    assert (
        said(capsys, "entry:6", "--limit", "1").splitlines()[-1].split("there are")[1] == " more: --limit N"
    )
    assert "there are more" not in said(capsys, "entry:6", "--limit", "2")


def test_a_limit_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["lineage", "5", "--limit", "-1"])
    assert "number of executions" in capsys.readouterr().err
