"""The witness: what it cosigns and what not, over real HTTP, and that it forgets nothing."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.checkpoint import Checkpoint, open_checkpoint, with_signatures
from egs_kernel.audit.merkle import EMPTY_ROOT
from egs_kernel.audit.notes import KeyType, Note, open_note
from egs_kernel.errors import EgsError, NoteError, UsageError
from egs_kernel.model import Reason
from egs_kernel.witness.judge import NotCosigned
from egs_kernel.witness.settings import parse_settings
from egs_kernel.witness.state import PRIVATE_KEY, State, opened, origin_hash
from egs_kernel.witness.submission import (
    MAX_PROOF,
    MAX_SUBMISSION,
    SIZE_TYPE,
    Submission,
    encode_lines,
    parse_lines,
)
from tests.unit.trees import Tree, signer
from tests.witnessing import command, serving, verifier, witness_home

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "witness.example.com/w1"
NOW: Final = 1_800_000_000


@pytest.fixture
def tree() -> Tree:
    found = Tree()
    found.grow(10)
    return found


@contextmanager
def state(folder: Path, *trees: Tree) -> Iterator[State]:
    folder.mkdir(exist_ok=True, mode=0o700)
    with opened(folder, NAME, {tree.origin: (tree.key.key,) for tree in trees}, lambda: NOW) as found:
        yield found


def submission(tree: Tree, old: int, size: int | None = None) -> Submission:
    return Submission(old, tree.proof(old, size), tree.signed(size))


def refusal(witness: State, asked: Submission) -> NotCosigned:
    with pytest.raises(NotCosigned) as caught:
        witness.add(asked)
    return caught.value


# -- the protocol ------------------------------------------------------------------------------------

# tlog-witness.md, "add-checkpoint".
EXAMPLE = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
""".encode()


def test_the_specification_s_request() -> None:
    found = Submission.parse(EXAMPLE)
    assert (found.old, len(found.proof)) == (20852014, 4)
    assert Checkpoint.parse(Note.parse(found.checkpoint).text).size == 20852163
    assert found.encode() == EXAMPLE


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=MAX_PROOF))
def test_a_request_is_what_it_was_written_as(old: int, proof: list[bytes]) -> None:
    asked = Submission(old, tuple(proof), Tree().signed())
    assert Submission.parse(asked.encode()) == asked


@given(st.binary() | st.permutations(EXAMPLE.split(b"\n")).map(b"\n".join))
def test_whatever_is_parsed_has_one_form(content: bytes) -> None:
    with suppress(NoteError):
        assert Submission.parse(content).encode() == content
    with suppress(NoteError):
        assert encode_lines(parse_lines(content)) == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"old 1\n",
        EXAMPLE.replace(b"old ", b"new "),
        EXAMPLE.replace(b"old ", b"old  "),
        EXAMPLE.replace(b"old 2", b"old 02"),
        EXAMPLE.replace(b"old 20852014", b"old -1"),
        EXAMPLE.replace(b"kaw=", b"kaw"),
        EXAMPLE.replace(b"PlRN", b""),
        EXAMPLE.replace(b"kaw=\n", b"kaw=\r\n"),
        b"old 1\n" + b"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n" * (MAX_PROOF + 1) + b"\nx",
        "öld 1\n\nx".encode(),
    ],
)
def test_what_is_no_request(content: bytes) -> None:
    assert content != EXAMPLE
    with pytest.raises(NoteError) as caught:
        Submission.parse(content)
    assert caught.value.reason is Reason.NOTE_MALFORMED


def test_answers_are_signature_lines() -> None:
    line = signer(NAME, 9, KeyType.COSIGNATURE).cosign("text\n", 1)
    assert parse_lines(encode_lines([line, line])) == (line, line)
    for content in (b"", b"\n", b"\xff\n", encode_lines([line])[:-1], encode_lines([line]) + b"\n"):
        with pytest.raises(NoteError):
            parse_lines(content)


# -- what is cosigned --------------------------------------------------------------------------------


def test_it_cosigns_what_continues(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        first = witness.add(submission(tree, 0, 3))
        second = witness.add(submission(tree, 3, 10))
        again = witness.add(submission(tree, 10, 10))
        assert witness.published(origin_hash(tree.origin)) is not None
        for line, size in ((first, 3), (second, 10), (again, 10)):
            signed = with_signatures(tree.signed(size), [line])
            opened_note = open_checkpoint(signed, tree.origin, [tree.key.key], [witness.key])
            assert [item.timestamp for item in opened_note.cosignatures] == [NOW]


def test_an_empty_log_is_cosigned_as_such(tmp_path: Path) -> None:
    tree = Tree()
    with state(tmp_path / "w", tree) as witness:
        witness.add(submission(tree, 0))
        wrong = Submission(0, (), Checkpoint(tree.origin, 0, bytes(32)).sign(tree.key))
        assert refusal(witness, wrong).status == 422
        tree.grow(2)
        witness.add(submission(tree, 0))
    assert Checkpoint(tree.origin, 0, EMPTY_ROOT) == Tree().checkpoint()


def test_unknown_logs_and_keys(tree: Tree, tmp_path: Path) -> None:
    other = Tree("example.com/other", list(tree.entries))
    thief = Tree(tree.origin, list(tree.entries), seed=7)
    with state(tmp_path / "w", tree) as witness:
        assert refusal(witness, submission(other, 0)).status == 404
        assert refusal(witness, submission(thief, 0)).status == 403
        changed = tree.signed().replace(b"\n10\n", b"\n11\n")
        assert refusal(witness, Submission(0, (), changed)).status == 403
        assert refusal(witness, Submission(0, (), b"no note")).status == 400
        assert witness.published(origin_hash(tree.origin)) is None
        # Signatures that it does not know are no reason to refuse.
        more = with_signatures(tree.signed(), [thief.key.sign(tree.checkpoint().text)])
        witness.add(Submission(0, (), more))


def test_the_old_size_must_be_the_latest(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        witness.add(submission(tree, 0, 5))
        for old in (0, 4, 6):
            found = refusal(witness, submission(tree, old, 10))
            assert (found.status, found.latest) == (409, 5)
        # A log that was rolled back has nothing to offer: its size is behind.
        found = refusal(witness, submission(tree, 0, 4))
        assert (found.status, found.latest) == (409, 5)
        assert refusal(witness, Submission(5, (), tree.signed(4))).status == 400


def test_a_fork_is_not_cosigned(tree: Tree, tmp_path: Path) -> None:
    fork = Tree(tree.origin, tree.entries[:4])
    fork.grow(6, "another")
    with state(tmp_path / "w", tree) as witness:
        witness.add(submission(tree, 0, 5))
        found = refusal(witness, submission(fork, 5, 10))
        assert (found.status, found.shows_a_fork) == (422, True)
        assert (
            refusal(witness, Submission(5, (), fork.signed(5))).status == 422
        )  # another tree of the same size
        assert refusal(witness, Submission(5, (), tree.signed(10))).status == 422  # no proof
        assert refusal(witness, Submission(5, tree.proof(4, 10), tree.signed(10))).status == 422
        assert refusal(witness, Submission(5, (*tree.proof(5, 10), bytes(32)), tree.signed(10))).status == 422
        witness.add(submission(tree, 5, 10))
        published = witness.published(origin_hash(tree.origin))
        assert published is not None
        assert open_checkpoint(published, tree.origin, [tree.key.key], [witness.key]).checkpoint.size == 10


def test_a_proof_from_nothing_must_be_empty(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        assert refusal(witness, Submission(0, tree.proof(3), tree.signed())).status == 422


def test_it_remembers(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        key = witness.key
        witness.add(submission(tree, 0, 5))
    with state(tmp_path / "w", tree) as witness:
        assert witness.key == key
        assert refusal(witness, submission(tree, 0)).latest == 5
        witness.add(submission(tree, 5))


def test_what_cannot_be_kept_is_not_cosigned(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        witness.add(submission(tree, 0, 5))
        blocked = tmp_path / "w" / f"{origin_hash(tree.origin)}.checkpoint.new"
        blocked.mkdir()  # nothing can be written there
        with pytest.raises(EgsError) as caught:
            witness.add(submission(tree, 5))
        assert caught.value.reason is Reason.RECORD_UNAVAILABLE
        blocked.rmdir()
        assert refusal(witness, submission(tree, 0)).latest == 5
        witness.add(submission(tree, 5))


def test_a_memory_that_was_changed_is_refused(tree: Tree, tmp_path: Path) -> None:
    with state(tmp_path / "w", tree) as witness:
        witness.add(submission(tree, 0, 5))
    path = tmp_path / "w" / f"{origin_hash(tree.origin)}.checkpoint"
    content = path.read_bytes()
    for wrong in (b"", content.replace(b"\n5\n", b"\n4\n"), tree.signed(5)):
        path.write_bytes(wrong)
        with pytest.raises(EgsError) as caught, state(tmp_path / "w", tree):
            pass
        assert caught.value.reason is Reason.CONFIG_INVALID
    path.write_bytes(content)
    (tmp_path / "w" / PRIVATE_KEY).unlink()
    with pytest.raises(EgsError) as caught, state(tmp_path / "w", tree):
        pass
    assert caught.value.reason is Reason.NOT_FOUND


def test_one_witness_has_one_folder(tree: Tree, tmp_path: Path) -> None:
    with (
        state(tmp_path / "w", tree),
        pytest.raises(EgsError) as caught,
        state(tmp_path / "w", tree),
    ):
        pass
    assert caught.value.reason is Reason.DAEMON_RUNNING


def test_of_two_at_once_one_is_cosigned(tree: Tree, tmp_path: Path) -> None:
    """Checking the latest and replacing it are one step, or a slower thread would set it back."""
    done: list[int] = []
    with state(tmp_path / "w", tree) as witness:

        def ask(size: int) -> None:
            with suppress(NotCosigned):
                witness.add(submission(tree, 0, size))
                done.append(size)

        threads = [threading.Thread(target=ask, args=(size,)) for size in range(1, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 1
        assert refusal(witness, submission(tree, 10)).latest == done[0]


# -- its configuration -------------------------------------------------------------------------------

CONFIG = f"""
name = "{NAME}"
listen = "127.0.0.1:0"

[[log]]
origin = "{Tree().origin}"
keys = ["{Tree().key.key}"]
"""


def test_the_configuration() -> None:
    found = parse_settings(CONFIG.encode(), Path("witness.toml"))
    assert found.name == NAME
    assert found.logs == {Tree().origin: (Tree().key.key,)}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "name"),
        ("\xff", "witness.toml"),
        pytest.param("more = " + "9" * 5000, "digits", id="a number of 5000 digits"),
        pytest.param("more = " + "[" * 5000, "recursion", id="5000 lists in each other"),
        ('name = "two words"', "spaces"),
        (CONFIG + "colour = 1", "colour"),
        (CONFIG.replace("127.0.0.1:0", "localhost"), "listen"),
        (CONFIG.replace("127.0.0.1:0", "w.example.com:1"), "listen"),
        (CONFIG + CONFIG[CONFIG.index("[[log]]") :], "once"),
        (CONFIG.replace(str(Tree().key.key), ""), "verifier key"),
        (CONFIG.replace(str(Tree().key.key), str(signer("w", 3, KeyType.COSIGNATURE).key)), "of a witness"),
        ('name = "w"\n[[log]]\norigin = "o"\nkeys = []', "at least one key"),
    ],
)
def test_what_it_does_not_understand(content: str, named: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + named) as caught:
        parse_settings(content.encode("latin-1"), Path("witness.toml"))
    assert caught.value.next_step


# -- over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    with witness_home(CONFIG) as found:
        yield found


def ask(address: tuple[str, int], method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_a_witness_over_http_that_is_killed_and_comes_back(home: Path, tree: Tree) -> None:
    key = verifier(home)
    assert (key.name, key.type) == (NAME, KeyType.COSIGNATURE)
    assert ((home / "state" / PRIVATE_KEY).stat().st_mode & 0o777) == 0o600
    mine = f"/{hashlib.sha256(tree.origin.encode()).hexdigest()}/checkpoint"
    with serving(home) as address:
        assert ask(address, "GET", mine)[0] == 404
        status, _, body = ask(address, "POST", "/add-checkpoint", submission(tree, 0, 5).encode())
        assert status == 200
        note = tree.signed(5) + body  # as tlog-witness has it: the answer after the checkpoint is a note
        assert {item.key for item in open_note(note, [key, tree.key.key])[1]} == {key, tree.key.key}
        status, kind, body = ask(address, "GET", mine)
        assert (status, kind) == (200, "text/plain; charset=utf-8")
        assert open_checkpoint(body, tree.origin, [tree.key.key], [key]).witnesses == {key}
    with serving(home) as address:
        fork = Tree(tree.origin, tree.entries[:4])
        fork.grow(6, "another")
        back = submission(tree, 0, 4).encode()
        assert ask(address, "POST", "/add-checkpoint", back) == (409, SIZE_TYPE, b"5\n")
        assert ask(address, "POST", "/add-checkpoint", submission(fork, 5).encode())[0] == 422
        assert ask(address, "POST", "/add-checkpoint", submission(tree, 5).encode())[0] == 200


def test_what_else_is_asked_over_http(home: Path, tree: Tree) -> None:
    with serving(home) as address:
        other = Tree("example.com/other", list(tree.entries))
        assert ask(address, "POST", "/add-checkpoint", submission(other, 0).encode())[0] == 404
        thief = Tree(tree.origin, list(tree.entries), seed=7)
        assert ask(address, "POST", "/add-checkpoint", submission(thief, 0).encode())[0] == 403
        assert ask(address, "POST", "/add-checkpoint", b"")[0] == 400
        assert ask(address, "POST", "/add-checkpoint", b"\xff" * 100)[0] == 400
        assert ask(address, "POST", "/add-checkpoint", b"x" * (MAX_SUBMISSION + 1))[0] == 413
        assert ask(address, "GET", "/add-checkpoint")[0] == 405
        assert ask(address, "GET", "/../witness.key/checkpoint")[0] == 404
        assert ask(address, "GET", "/%2e%2e/checkpoint")[0] == 404
        assert ask(address, "POST", "/add-checkpoint", submission(tree, 0).encode())[0] == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_is_refused(home: Path) -> None:
    code = "import sys; from egs_kernel.cli.main import run; sys.exit(run(sys.argv[1:]))"
    arguments = command(home, "serve")[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, "witness", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "does not run as root" in done.stderr
