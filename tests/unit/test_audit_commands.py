"""`egs audit …` as an operator and as a program meet it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from egs_kernel.audit.checkpoint import open_checkpoint
from egs_kernel.audit.describe import describe
from egs_kernel.audit.entries import (
    ArtifactChange,
    Code,
    DaemonStarted,
    DaemonStopped,
    Decision,
    Exec,
    Gap,
    Peer,
    Recorded,
    Request,
    Step,
    Verification,
    outcome,
)
from egs_kernel.audit.lines import posture_entry
from egs_kernel.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from egs_kernel.audit.reader import Reader, read
from egs_kernel.audit.tiles import Tile, pack_entry, unpack
from egs_kernel.audit.tlog_proof import TlogProof
from egs_kernel.cli.main import run
from egs_kernel.model import (
    CodeEvent,
    ExitEvent,
    FileIdentity,
    Intent,
    Posture,
    Reason,
    TaskIdentity,
    Tier,
    Verdict,
)
from tests.recording import abandon, log_keys, open_record
from tests.samples import FILE, exec_event

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Entry

ID = "ab" * 32
POSTURE = Posture(
    kernel="k",
    boot_id="b",
    lockdown="none",
    tier=Tier.LSM,
    gate=(),
    policy_digest="",
    clock_synchronized=True,
)
EVENT = exec_event(
    verdict=Verdict.KILL,
    reason=Reason.NO_GRANT,
    time=2**60,
    pid=77,
    parent_pid=2,
    uid=0,
    euid=0,
    gid=0,
    comm="sh",
    filename="/bin/sh",
    argv=("sh", "-c", "echo \x1b[2J\n"),
)
ENTRIES: list[Entry] = [
    posture_entry(POSTURE),
    DaemonStarted(version="1", pid=5, host_id="h", posture="p"),
    ArtifactChange(action="added", artifact_id=ID, source="a.json"),
    Request(request="r", scope="jobs", intent=Intent(program="/bin/x", digest="d"), peer=Peer(42, 0, 0)),
    Verification(
        passed=False,
        reason=Reason.EXPIRED,
        artifact_id=ID,
        steps=(Step("window", passed=False),),
        request="r",
    ),
    Decision(
        verdict=Verdict.DENY,
        reason=Reason.EXPIRED,
        scope="jobs",
        policy_digest="",
        posture="p",
        artifact_id=ID,
        task=TaskIdentity(43, 1),
    ),
    Exec(event=EVENT),
    outcome(ExitEvent(scope="agents", time=1, execution=1, pid=77, status=9)),
    Gap(cause="events_lost", detail="ring buffer full", lost=3),
    DaemonStopped(cause="SIGTERM"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of an instance under EGS_ROOT, where the commands look."""
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    folder = tmp_path / "var/lib/egs/record"
    with open_record(folder) as opened:
        for entry in ENTRIES:
            opened.append([entry])
    return folder


class Said:
    """What a command said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = run(["audit", *arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def seqs(self) -> list[int]:
        return [json.loads(line)["seq"] for line in self.out.splitlines()]


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "verify")
    assert said.code == 0
    assert "verified: 10 entries" in said.out
    answer = Said(capsys, "verify", "--json", str(folder)).json
    assert answer["verified"] is True
    assert answer["signed"] is True
    assert answer["published"] == 10
    assert answer["size"] == 10
    assert answer["types"]["exec"] == 1


def test_verify_says_what_nobody_has_signed_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "signed by nobody" not in Said(capsys, "verify").out
    crashed = open_record(folder, in_background=False)
    crashed.append([DaemonStopped(cause="not published")])
    abandon(crashed)
    said = Said(capsys, "verify")
    assert said.code == 0
    assert "verified: 11 entries, 10 of them under the published checkpoint" in said.out
    assert "signed by nobody yet" in said.out


def test_verify_a_copy_with_a_key_and_without_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    key = str(log_keys(folder).listed.current)
    monkeypatch.setenv("EGS_ROOT", str(tmp_path / "another host"))
    refused = Said(capsys, "verify", str(copy))
    assert refused.code == 1
    assert "[not_found]" in refused.err
    assert Said(capsys, "verify", "--json", "--key", key, str(copy)).json["signed"] is True
    unsigned = Said(capsys, "verify", "--unsigned", str(copy))
    assert unsigned.code == 0
    assert "no signature was verified" in unsigned.out
    wrong = Said(capsys, "verify", "--key", "x", str(copy))
    assert wrong.code == 2
    assert "--key" in wrong.err
    (journal,) = (copy / "journal").iterdir()
    journal.write_bytes(journal.read_bytes() + b"half")
    assert "4 bytes" in Said(capsys, "verify", "--key", key, str(copy)).out


def test_verify_names_the_entry_that_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_journal(folder, b'"ring buffer full"', b'"ring buffer fine"')
    said = Said(capsys, "verify", "--json")
    assert said.code == 1
    assert said.json["error"]["reason"] == "record_corrupt"
    assert "entry 8" in said.json["error"]["message"]
    assert "[record_corrupt]" in said.err
    assert said.json["error"]["next_step"] in said.err


def without_journal(folder: Path, old: bytes, new: bytes) -> None:
    """Change an entry of what was published."""
    shutil.rmtree(folder / "journal")
    bundle = folder / Tile(None, 0, 10).path
    lines = [line.replace(old, new) for line in unpack(bundle.read_bytes(), "", 10)]
    bundle.write_bytes(b"".join(pack_entry(line) for line in lines))


def test_an_entry_of_an_unknown_type_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_journal(folder, b'"daemon_stopped"', b'"daemon_teleport"')
    said = Said(capsys, "tail")
    assert said.code == 1
    assert "daemon_teleport" in said.err


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Said(capsys, "show", "--json").json
    assert answer["size"] == 10
    assert answer["path"] == str(folder)
    assert answer["unpublished"] == 0
    assert answer["origin"] == log_keys(folder).listed.origin
    assert answer["root_hash"] == Said(capsys, "verify", "--json").json["root_hash"]
    assert answer["verifier_key"] == str(log_keys(folder).listed.current)
    signed = open_checkpoint(
        (folder / "checkpoint").read_bytes(), answer["origin"], log_keys(folder).listed.verifiers
    )
    assert (signed.checkpoint.size, signed.checkpoint.root.hex()) == (10, answer["root_hash"])
    assert "size: 10" in Said(capsys, "show").out
    entry = Said(capsys, "show", "6", "--json")
    assert entry.out.encode() == Reader(folder).line(6) + b"\n"
    assert "leaf hash" in Said(capsys, "show", "6").out
    missing = Said(capsys, "show", "10")
    assert missing.code == 1
    assert "[not_found]" in missing.err


def test_prove_an_entry(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = log_keys(folder).listed
    text = Said(capsys, "prove", "6").out
    TlogProof.parse(text.encode()).verify(Reader(folder).line(6), keys.origin, keys.verifiers)
    answer = Said(capsys, "prove", "6", "--json").json
    hashes = tuple(bytes.fromhex(item) for item in answer["hashes"])
    verify_inclusion(leaf_hash(Reader(folder).line(6)), 6, 10, hashes, bytes.fromhex(answer["root_hash"]))
    missing = Said(capsys, "prove", "10")
    assert missing.code == 1
    assert "[proof_invalid]" in missing.err


def test_prove_that_the_log_has_only_grown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes.fromhex(Said(capsys, "verify", "--json").json["root_hash"])
    with open_record(folder) as opened:
        opened.append([DaemonStopped(cause="later")] * 300)
    answer = Said(capsys, "prove", "--since", "10", "--json").json
    assert bytes.fromhex(answer["since_root"]) == before
    hashes = tuple(bytes.fromhex(item) for item in answer["hashes"])
    verify_consistency(10, before, 310, bytes.fromhex(answer["root_hash"]), hashes)
    text = Said(capsys, "prove", "--since", "10").out
    assert text.startswith("old 10\n")
    assert text.count("\n") == 1 + len(hashes) + 1 + answer["checkpoint"].count("\n")
    assert Said(capsys, "prove", "--since", "311").code == 1


def test_prove_refuses_what_a_damaged_tile_would_say(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tile = folder / Tile(0, 0, 10).path
    tile.write_bytes(bytes(320))
    said = Said(capsys, "prove", "6")
    assert said.code == 1
    assert "[proof_invalid]" in said.err


@pytest.mark.parametrize("arguments", [[], ["3", "--since", "2"]])
@pytest.mark.usefixtures("folder")
def test_prove_needs_one_thing_to_prove(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, "prove", *arguments).code == 2


def test_tail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, "tail", "-n", "3", "--json").seqs == [7, 8, 9]
    assert Said(capsys, "tail", "-n", "0", "--json").seqs == []
    assert Said(capsys, "tail", "-n", "99", "--json").seqs == list(range(10))
    assert len(Said(capsys, "tail", "--path", str(folder)).out.splitlines()) == 10


@pytest.mark.parametrize(
    ("conditions", "seqs"),
    [
        ([], list(range(10))),
        (["--reason", "expired"], [4, 5]),
        (["--reason", "NO_GRANT"], [6]),
        (["--verdict", "deny"], [5]),
        (["--verdict", "kill", "--scope", "agents"], [6]),
        (["--verdict", "kill", "--scope", "jobs"], []),
        (["--scope", "jobs"], [3, 5]),
        (["--pid", "77"], [6, 7]),
        (["--pid", "42"], [3]),
        (["--pid", "43"], [5]),
        (["--pid", "5"], [1]),
        (["--artifact", ID[:7]], [2, 4, 5]),
        (["--artifact", ID, "--type", "decision"], [5]),
        (["--type", "gap"], [8]),
        (["--since", "1h"], list(range(10))),
        (["--since", "2099-01-01"], []),
        (["--since", "2099-01-01T00:00:00Z"], []),
        (["--since", "2001-01-01T00:00:00+02:00"], list(range(10))),
    ],
)
@pytest.mark.usefixtures("folder")
def test_query(conditions: list[str], seqs: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "query", "--json", *conditions)
    assert said.code == 0
    assert said.seqs == seqs


@pytest.mark.parametrize(
    "conditions",
    [
        ["--reason", "x"],
        ["--verdict", "maybe"],
        ["--type", "x"],
        ["--since", "noon"],
        ["--since", "2026-13-01"],
        ["--since", "999999d"],
        ["--since", "1969-12-31"],
        ["--since", "0001-01-01T00:00:00+14:00"],
        ["--since", "9999-12-31T23:59:59-14:00"],
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_condition_that_makes_no_sense(conditions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "query", *conditions)
    assert said.code == 2
    assert conditions[1] in said.err


def test_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("verify", "show", "tail", "query"):
        place = [str(tmp_path / "none")] if word == "verify" else ["--path", str(tmp_path / "none")]
        said = Said(capsys, word, *place)
        assert said.code == 1
        assert "[not_found]" in said.err


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads everything; becoming somebody else needs root")
@pytest.mark.usefixtures("folder")
def test_who_may_not_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    os.seteuid(65534)
    try:
        said = Said(capsys, "tail")
    finally:
        os.seteuid(0)
    assert said.code == 1
    assert "[not_permitted]" in said.err
    assert "group" in said.err


def test_an_empty_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    folder = tmp_path / "var/lib/egs/record"
    open_record(folder).close()
    assert Said(capsys, "verify", "--json", str(folder)).json["size"] == 0
    assert Said(capsys, "show", "--json", "--path", str(folder)).json["size"] == 0
    assert Said(capsys, "tail", "--path", str(folder)).out == ""


def test_following_shows_entries_as_they_come(folder: Path) -> None:
    program = "import sys; from egs_kernel.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        program,
        "audit",
        "tail",
        "-f",
        "-n",
        "1",
        "--json",
        "--path",
        str(folder),
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower,
        open_record(folder) as opened,
    ):
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["seq"] == 9
        for number in range(10, 15):
            opened.append([DaemonStopped(cause=str(number))])
            assert json.loads(follower.stdout.readline())["seq"] == number
        follower.terminate()


@pytest.mark.usefixtures("folder")
def test_what_an_entry_holds_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "query", "--type", "exec")
    assert said.out.count("\n") == 1
    assert "\x1b" not in said.out
    assert r"\x1b[2J\n" in said.out


def test_every_type_has_a_description(folder: Path) -> None:
    shown = [describe(recorded).split(" ", 3) for recorded in read(folder)]
    assert [fields[2] for fields in shown] == [entry.__struct_config__.tag for entry in ENTRIES]
    assert all(fields[3] for fields in shown)
    assert "SIGKILL" in shown[7][3]


@pytest.mark.parametrize(
    ("file", "name", "enforced", "said"),
    [
        (None, "", True, "DENY code_untrusted agents: pid 77 execution 5: memory of no file"),
        (
            FILE,
            "x\x1b.so",
            False,
            r"DENY code_untrusted (observe mode: not enforced) agents: pid 77 execution 5: x\x1b.so (inode 2)",
        ),
    ],
)
def test_refused_code_is_described(file: FileIdentity | None, name: str, enforced: bool, said: str) -> None:  # noqa: FBT001 - a parameter of the test
    event = CodeEvent(
        reason=Reason.CODE_UNTRUSTED,
        enforced=enforced,
        scope="agents",
        time=2,
        execution=5,
        pid=77,
        file=file,
        name=name,
    )
    assert describe(Recorded(7, "T", Code(event=event), "")) == f"7 T code {said}"
