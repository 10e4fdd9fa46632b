"""Private keys in encrypted files, in a token, in a service: they sign, and what is wrong says what is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from egs_kernel.cli.main import run
from egs_kernel.errors import EgsError, ExitCode, HostLacks, Unreachable, UsageError
from egs_kernel.model import Reason
from egs_kernel.sslib import SSlibKey
from egs_kernel.trust import keys
from egs_kernel.trust.keys import Algorithm, generate, write_pair
from egs_kernel.trust.passphrases import Passphrases
from egs_kernel.trust.signers import open_signer
from tests.harness import BIN
from tests.signing import MODULE, PIN, Bao, Token, openbao, require_softhsm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of the keys of these tests
NOBODY = Passphrases()


def answering(secret: str) -> Passphrases:
    return Passphrases(ask=lambda _question: secret)


def refused(where: str, passphrases: Passphrases = NOBODY) -> EgsError:
    """The error of opening a key and signing with it."""
    with pytest.raises(EgsError) as caught:
        open_signer(where, passphrases).sign(b"data")
    assert caught.value.next_step
    return caught.value


def secret_file(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


# -- encrypted files ---------------------------------------------------------------------------------


@pytest.fixture(params=[Algorithm.ED25519, Algorithm.HYBRID], ids=lambda kind: kind.value)
def encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    private, _public = write_pair(generate(request.param), tmp_path, "n", PASSPHRASE)
    return private


def test_an_encrypted_key_opens_with_its_passphrase_from_each_place(encrypted: Path, tmp_path: Path) -> None:
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in encrypted.read_bytes()
    assert b"BEGIN PRIVATE KEY" not in encrypted.read_bytes()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "key.passphrase").write_text(PASSPHRASE)
    (credentials / "key.passphrase").chmod(0o440)  # as systemd leaves it
    public = keys.load_public(encrypted.with_suffix(".pub").read_bytes(), "n.pub")
    for place in (
        Passphrases(secret_file(tmp_path / "pass", PASSPHRASE + "\n")),
        Passphrases(credentials=credentials),
        answering(PASSPHRASE),
    ):
        signer = open_signer(str(encrypted), place)
        signer.public_key.verify_signature(signer.sign(b"data"), b"data")
        assert signer.public_key == public


def test_the_file_comes_first_then_the_credential_then_a_person(tmp_path: Path) -> None:
    (tmp_path / "key.passphrase").write_text("credential")
    file = secret_file(tmp_path / "file", "file")

    def ask(_question: str) -> str:
        return "person"

    assert Passphrases(file, tmp_path, ask).get("passphrase", "k") == "file"
    assert Passphrases(None, tmp_path, ask).get("passphrase", "k") == "credential"
    assert Passphrases(None, tmp_path, ask).get("pin", "k") == "person"


def test_a_wrong_passphrase_says_so(encrypted: Path) -> None:
    error = refused(str(encrypted), answering("another passphrase"))
    assert (error.reason, error.exit_code) == (Reason.KEY_SECRET_WRONG, ExitCode.USAGE)
    assert PASSPHRASE not in str(error)
    assert refused(str(encrypted)).reason is Reason.KEY_SECRET_WRONG


def test_a_key_without_a_passphrase_asks_nobody(tmp_path: Path) -> None:
    private, _public = write_pair(generate(Algorithm.ML_DSA_65), tmp_path, "n")
    open_signer(str(private), NOBODY).sign(b"data")


@pytest.mark.parametrize("cut", [0, 1, 40, 100, -2, -40])
def test_a_truncated_key_file_is_no_key(cut: int, encrypted: Path) -> None:
    content = encrypted.read_bytes()
    encrypted.write_bytes(content[:cut])
    assert refused(str(encrypted), answering(PASSPHRASE)).exit_code is ExitCode.USAGE


def test_a_hybrid_key_file_without_its_second_half_is_another_key(tmp_path: Path) -> None:
    signer = generate(Algorithm.HYBRID)
    private, _public = write_pair(signer, tmp_path, "n")
    content = private.read_bytes()
    private.write_bytes(content[: content.index(b"-----END PRIVATE KEY-----") + 26])
    assert open_signer(str(private), NOBODY).public_key.keyid != signer.public_key.keyid


@pytest.mark.parametrize("content", ["", "\n", "a\nb\n", "\x00" * 20, "x" * 2000])
def test_a_file_that_is_not_one_line_is_no_passphrase(content: str, encrypted: Path, tmp_path: Path) -> None:
    assert (
        refused(str(encrypted), Passphrases(secret_file(tmp_path / "pass", content))).exit_code
        is ExitCode.USAGE
    )


def test_a_passphrase_file_that_others_may_read_is_refused(encrypted: Path, tmp_path: Path) -> None:
    path = secret_file(tmp_path / "pass", PASSPHRASE)
    path.chmod(0o640)
    assert refused(str(encrypted), Passphrases(path)).reason is Reason.PATH_UNSAFE
    assert refused(str(encrypted), Passphrases(tmp_path / "none")).reason is Reason.NOT_FOUND


def test_a_short_passphrase_encrypts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="characters"):
        write_pair(generate(Algorithm.ED25519), tmp_path, "n", "hunter2")
    assert list(tmp_path.iterdir()) == []


def test_openssl_makes_and_reads_the_files(tmp_path: Path) -> None:
    private, _public = write_pair(generate(Algorithm.ED25519), tmp_path, "n", PASSPHRASE)
    harder = tmp_path / "harder.key"
    command = "openssl pkcs8 -topk8 -scrypt -in n.key -out harder.key -passin env:P -passout env:P"
    subprocess.run(command.split(), cwd=tmp_path, env={**os.environ, "P": PASSPHRASE}, check=True)
    harder.chmod(0o600)
    opened = [open_signer(str(path), answering(PASSPHRASE)).public_key for path in (private, harder)]
    assert opened[0] == opened[1]


# -- URIs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "pkcs11:",
        "pkcs11:token=egs",
        "pkcs11:id=%01",
        "pkcs11:token=egs;id=%01;object=k?module-path=/bin/true",
        "pkcs11:token=egs;id=%01;id=%02?module-path=/bin/true",
        "pkcs11:token=egs;id=%01;type=cert?module-path=/bin/true",
        "pkcs11:token=egs;id=%01?module-path=/bin/true&pin-value=4321",
        "pkcs11:token=egs;id=%01?module-path=/bin/true&slot-id=1",
        "pkcs11:token=egs;id=%01?module-path",
        "pkcs11:token=egs;id=%01?module-path=/a&module-path=/b",
        "pkcs11:token=egs;id=\udcff?module-path=/bin/true",
        "pkcs11:token=egs;id=%01?module-path=/bin/true&public-key=/a%00b",
        "hashivault:issuer/1?public-key=%00",
        "hashivault:schlüssel",
        "hashivault:",
        "hashivault:issuer/newest",
        "hashivault:issuer?token=s.1",
        "azurekms://elsewhere.example.org/keys/a/b",
        "awskms:key?region=eu",
        "tpm:2",
        "file:/root/n.key",
        "no such file",
    ],
)
def test_what_is_no_key_is_refused_before_anything_is_asked(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    assert refused(where).exit_code is ExitCode.USAGE


def test_a_pin_in_a_uri_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(f"pkcs11:token=egs;id=%01?module-path={MODULE}&pin-value=998877")
    assert "998877" not in f"{error} {error.next_step}"


@pytest.mark.parametrize("extra", ["awskms", "gcpkms", "azurekms"])
def test_what_is_not_installed_is_named(extra: str) -> None:
    where = {"azurekms": "azurekms://v.vault.azure.net/keys/a/1"}.get(extra, f"{extra}:key")
    error = refused(where)
    assert isinstance(error, HostLacks)
    assert error.reason is Reason.SIGNER_UNAVAILABLE
    assert f"egs-kernel[{extra}]" in error.next_step


@pytest.mark.parametrize(("extra", "client"), [("hsm", "pkcs11"), ("vault", "hvac")])
def test_so_are_those_that_are_installed_here(extra: str, client: str, tmp_path: Path) -> None:
    where = {"hsm": "pkcs11:id=%01?module-path=/bin/true", "vault": "hashivault:issuer"}[extra]
    code = f"import sys; sys.modules[{client!r}] = None; from egs_kernel.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "keys",
        "public",
        "--key",
        where,
        "--out",
        str(tmp_path / "n.pub"),
        "--json",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.HOST_LACKS, ended.stderr
    assert f"egs-kernel[{extra}]" in json.loads(ended.stdout)["error"]["next_step"]


def test_a_module_that_does_not_exist_or_is_none() -> None:
    assert isinstance(refused("pkcs11:id=%01?module-path=/nowhere.so"), HostLacks)


# -- SoftHSM2 ----------------------------------------------------------------------------------------

ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    """One token for all: a process loads a PKCS#11 module, and its configuration, once."""
    require_softhsm()
    made = Token(tmp_path_factory.mktemp("token"))
    made.make()
    made.store(ISSUER_KEY, 1)
    made.store(ec.generate_private_key(ec.SECP384R1()), 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(made.configuration))
        yield made


def test_softhsm_signs(token: Token) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return PIN

    signer = open_signer(token.uri(), Passphrases(ask=ask))
    assert asked == []  # the public key is for everybody
    for data in (b"one", b"two"):
        signer.public_key.verify_signature(signer.sign(data), data)
    assert len(asked) == 1
    assert "pin" in asked[0]


def test_softhsm_signs_for_several_threads(token: Token) -> None:
    """A token has one session that is logged in."""
    signer = open_signer(token.uri(), answering(PIN))
    with ThreadPoolExecutor(4) as pool:
        signatures = list(pool.map(lambda number: signer.sign(b"%d" % number), range(16)))
    for number, signature in enumerate(signatures):
        signer.public_key.verify_signature(signature, b"%d" % number)


def test_from_a_token_to_a_verified_artifact(
    token: Token, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By commands alone; the private key is never in a file."""
    pin = str(secret_file(tmp_path / "pin", f"{PIN}\n"))
    public, trust, artifact = (str(tmp_path / name) for name in ("issuer.pub", "trust", "a.json"))
    what = ["--program", "/bin/true", "--out", artifact]
    for words in (
        ["keys", "public", "--key", token.uri(), "--out", public],
        ["trust", "add", public, "--role", "issuer", "--scope", "agents", "--trust", trust],
        ["issue", "--key", f"{token.uri()}&pin-source=file:{pin}", "--scope", "agents", *what],
        ["verify", artifact, "--trust", trust],
    ):
        assert run(words) == ExitCode.DONE, capsys.readouterr().err
    assert keys.load_public((tmp_path / "issuer.pub").read_bytes(), "") == SSlibKey.from_crypto(
        ISSUER_KEY.public_key()
    )


def test_a_wrong_pin_says_so(token: Token) -> None:
    error = refused(token.uri(), answering("0000"))
    assert (error.reason, error.exit_code) == (Reason.KEY_SECRET_WRONG, ExitCode.USAGE)
    open_signer(token.uri(), answering(PIN)).sign(b"the right one still works")


def test_another_token_and_another_id_are_not_found(token: Token) -> None:
    for where in (token.uri().replace("egs", "nix"), token.uri(9)):
        error = refused(where, answering(PIN))
        assert isinstance(error, Unreachable)
        assert error.reason is Reason.SIGNER_UNAVAILABLE


def test_a_key_of_another_kind_in_the_token_is_refused(token: Token) -> None:
    assert "not supported" in str(refused(token.uri(2), answering(PIN)))


def test_a_token_whose_key_is_not_the_expected_one_signs_nothing(token: Token, tmp_path: Path) -> None:
    _private, public = write_pair(generate(Algorithm.ECDSA_P256), tmp_path, "other")
    error = refused(f"{token.uri()}&public-key={public}", answering(PIN))
    assert "no signature by" in str(error)


# -- Vault's transit engine, as OpenBao has it -------------------------------------------------------


@pytest.fixture(scope="module")
def transit() -> Iterator[Bao]:
    with openbao() as found:
        yield found


@pytest.fixture
def vault(transit: Bao) -> Iterator[Bao]:
    """With a new key, `issuer`."""
    with transit.reached():
        transit.make("issuer")
        yield transit
        transit.ask("POST", "transit/keys/issuer/config", {"deletion_allowed": True})
        transit.ask("DELETE", "transit/keys/issuer")


def test_vault_signs_with_its_newest_version(vault: Bao) -> None:
    first = open_signer("hashivault:issuer", NOBODY)
    first.public_key.verify_signature(first.sign(b"data"), b"data")
    assert open_signer("hashivault:issuer/1", NOBODY).public_key == first.public_key
    vault.rotate("issuer")
    second = open_signer("hashivault:issuer", NOBODY)
    assert second.public_key.keyid != first.public_key.keyid
    first.public_key.verify_signature(first.sign(b"data"), b"data")  # as it was opened


def test_vault_signs_with_an_older_version_whose_public_key_is_named(vault: Bao, tmp_path: Path) -> None:
    old = open_signer("hashivault:issuer", NOBODY).public_key
    keys.write_public(old, tmp_path / "old.pub")
    vault.rotate("issuer")
    assert "newest" in str(refused("hashivault:issuer/1"))
    signer = open_signer(f"hashivault:issuer/1?public-key={tmp_path / 'old.pub'}", NOBODY)
    assert signer.public_key == old
    signer.public_key.verify_signature(signer.sign(b"data"), b"data")
    assert refused(f"hashivault:issuer?public-key={tmp_path / 'old.pub'}").exit_code is ExitCode.USAGE


def test_a_signature_that_is_not_this_keys_never_leaves(vault: Bao, tmp_path: Path) -> None:
    keys.write_public(open_signer("hashivault:issuer", NOBODY).public_key, tmp_path / "old.pub")
    vault.rotate("issuer")
    error = refused(f"hashivault:issuer/2?public-key={tmp_path / 'old.pub'}")
    assert "no signature by" in str(error)
    assert error.reason is Reason.SIGNER_UNAVAILABLE


@pytest.mark.parametrize("kind", ["ecdsa-p256", "rsa-2048", "aes256-gcm96"])
def test_a_key_of_another_kind_in_vault_is_refused(vault: Bao, kind: str) -> None:
    vault.make(kind, kind)
    assert refused(f"hashivault:{kind}").reason in (Reason.USAGE, Reason.SIGNER_UNAVAILABLE)


def test_from_vault_to_a_verified_artifact(
    vault: Bao, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By commands alone. Who issues may sign there, and nothing else: the public key is in a file."""
    public, trust, artifact = (str(tmp_path / name) for name in ("issuer.pub", "trust", "a.json"))
    assert run(["keys", "public", "--key", "hashivault:issuer", "--out", public]) == ExitCode.DONE
    signs = vault.token_for('path "transit/sign/issuer" { capabilities = ["update"] }')
    with vault.reached(signs):
        assert "permission denied" in str(refused("hashivault:issuer"))
        key = f"hashivault:issuer/1?public-key={public}"
        for words in (
            ["trust", "add", public, "--role", "issuer", "--scope", "agents", "--trust", trust],
            ["issue", "--key", key, "--scope", "agents", "--program", "/bin/true", "--out", artifact],
            ["verify", artifact, "--trust", trust],
        ):
            assert run(words) == ExitCode.DONE, capsys.readouterr().err


def test_a_vault_that_refuses_or_is_not_there(vault: Bao) -> None:
    assert isinstance(refused("hashivault:other"), Unreachable)
    with vault.reached("s.other"):
        error = refused("hashivault:issuer")
        assert "permission denied" in error.message
        assert "\n" not in error.message
    with Bao("http://127.0.0.1:1").reached():
        assert refused("hashivault:issuer").exit_code is ExitCode.UNREACHABLE


def test_a_vault_that_is_sealed() -> None:
    with openbao() as alone, alone.reached():
        alone.make("issuer")
        alone.ask("PUT", "sys/seal")
        assert "sealed" in refused("hashivault:issuer").message


# -- the command -------------------------------------------------------------------------------------


def test_generate_encrypts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passphrase = str(secret_file(tmp_path / "pass", PASSPHRASE))
    words = [
        "keys",
        "generate",
        "--name",
        "n",
        "--out",
        str(tmp_path),
        "--passphrase-file",
        passphrase,
        "--json",
    ]
    assert run(words) == ExitCode.DONE
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["encrypted"] is True
    assert PASSPHRASE not in json.dumps(answer)
    assert open_signer(answer["private"], answering(PASSPHRASE)).public_key.keyid == answer["keyid"]


# -- a person at a terminal --------------------------------------------------------------------------


class Terminal:
    """A command with a terminal of its own, and a person who answers what it asks."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [str(BIN / "egs"), *words],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.shown = ""

    def answer(self, question: str, secret: str) -> None:
        """Wait for a question, and type."""
        while question not in self.shown:
            ready, _, _ = select.select([self._ours], [], [], 30)
            assert ready, self.shown
            self.shown += os.read(self._ours, 1024).decode()
        self.shown = self.shown.partition(question)[2]
        os.write(self._ours, f"{secret}\n".encode())

    def end(self) -> int:
        """Its exit code."""
        self.process.communicate(timeout=30)
        os.close(self._ours)
        return self.process.returncode


def test_a_person_types_the_passphrase_and_it_is_not_shown(tmp_path: Path) -> None:
    terminal = Terminal("keys", "generate", "--name", "n", "--out", str(tmp_path), "--encrypt")
    terminal.answer("passphrase of n: ", PASSPHRASE)
    terminal.answer("once more: ", PASSPHRASE)
    assert terminal.end() == ExitCode.DONE
    key, public = str(tmp_path / "n.key"), str(tmp_path / "again.pub")
    for typed, code in (("something else entirely", ExitCode.USAGE), (PASSPHRASE, ExitCode.DONE)):
        terminal = Terminal("keys", "public", "--key", key, "--out", public)
        terminal.answer(f"passphrase of {key}: ", typed)
        assert terminal.end() == code
        assert typed not in terminal.shown
    assert (tmp_path / "again.pub").read_bytes() == (tmp_path / "n.pub").read_bytes()


def test_two_different_passphrases_make_no_key(tmp_path: Path) -> None:
    terminal = Terminal("keys", "generate", "--name", "n", "--out", str(tmp_path), "--encrypt")
    terminal.answer("passphrase of n: ", PASSPHRASE)
    terminal.answer("once more: ", PASSPHRASE + "!")
    assert terminal.end() == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []
