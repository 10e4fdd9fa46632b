"""Keys and the trust folder: what is written is what is loaded, and nothing hostile is."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Reason
from egs_kernel.trust import store
from egs_kernel.trust.keys import (
    Algorithm,
    algorithm_of,
    generate,
    load_private,
    load_public,
    public_pem,
    write_pair,
)
from egs_kernel.trust.store import Role, TrustedKey, TrustStore
from tests.unit.issuing import ISSUER, NOW, SECOND, STRANGER, trusted

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from egs_kernel.sslib import Signer

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
P384 = ec.generate_private_key(ec.SECP384R1())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")


def private_pem(key: PrivateKeyTypes, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def pem(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def refused(folder: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        TrustStore.load(folder)
    assert caught.value.next_step
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trust folder with one key."""
    path = tmp_path / "trust"
    store.add(path, trusted(ISSUER))
    return path


def key_file(folder: Path) -> Path:
    return folder / f"{ISSUER.public_key.keyid}.toml"


# keys


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_pair_is_written_once_and_read_back(algorithm: Algorithm, tmp_path: Path) -> None:
    signer = generate(algorithm)
    private, public = write_pair(signer, tmp_path, "n")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert load_private(private).public_key == signer.public_key
    assert load_public(public.read_bytes(), "n.pub") == signer.public_key
    assert algorithm_of(signer.public_key) is algorithm
    before = private.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        write_pair(generate(algorithm), tmp_path, "n")
    assert private.read_bytes() == before


def test_a_lone_public_file_is_not_overwritten_and_no_private_key_stays(tmp_path: Path) -> None:
    (tmp_path / "n.pub").write_text("mine")
    with pytest.raises(UsageError):
        write_pair(ISSUER, tmp_path, "n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.pub"]


def test_a_private_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "n.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        write_pair(ISSUER, tmp_path, "n")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_private_key_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    private, _public = write_pair(ISSUER, tmp_path, "n")
    private.chmod(mode)
    with pytest.raises(UsageError) as caught:
        load_private(private)
    assert caught.value.reason is Reason.PATH_UNSAFE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        pem(RSA),
        private_pem(RSA),
        private_pem(P384),
        private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"),
    ],
    ids=["empty", "nonsense", "public", "rsa", "p384", "encrypted"],
)
def test_other_private_keys_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "n.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError):
        load_private(path)


def test_a_missing_private_key_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_private(tmp_path / "none.key")
    assert caught.value.reason is Reason.NOT_FOUND


GOOD = public_pem(ISSUER.public_key).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        GOOD + GOOD,
        GOOD[:60],
        GOOD.replace(b"MCow", b"AAAA"),
        GOOD.replace(b"PUBLIC", b"RSA PUBLIC"),
        private_pem(ED25519),
        pem(RSA),
        pem(P384),
    ],
    ids=["empty", "binary", "two", "cut", "damaged", "other type", "private", "rsa", "p384"],
)
def test_other_public_keys_are_refused(content: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        load_public(content, "n.pub")
    assert caught.value.next_step


# the folder


times = st.none() | st.timedeltas(timedelta(days=-900), timedelta(days=900)).map(
    lambda delta: NOW + timedelta(seconds=int(delta.total_seconds()))
)
names = st.none() | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(
    signer=st.sampled_from([ISSUER, SECOND]),
    roles=st.frozensets(st.sampled_from(Role), min_size=1),
    scopes=st.frozensets(st.sampled_from(["agents", "ci", "*"]), min_size=1),
    name=names,
    time=times,
)
def test_what_is_added_is_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    signer: Signer,
    roles: frozenset[Role],
    scopes: frozenset[str],
    name: str | None,
    time: datetime | None,
) -> None:
    folder = tmp_path_factory.mktemp("trust")
    entry = TrustedKey(
        key=signer.public_key,
        roles=roles,
        scopes=scopes,
        name=name,
        not_before=time,
        not_after=time and time + timedelta(hours=1),
        revoked=time,
    )
    store.add(folder, entry)
    assert TrustStore.load(folder).keys == {entry.keyid: entry}


def test_add_remove_revoke_and_threshold(folder: Path) -> None:
    keyid = ISSUER.public_key.keyid
    with pytest.raises(UsageError, match="already trusted"):
        store.add(folder, trusted(ISSUER, scopes=frozenset({"*"})))
    store.add(folder, trusted(SECOND))
    store.revoke(folder, keyid, NOW)
    store.revoke(folder, keyid, NOW + timedelta(hours=1))
    assert TrustStore.load(folder).keys[keyid].revoked == NOW, "the first time stands"
    store.set_threshold(folder, "agents", 2)
    store.set_threshold(folder, "*", 3)
    loaded = TrustStore.load(folder)
    assert (loaded.threshold("agents"), loaded.threshold("ci")) == (2, 3)
    store.remove(folder, keyid)
    assert set(TrustStore.load(folder).keys) == {SECOND.public_key.keyid}
    assert TrustStore().threshold("agents") == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{SECOND.public_key.keyid}.toml",
        "thresholds.toml",
    ]


@pytest.mark.parametrize("keyid", ["", "00" * 32, "../trust", "thresholds", "x"])
def test_what_is_not_there_is_not_found(keyid: str, folder: Path) -> None:
    store.set_threshold(folder, "agents", 1)
    with pytest.raises(UsageError) as removal:
        store.remove(folder, keyid)
    with pytest.raises(UsageError) as revocation:
        store.revoke(folder, keyid, NOW)
    assert removal.value.reason is revocation.value.reason is Reason.NOT_FOUND
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(("scope", "count"), [("Agents", 1), ("", 1), ("agents", 0), ("agents", 17)])
def test_thresholds_that_are_none(scope: str, count: int, folder: Path) -> None:
    with pytest.raises(UsageError):
        store.set_threshold(folder, scope, count)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").reason is Reason.PATH_UNSAFE


def test_a_half_written_file_is_not_seen(folder: Path) -> None:
    (folder / ".thresholds.toml.1").write_text("[thresh")
    assert len(TrustStore.load(folder).keys) == 1


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(mode: int, folder: Path) -> None:
    folder.chmod(mode)
    assert refused(folder).reason is Reason.PATH_UNSAFE
    with pytest.raises(UsageError):
        store.add(folder, trusted(SECOND))
    with pytest.raises(UsageError):
        store.remove(folder, ISSUER.public_key.keyid)


def test_a_parent_that_others_may_write_is_refused(folder: Path) -> None:
    folder.parent.chmod(0o777)
    assert refused(folder).reason is Reason.PATH_UNSAFE


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(mode: int, folder: Path) -> None:
    key_file(folder).chmod(mode)
    assert refused(folder).reason is Reason.PATH_UNSAFE


@needs_root
def test_what_belongs_to_somebody_else_is_refused(folder: Path) -> None:
    os.chown(key_file(folder), 1234, 0)
    assert refused(folder).reason is Reason.PATH_UNSAFE
    os.chown(key_file(folder), 0, 0)
    TrustStore.load(folder)
    os.chown(folder, 1234, 0)
    assert refused(folder).reason is Reason.PATH_UNSAFE


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert refused(tmp_path / "link").reason is Reason.PATH_UNSAFE
    elsewhere = key_file(folder).rename(tmp_path / "elsewhere.toml")
    key_file(folder).symlink_to(elsewhere)
    assert refused(folder).reason is Reason.PATH_UNSAFE


def test_what_is_no_regular_file_is_refused(folder: Path) -> None:
    key_file(folder).unlink()
    os.mkfifo(key_file(folder))
    assert refused(folder).reason is Reason.PATH_UNSAFE


@pytest.mark.parametrize("name", ["issuer.pub", "README", f"{ISSUER.public_key.keyid}.toml~", "sub"])
def test_what_does_not_belong_there_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_text("") if name != "sub" else (folder / name).mkdir()
    assert name in refused(folder).message


def test_the_same_key_under_another_name_is_refused(folder: Path) -> None:
    (folder / f"{'0' * 64}.toml").write_bytes(key_file(folder).read_bytes())
    assert "its name must be" in refused(folder).message


def with_pem(content: bytes) -> str:
    return f'roles = ["issuer"]\nscopes = ["agents"]\npublic_key = """\n{content.decode()}"""\n'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "roles = [",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        with_pem(pem(RSA)),
        with_pem(pem(P384)),
        with_pem(private_pem(ED25519)),
        with_pem(b""),
        with_pem(GOOD) + "extra = 1\n",
        with_pem(GOOD).replace("issuer", "root"),
        with_pem(GOOD).replace('["issuer"]', "[]"),
        with_pem(GOOD).replace('["agents"]', "[]"),
        with_pem(GOOD).replace("agents", "AGENTS"),
        with_pem(GOOD) + 'not_after = "tomorrow"\n',
        with_pem(GOOD) + 'not_after = "2026-02-30T00:00:00Z"\n',
        with_pem(GOOD) + "not_after = 2026-11-23T14:00:00Z\n",
        with_pem(GOOD) + 'revoked = ""\n',
        with_pem(GOOD) + 'name = "a\\u001bb"\n',
        with_pem(GOOD) + "# " + "x" * 16384,
    ],
    ids=str,
)
def test_key_files_that_are_not_understood_are_refused(content: str, folder: Path) -> None:
    key_file(folder).write_text(content, encoding="utf-8")
    assert str(key_file(folder)) in refused(folder).message


@pytest.mark.parametrize(
    "content",
    ["x", "", "[thresholds]\nagents = 0", '[thresholds]\nagents = "2"', "[thresholds]\nA = 1", "[thresholds]\na = 1\na = 2", "agents = 2"],
)  # fmt: skip
def test_threshold_files_that_are_not_understood_are_refused(content: str, folder: Path) -> None:
    (folder / "thresholds.toml").write_text(content)
    assert "thresholds.toml" in refused(folder).message


def test_a_stranger_is_in_no_store(folder: Path) -> None:
    assert STRANGER.public_key.keyid not in TrustStore.load(folder).keys
