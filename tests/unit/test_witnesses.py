"""This host's log and its witnesses: cosigned, rolled back, forked, unreachable; over real HTTP, and the daemon's socket."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from egs_kernel.audit.checkpoint import open_checkpoint, with_signatures
from egs_kernel.audit.entries import LogKeyChange, WitnessAlarm
from egs_kernel.audit.logkeys import LogKeys, read_keys
from egs_kernel.audit.notes import KeyType, Signature
from egs_kernel.audit.published import Published
from egs_kernel.audit.witnesses import Divergence, OwnLog, Witness, compare, witnesses_of
from egs_kernel.cli.main import run
from egs_kernel.cli.submit import Round
from egs_kernel.config import Config, RecordConfig, WitnessConfig
from egs_kernel.daemon import protocol
from egs_kernel.daemon.control import Control
from egs_kernel.daemon.server import Server
from egs_kernel.daemon.witnesses import Witnesses
from egs_kernel.errors import EgsError, NoteError, UsageError
from egs_kernel.model import Reason
from egs_kernel.paths import Paths
from egs_kernel.witness.submit import Submitter
from tests.unit.consoles import READERS
from tests.unit.test_witness import CONFIG
from tests.unit.trees import Tree, publish, signer
from tests.witnessing import NOBODY, serving, verifier, witness_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.notes import VerifierKey

W1 = signer("w.example.com/1", 31, KeyType.COSIGNATURE)
W2 = signer("w.example.com/2", 32, KeyType.COSIGNATURE)


@pytest.fixture
def tree() -> Tree:
    found = Tree()
    found.grow(300)
    return found


def fork_of(tree: Tree, size: int) -> Tree:
    fork = Tree(tree.origin, tree.entries[: size - 1])
    fork.grow(len(tree.entries) - size + 1, "another")
    return fork


def cosigned(tree: Tree, size: int, *witnesses: Any, now: int = 1_800_000_000) -> bytes:
    text = tree.checkpoint(size).text
    return with_signatures(tree.signed(size), [witness.cosign(text, now) for witness in witnesses])


# -- what a cosigned checkpoint says -----------------------------------------------------------------


def own(folder: Path, tree: Tree) -> OwnLog:
    files = Published(folder)
    return OwnLog(tree.origin, (tree.key.key,), len(tree.entries), files.checkpoint(), files.tile)


def test_a_cosigned_checkpoint_is_compared_with_the_record(tmp_path: Path, tree: Tree) -> None:
    publish(tmp_path, tree)
    log = own(tmp_path, tree)
    for size in (0, 1, 255, 256, 257, 300):
        signed, divergence = compare(cosigned(tree, size, W1), log, W1.key)
        assert (signed.checkpoint.size, divergence) == (size, None)
    assert compare(cosigned(fork_of(tree, 200), 200, W1), log, W1.key)[1] is Divergence.FORKED
    assert compare(cosigned(fork_of(tree, 201), 200, W1), log, W1.key)[1] is None  # it parts after that
    longer = Tree(tree.origin, list(tree.entries))
    longer.grow(1)
    assert compare(cosigned(longer, 301, W1), log, W1.key)[1] is Divergence.ROLLED_BACK


def test_what_the_log_or_the_witness_did_not_sign_says_nothing(tmp_path: Path, tree: Tree) -> None:
    publish(tmp_path, tree)
    log = own(tmp_path, tree)
    thief = Tree(tree.origin, tree.entries[:9], seed=9)
    for content in (cosigned(thief, 9, W1), tree.signed(9), cosigned(tree, 9, W2), b"x"):
        with pytest.raises(NoteError):
            compare(content, log, W1.key)


@pytest.mark.parametrize("key", ["", "x", str(Tree().key.key)])
def test_a_witness_is_configured_by_a_key_that_cosigns(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        witnesses_of([WitnessConfig(url="http://w", key=key)])
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert witnesses_of([WitnessConfig(url="http://w/", key=str(W1.key))]) == (Witness("http://w", W1.key),)


# -- what the daemon does with it --------------------------------------------------------------------


@dataclass
class Recorder:
    """What is asked of the journal: a size, and appends."""

    size: int
    entries: list[Entry] = field(default_factory=list)

    async def append(self, *entries: Entry) -> None:
        self.entries += entries


class Daemon:
    """The part of the daemon that deals with witnesses, on an instance's folder."""

    def __init__(self, root: Path, keys: Any, size: int, *witnesses: Witness) -> None:
        self.paths = Paths.under(str(root))
        self.paths.record.mkdir(parents=True, exist_ok=True)
        self.journal = Recorder(size)
        self.now = 1_800_000_010.0
        config = Config(record=RecordConfig(witness_interval="1m"))
        self.host = SimpleNamespace(settings=SimpleNamespace(config=config, witnesses=witnesses))
        self.keys = keys
        self.witnesses = self.start()

    def start(self) -> Witnesses:
        return Witnesses(
            self.paths,
            host=cast("Any", self.host),
            journal=cast("Any", self.journal),
            keys=self.keys,
            clock=lambda: self.now,
        )

    def control(self) -> Control:
        """It asks nothing of its other parts here."""
        _self, _paths, *names = inspect.signature(Control.__init__).parameters
        parts: dict[str, Any] = dict.fromkeys(names)
        own = {"host": self.host, "journal": self.journal, "keys": self.keys, "witnesses": self.witnesses}
        return Control(self.paths, **(parts | own))

    def take(self, checkpoint: bytes | None, key: VerifierKey = W1.key, **said: Any) -> str:
        request = protocol.WitnessRequest(witness=str(key), checkpoint=checkpoint, **said)
        return asyncio.run(self.witnesses.take(request)).message


def keys_of(tree: Tree) -> Any:
    """The log's keys, as the tree has them."""
    return SimpleNamespace(listed=SimpleNamespace(origin=tree.origin, verifiers=(tree.key.key,)))


@pytest.fixture
def daemon(tmp_path: Path, tree: Tree) -> Daemon:
    found = Daemon(tmp_path, keys_of(tree), 300, Witness("http://1", W1.key), Witness("http://2", W2.key))
    publish(found.paths.record, tree)
    return found


def kept(daemon: Daemon, tree: Tree) -> tuple[int, set[str]]:
    content = daemon.paths.cosigned.read_bytes()
    found = open_checkpoint(content, tree.origin, [tree.key.key], [W1.key, W2.key])
    return found.checkpoint.size, {key.name for key in found.witnesses}


def test_cosignatures_are_kept_and_added_up(daemon: Daemon, tree: Tree) -> None:
    assert daemon.take(cosigned(tree, 100, W1)) == "cosigned at 100 entries"
    assert kept(daemon, tree) == (100, {W1.key.name})
    daemon.take(cosigned(tree, 100, W2), W2.key)
    assert kept(daemon, tree) == (100, {W1.key.name, W2.key.name})
    daemon.take(cosigned(tree, 100, W1, now=1_800_000_005))
    assert kept(daemon, tree) == (100, {W1.key.name, W2.key.name})
    daemon.take(cosigned(tree, 250, W2), W2.key)
    assert kept(daemon, tree) == (250, {W2.key.name})
    daemon.take(cosigned(tree, 200, W1))  # late: the newer one stays
    assert kept(daemon, tree) == (250, {W2.key.name})
    assert daemon.paths.cosigned.stat().st_mode & 0o777 == 0o640
    assert daemon.journal.entries == []
    first, second = daemon.witnesses.states()
    assert (first.size, second.size, first.cosigned) == (200, 250, 1_800_000_000)
    assert (first.problem, first.diverged) == ("", False)
    # A restart knows what is kept.
    assert [state.size for state in daemon.start().states()] == [0, 250]


def test_a_record_that_was_rolled_back_or_forked_is_an_alarm(daemon: Daemon, tree: Tree) -> None:
    evidence = cosigned(fork_of(tree, 200), 200, W1)
    assert "forked" in daemon.take(evidence, problem="it answers 422", refused=True)
    longer = Tree(tree.origin, list(tree.entries))
    longer.grow(9)
    more = cosigned(longer, 309, W2)
    assert "rolled_back" in daemon.take(more, W2.key, problem="409", refused=True)
    for _ in range(2):  # said once, however often it is handed in
        daemon.take(evidence, problem="it answers 422", refused=True)
    alarms = [entry for entry in daemon.journal.entries if isinstance(entry, WitnessAlarm)]
    assert [(a.problem, a.cosigned, a.entries) for a in alarms] == [
        ("forked", 200, 300),
        ("rolled_back", 309, 300),
    ]
    assert alarms[0].checkpoint == evidence.decode()
    assert [state.diverged for state in daemon.witnesses.states()] == [True, True]
    assert any("FORKED" in problem for problem in daemon.witnesses.problems())
    assert any("ROLLED BACK" in problem for problem in daemon.witnesses.problems())
    assert not daemon.paths.cosigned.exists()
    # It ends with a cosignature of what the record is.
    daemon.take(cosigned(tree, 300, W1))
    assert [state.diverged for state in daemon.witnesses.states()] == [False, True]


def test_evidence_is_recorded_without_what_was_added_to_it(daemon: Daemon, tree: Tree) -> None:
    """An entry of the record is small; a note can be made large by anybody."""
    evidence = cosigned(fork_of(tree, 200), 200, W1)
    strangers = [Signature(f"stranger-{number}", b"1234", bytes(9000)) for number in range(30)]
    daemon.take(with_signatures(evidence, strangers), problem="it answers 422", refused=True)
    (alarm,) = daemon.journal.entries
    assert isinstance(alarm, WitnessAlarm)
    assert alarm.checkpoint == evidence.decode()


def test_a_witness_that_refuses_and_shows_nothing_is_an_alarm_too(daemon: Daemon) -> None:
    daemon.take(None, problem="it answers 422", refused=True)
    (alarm,) = daemon.journal.entries
    assert isinstance(alarm, WitnessAlarm)
    assert (alarm.problem, alarm.cosigned, alarm.checkpoint) == ("refused", None, None)


def test_what_is_not_signed_is_not_believed(daemon: Daemon, tree: Tree) -> None:
    thief = Tree(tree.origin, tree.entries[:9], seed=9)
    for content in (cosigned(thief, 9, W1), tree.signed(9), b"x", cosigned(tree, 9, W2)):
        with pytest.raises(NoteError):
            daemon.take(content, refused=True)
    with pytest.raises(EgsError) as caught:
        daemon.take(cosigned(tree, 9, W1), signer("w.example.com/3", 33, KeyType.COSIGNATURE).key)
    assert caught.value.reason is Reason.NOT_FOUND
    assert daemon.journal.entries == []
    assert not daemon.paths.cosigned.exists()


def test_a_witness_that_is_silent_is_a_problem_after_a_while(daemon: Daemon, tree: Tree) -> None:
    assert daemon.witnesses.problems() == ()
    daemon.take(None, problem="connection refused")
    assert daemon.witnesses.problems() == (f"witness {W1.key.name}: connection refused",)
    daemon.now += 301
    assert any(W2.key.name in problem and "301 s" in problem for problem in daemon.witnesses.problems())
    daemon.take(cosigned(tree, 300, W1, W2, now=int(daemon.now)))
    assert len(daemon.witnesses.problems()) == 1
    daemon.take(cosigned(tree, 300, W1, W2, now=int(daemon.now)), W2.key)
    assert daemon.witnesses.problems() == ()


def test_a_damaged_cosigned_checkpoint_is_replaced(daemon: Daemon, tree: Tree) -> None:
    daemon.paths.cosigned.write_bytes(b"damaged")
    daemon.paths.cosigned.chmod(0o640)
    daemon.take(cosigned(tree, 100, W1))
    assert kept(daemon, tree) == (100, {W1.key.name})


# -- all of it ---------------------------------------------------------------------------------------


@contextmanager
def listening(daemon: Daemon) -> Iterator[None]:
    """The daemon's socket, with what is behind it."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        daemon.witnesses = daemon.start()
        server = Server(daemon.paths.socket, daemon.control().serve)
        server.start()
        ready.set()
        await done.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


@pytest.fixture
def home() -> Iterator[Path]:
    with witness_home(CONFIG) as found:
        yield found


def test_a_log_is_cosigned_and_its_rollback_and_fork_are_found(home: Path, tmp_path: Path) -> None:
    tree = Tree()
    tree.grow(300)
    key = verifier(home)
    with serving(home) as address:
        witness = Witness(f"http://{address[0]}:{address[1]}", key)
        daemon = Daemon(tmp_path, keys_of(tree), 300, witness)
        daemon.paths.run_dir.mkdir(parents=True)
        publish(daemon.paths.record, tree)
        with listening(daemon):
            submissions = Round(daemon.paths, [witness])
            assert submissions.submit() == [(f"{key.name}: cosigned at 300 entries", True)]
            tree.grow(400)
            daemon.journal.size = 700
            publish(daemon.paths.record, tree, 300)
            assert submissions.submit() == [(f"{key.name}: cosigned at 700 entries", True)]
            assert submissions.submit() == [(f"{key.name}: cosigned at 700 entries", True)]
            # Another submitter, which knows nothing of before.
            assert Round(daemon.paths, [witness]).submit()[0][1]
            found = open_checkpoint(daemon.paths.cosigned.read_bytes(), tree.origin, [tree.key.key], [key])
            assert (found.checkpoint.size, set(found.witnesses)) == (700, {key})
            assert daemon.journal.entries == []

            # Set back to the state of before, and gone on from there another way.
            back = Tree(tree.origin, tree.entries[:500])
            daemon.journal.size = 500
            publish(daemon.paths.record, back)
            ((words, good),) = submissions.submit()
            assert not good
            assert "700" in words
            assert "rolled_back" in words
            back.grow(300, "another")
            daemon.journal.size = 800
            publish(daemon.paths.record, back)
            ((words, good),) = submissions.submit()
            assert not good
            assert "forked" in words
        alarms = [entry for entry in daemon.journal.entries if isinstance(entry, WitnessAlarm)]
        assert [alarm.problem for alarm in alarms] == ["rolled_back", "forked"]
        assert daemon.witnesses.states()[0].diverged
    with listening(daemon):
        ((words, good),) = submissions.submit()
        assert not good
        assert "refused" in words
    assert "the daemon: " in submissions.submit()[0][0]


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect(sys.argv[1])
    daemon.sendall(bytes.fromhex(sys.argv[2]))
    print(daemon.recv(65536)[4:].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="other users take root")
def test_only_who_may_read_the_record_speaks_for_a_witness(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        daemon = Daemon(Path(name), keys_of(tree), 300, Witness("http://1", W1.key))
        daemon.paths.run_dir.mkdir(parents=True)
        publish(daemon.paths.record, tree)
        os.chown(daemon.paths.record, 0, READERS)
        request = protocol.encode(
            protocol.WitnessRequest(witness=str(W1.key), checkpoint=cosigned(tree, 300, W1))
        )
        command = ["/usr/bin/python3", "-c", ASK, str(daemon.paths.socket), request.hex()]
        with listening(daemon):
            for groups, answer in (([], "not_permitted"), ([READERS], "cosigned at 300 entries")):
                done = subprocess.run(
                    command,
                    user=NOBODY,
                    group=NOBODY,
                    extra_groups=groups,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                assert answer in done.stdout
            # What is root's stays root's.
            rotate = protocol.encode(protocol.RotateLogKeyRequest(overlap=0)).hex()
            done = subprocess.run(
                [*command[:-1], rotate],
                user=NOBODY,
                group=NOBODY,
                extra_groups=[READERS],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "not_permitted" in done.stdout


def test_answers_that_are_none(tmp_path: Path, tree: Tree) -> None:
    import http.server  # noqa: PLC0415 - for this alone

    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, content = answers["now"]
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    publish(tmp_path, tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            submitter = Submitter(
                Witness(f"http://127.0.0.1:{server.server_port}", W1.key), Published(tmp_path)
            )
            for status, content in (
                (200, b""),
                (200, b"hello\n"),
                (200, b"\xff\n"),
                (302, b""),
                (403, b"no"),
                (409, b"soon\n"),
                (409, b"-1\n"),
                (409, b"7\n"),
                (500, b"x" * 10_000),
            ):
                answers["now"] = (status, content)
                outcome = submitter.submit(tree.signed())
                assert outcome.problem, (status, content)
                assert len(outcome.problem) < 400
                assert "Reason." not in outcome.problem
                assert outcome.checkpoint is None
                assert not outcome.refused
            answers["now"] = (409, b"301\n")
            outcome = submitter.submit(tree.signed())
            assert (outcome.checkpoint, outcome.refused) == (None, True)
            answers["now"] = (422, b"no")
            assert submitter.submit(tree.signed()).refused
        finally:
            server.shutdown()


# -- the log's key -----------------------------------------------------------------------------------


def test_a_key_is_shown_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EGS_ROOT", str(tmp_path))
    paths = Paths.under(str(tmp_path))
    assert run(["audit", "key", "show"]) == 1
    keys = LogKeys.open(paths.log_keys, Tree().origin, lambda: 1_800_000_000)
    old = keys.listed.current
    daemon = Daemon(tmp_path, keys, 4711)
    paths.run_dir.mkdir(parents=True)
    with listening(daemon):
        assert run(["audit", "key", "rotate", "--overlap", "1d"]) == 0
        assert run(["audit", "key", "rotate", "--overlap", "soon"]) == 2
    found = read_keys(paths.log_keys)
    assert [(key.since, key.until) for key in found.keys] == [(0, 1_800_086_400), (4711, None)]
    (entry,) = daemon.journal.entries
    assert isinstance(entry, LogKeyChange)
    assert (entry.previous, entry.key) == (str(old), str(found.current))
    capsys.readouterr()
    assert run(["audit", "key", "show"]) == 0
    out = capsys.readouterr().out
    assert f"origin: {Tree().origin}" in out
    assert f"verifier key: {old} (from 0 entries on, until 2027-01-16T08:00:00Z)" in out
    assert f"verifier key: {found.current} (from 4711 entries on)" in out
    assert run(["audit", "key", "show", "--json"]) == 0
    assert str(found.current) in capsys.readouterr().out
    assert run(["audit", "key", "rotate"]) == 4
