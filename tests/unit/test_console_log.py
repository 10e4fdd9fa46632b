"""The log over HTTP, as an unprivileged console serves it; and the Go project's own client, which verifies it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from msgspec.structs import replace

from egs_kernel.audit.checkpoint import open_checkpoint, with_signatures
from egs_kernel.audit.notes import KeyType
from egs_kernel.paths import Paths
from tests.unit import proving
from tests.unit.consoles import READERS, ask, serving
from tests.unit.trees import Tree, publish, signer

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT: Final = Path(__file__).parents[1] / "foreign/tlogclient"
SIZE: Final = 600
OPTIONS: Final = ("--listen", "127.0.0.1:0", "--entries")
ME: Final = os.geteuid()
GROUPS: Final = (READERS,) if ME == 0 else ()


@pytest.fixture
def tree() -> Tree:
    found = Tree()
    found.grow(SIZE)
    return found


@pytest.fixture
def root(tree: Tree) -> Iterator[Path]:
    """An instance whose record a group may read, and nobody else."""
    with tempfile.TemporaryDirectory() as name:
        instance = Path(name)
        instance.chmod(0o755)
        record = Paths.under(name).record
        record.mkdir(parents=True)
        publish(record, tree)
        restrict(record)
        yield instance


def restrict(record: Path) -> None:
    for path in (record, *record.rglob("*")):
        path.chmod(0o750 if path.is_dir() else 0o640)
        if ME == 0:
            os.chown(path, 0, READERS)


def test_checkpoint_tiles_and_entries(root: Path, tree: Tree) -> None:
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        status, headers, body = ask(address, "/log/checkpoint")
        assert (status, body) == (200, tree.signed())
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache"
        for path in ("tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/000"):
            status, headers, body = ask(address, f"/log/{path}")
            assert (status, body) == (200, (Paths.under(str(root)).record / path).read_bytes()), path
            assert headers["Content-Type"] == "application/octet-stream"
            assert "immutable" in headers["Cache-Control"]
            assert headers["X-Content-Type-Options"] == "nosniff"
        plain = (Paths.under(str(root)).record / "tile/entries/000").read_bytes()
        status, headers, body = ask(address, "/log/tile/entries/000", headers={"Accept-Encoding": "gzip"})
        assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (200, "gzip", plain)
        assert headers["Vary"] == "Accept-Encoding"
        status, headers, body = ask(address, "/log/tile/0/000", method="HEAD")
        assert (status, headers["Content-Length"], body) == (200, "8192", b"")


def test_a_partial_tile_of_before_is_cut_from_what_took_its_place(root: Path, tree: Tree) -> None:
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        for path, whole in (("tile/0/000.p/7", "tile/0/000"), ("tile/0/002.p/5", "tile/0/002.p/88")):
            status, _, body = ask(address, f"/log/{path}")
            expected = (Paths.under(str(root)).record / whole).read_bytes()[: int(path.split("/")[-1]) * 32]
            assert (status, body) == (200, expected)
        early = Tree(tree.origin, tree.entries[:3])
        status, _, body = ask(address, "/log/tile/entries/000.p/3")
        assert status == 200
        assert body == b"".join(len(entry).to_bytes(2) + entry for entry in early.entries)
        # What there is not yet is not made up.
        assert ask(address, "/log/tile/0/002.p/89")[0] == 404
        assert ask(address, "/log/tile/0/002")[0] == 404
        assert ask(address, "/log/tile/0/003.p/1")[0] == 404


def test_a_fresh_cosigned_checkpoint_is_the_one_that_is_shown(root: Path, tree: Tree) -> None:
    cosigned = Paths.under(str(root)).cosigned
    witness = signer("w.example.com/1", 3, KeyType.COSIGNATURE)
    line = witness.cosign(tree.checkpoint(550).text, 1_800_000_000)
    cosigned.write_bytes(with_signatures(tree.signed(550), [line]))
    cosigned.chmod(0o640)
    if ME == 0:
        os.chown(cosigned, 0, READERS)
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        body = ask(address, "/log/checkpoint")[2]
        found = open_checkpoint(body, tree.origin, [tree.key.key], [witness.key])
        assert (found.checkpoint.size, set(found.witnesses)) == (550, {witness.key})
        assert ask(address, "/log/tile/0/002.p/38")[0] == 200  # the tree of 550 entries can still be proven
        old = time.time() - 601
        os.utime(cosigned, (old, old))
        assert ask(address, "/log/checkpoint")[2] == tree.signed()


def test_entries_are_shown_only_where_that_is_wanted(root: Path) -> None:
    with serving(root, "--listen", "127.0.0.1:0", groups=GROUPS) as address:
        assert ask(address, "/log/checkpoint")[0] == 200
        assert ask(address, "/log/tile/0/000")[0] == 200
        status, _, body = ask(address, "/log/tile/entries/000")
        assert status == 403
        assert b"console.entries" in body
    (root / "etc/egs").mkdir(parents=True)
    (root / "etc/egs/egs.toml").write_text('[console]\nlisten = "127.0.0.1:0"\nentries = true\n')
    with serving(root, "--stale-after", "1m", groups=GROUPS) as address:
        assert ask(address, "/log/tile/entries/000")[0] == 200


@pytest.mark.skipif(ME != 0, reason="another user takes root")
def test_who_is_not_in_the_record_s_group_reads_nothing(root: Path) -> None:
    with serving(root, *OPTIONS) as address:
        for path in ("checkpoint", "tile/0/000", "tile/entries/000"):
            status, _, body = ask(address, f"/log/{path}")
            assert status == 403
            assert b"its group" in body


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint/",
        "Checkpoint",
        "checkpoint.new",
        "journal",
        "tile",
        "tile/0",
        "tile/0/000/",
        "tile/0/0",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/07",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/8/0/000",
        "tile/0/../0/000",
        "../log-keys/keys.json",
        "..%2flog-keys%2fkeys.json",
        "%2e%2e/log-keys/keys.json",
        "tile/0/%2e%2e/%2e%2e/checkpoint",
        "//etc/passwd",
        "tile/0/000%00",
        "tile/0/000%0a",
        "tile/0/%d9%a0%d9%a0%d9%a0",
    ],
)
def test_no_other_path_leads_anywhere(shared: tuple[str, int], path: str) -> None:
    status, _, body = ask(shared, f"/log/{path}")
    assert status == 404, body
    assert b"root" not in body


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, int]]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        paths = Paths.under(name)
        paths.record.mkdir(parents=True)
        (paths.record / "journal").write_bytes(b"root")
        paths.log_keys.mkdir()
        (paths.log_keys / "keys.json").write_text("root")
        found = Tree()
        found.grow(300)
        publish(paths.record, found)
        restrict(paths.record)
        with serving(Path(name), *OPTIONS, groups=GROUPS) as address:
            assert ask(address, "/log/tile/0/000")[0] == 200
            yield address


def test_files_that_others_could_have_changed_are_not_shown(root: Path) -> None:
    record = Paths.under(str(root)).record
    (record / "tile/0/000").chmod(0o666)
    (record / "tile/0/001").unlink()
    (record / "tile/0/001").symlink_to(record / "tile/0/000")
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        assert ask(address, "/log/tile/0/000")[0] == 503
        assert ask(address, "/log/tile/0/001")[0] == 503
        (record / "checkpoint").write_bytes(b"x" * 2**20 + b"x")
        assert ask(address, "/log/checkpoint")[0] == 503
        record.chmod(0o777)
        assert ask(address, "/log/tile/1/000.p/2")[0] == 503


def test_without_a_record_there_is_no_log(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with serving(Path(name), *OPTIONS) as address:
            assert ask(address, "/log/checkpoint")[0] == 404


# -- the Go project's client -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from source with Debian's golang-golang-x-mod-dev: no network, and not a line of ours in what it verifies with."""
    if shutil.which("go") is None or not Path("/usr/share/gocode/src/golang.org/x/mod/sumdb/tlog").exists():
        message = (
            "golang-go and golang-golang-x-mod-dev are not installed (scripts/setup --dev installs them)"
        )
        if os.environ.get("EGS_REQUIRE_KERNEL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    built = tmp_path_factory.mktemp("tlogclient")
    environment = {
        "PATH": os.environ["PATH"],
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(built / "cache"),
        "GOFLAGS": "",
    }
    subprocess.run(["go", "build", "-o", built / "tlogclient", "."], cwd=CLIENT, env=environment, check=True)
    return built / "tlogclient"


def verified(
    client: Path, address: tuple[str, int], tree: Tree, *arguments: object
) -> subprocess.CompletedProcess[str]:
    indexes = [argument for argument in arguments if isinstance(argument, int)]
    options = [argument for argument in arguments if argument not in indexes]
    url = f"http://{address[0]}:{address[1]}/log"
    command = [str(item) for item in (client, *options, url, tree.key.key, *indexes)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_go_client_verifies_checkpoint_inclusion_and_consistency(
    client: Path, root: Path, tree: Tree, tmp_path: Path
) -> None:
    olds = [
        arg for size in (1, 255, 256, 257, 599, 600) for arg in ("-old", old_checkpoint(tmp_path, tree, size))
    ]
    indexes = (0, 1, 255, 256, 511, 512, 599)
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        done = verified(client, address, tree, *olds, *indexes)
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
        assert said[0] == f"checkpoint {SIZE}"
        assert said[1:8] == [f"included {n} {tree.entries[n].decode()}" for n in indexes]
        assert said[8:] == [f"continues {size}" for size in (1, 255, 256, 257, 599, 600)]

        other = verified(client, address, Tree(tree.origin, seed=2))
        assert other.returncode == 1
        assert "no verifiable signatures" in other.stderr


def test_the_go_client_verifies_a_cosignature(client: Path, root: Path, tree: Tree) -> None:
    witness = signer("w.example.com/1", 3, KeyType.COSIGNATURE)
    other = signer("w.example.com/1", 4, KeyType.COSIGNATURE)
    forged = replace(witness.cosign(tree.checkpoint().text, 1_800_000_000), value=bytes(72))
    checkpoint = Paths.under(str(root)).record / "checkpoint"
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        for line, key, verifies in (
            (witness.cosign(tree.checkpoint().text, 1_800_000_000), witness.key, True),
            (other.cosign(tree.checkpoint().text, 1_800_000_000), witness.key, False),
            (witness.cosign(tree.checkpoint(599).text, 1_800_000_000), witness.key, False),
            (forged, witness.key, False),
        ):
            checkpoint.write_bytes(with_signatures(tree.signed(), [line]))
            done = verified(client, address, tree, "-witness", key)
            assert (done.returncode == 0) is verifies, done.stderr
            assert ("cosigned w.example.com/1" in done.stdout) is verifies


def test_the_go_client_verifies_the_proofs_of_a_bundle(client: Path, tmp_path: Path) -> None:
    """Each entry of a proof bundle (docs/proofs.md) is proven by itself: here that an exec was refused."""
    (killed,) = (item for item in proving.bundle("entry:13").records if '"no_grant"' in item.entry)
    entry, proof, key = tmp_path / "entry", tmp_path / "x.tlog-proof", str(proving.StoryLog().tree.key.key)
    proof.write_text(killed.proof)
    for text, verifies in ((killed.entry, True), (killed.entry.replace("no_grant", "expired"), False)):
        entry.write_text(text)
        command = [str(client), "-proof", str(proof), str(entry), key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ("proven 13 of " in done.stdout) is (done.returncode == 0) is verifies, done.stderr


def old_checkpoint(folder: Path, tree: Tree, size: int) -> Path:
    path = folder / f"checkpoint-{size}"
    path.write_bytes(tree.signed(size))
    return path


def test_the_go_client_refuses_what_was_tampered_with(
    client: Path, root: Path, tree: Tree, tmp_path: Path
) -> None:
    record = Paths.under(str(root)).record
    fork = Tree(tree.origin, tree.entries[:100])
    fork.grow(300, "another")
    with serving(root, *OPTIONS, groups=GROUPS) as address:
        for path, index in (("tile/0/001", 300), ("tile/entries/001", 300), ("tile/1/000.p/2", 300)):
            whole = (record / path).read_bytes()
            position = content_of_entry(whole, 300 - 256) if "entries" in path else 40
            changed = bytearray(whole)
            changed[position] ^= 1
            (record / path).write_bytes(changed)
            done = verified(client, address, tree, index)
            assert done.returncode == 1, (path, done.stdout)
            assert f"included {index}" not in done.stdout
            (record / path).write_bytes(whole)
            assert verified(client, address, tree, index).returncode == 0
        # Another history of the same log, with its own signature: not what it was.
        done = verified(client, address, tree, "-old", old_checkpoint(tmp_path, fork, 400))
        assert done.returncode == 1
        assert "continues" not in done.stdout
        # A checkpoint that was changed.
        whole = (record / "checkpoint").read_bytes()
        (record / "checkpoint").write_bytes(whole.replace(b"\n600\n", b"\n599\n"))
        done = verified(client, address, tree)
        assert done.returncode == 1
        assert "invalid signature" in done.stderr


def content_of_entry(bundle: bytes, number: int) -> int:
    """Where the content of an entry begins in its bundle."""
    start = 0
    for _ in range(number):
        start += 2 + int.from_bytes(bundle[start : start + 2])
    return start + 2
