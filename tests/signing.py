"""Where keys are that are not in files: a SoftHSM2 token, and OpenBao's transit engine, which is Vault's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.harness import BIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "4321"
TOKEN = "root"  # noqa: S105 - of the administrator of the servers below


@dataclass(frozen=True)
class Token:
    """A SoftHSM2 token of its own in a temporary folder."""

    folder: Path
    label: str = "egs tests"

    @property
    def configuration(self) -> Path:
        """What SOFTHSM2_CONF names."""
        return self.folder / "softhsm2.conf"

    def uri(self, number: int = 1) -> str:
        """The URI of a key in it."""
        return f"pkcs11:token={quote(self.label)};id=%{number:02x}?module-path={MODULE}"

    def store(self, key: EllipticCurvePrivateKey, number: int) -> None:
        """Put a key into it."""
        path = self.folder / f"{number}.pem"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._run(
            "--import",
            str(path),
            "--token",
            self.label,
            "--label",
            "k",
            "--id",
            f"{number:02x}",
            "--pin",
            PIN,
        )
        path.unlink()

    def make(self) -> None:
        """Make it."""
        (self.folder / "tokens").mkdir()
        self.configuration.write_text(
            f"directories.tokendir = {self.folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self._run("--init-token", "--free", "--label", self.label, "--so-pin", "87654321", "--pin", PIN)

    def _run(self, *words: str) -> None:
        subprocess.run(
            ["softhsm2-util", *words],
            check=True,
            capture_output=True,
            env={**os.environ, "SOFTHSM2_CONF": str(self.configuration)},
        )


def require_softhsm() -> None:
    """Skip without SoftHSM2, and fail where the tests must be complete."""
    if which("softhsm2-util") is None or not MODULE.exists():
        if os.environ.get("EGS_REQUIRE_KERNEL") == "1":
            pytest.fail("no SoftHSM2: scripts/setup --dev installs it")
        pytest.skip("no SoftHSM2 (Debian: softhsm2)")


@dataclass(frozen=True)
class Bao:
    """An OpenBao server, which speaks Vault's API: all in memory, with the transit engine."""

    address: str

    @contextmanager
    def reached(self, token: str = TOKEN) -> Iterator[None]:
        """Have this process find it, with a token."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VAULT_ADDR", self.address)
            patch.setenv("VAULT_TOKEN", token)
            yield

    def make(self, name: str, kind: str = "ed25519") -> None:
        """A new key."""
        self.ask("POST", f"transit/keys/{name}", {"type": kind})

    def rotate(self, name: str) -> None:
        """A new version of a key."""
        self.ask("POST", f"transit/keys/{name}/rotate", {})

    def token_for(self, policy: str) -> str:
        """A token that may do what the policy says, and nothing else."""
        self.ask("PUT", "sys/policies/acl/tests", {"policy": policy})
        made = self.ask("POST", "auth/token/create", {"policies": ["tests"], "no_default_policy": True})
        return str(made["auth"]["client_token"])

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request of its API, as its administrator."""
        request = Request(  # noqa: S310 - of the address above
            f"{self.address}/v1/{path}",
            None if body is None else json.dumps(body).encode(),
            {"X-Vault-Token": TOKEN},
            method=method,
        )
        with urlopen(request, timeout=20) as answer:  # noqa: S310 - as above
            return dict(json.loads(answer.read() or b"{}"))


@contextmanager
def openbao() -> Iterator[Bao]:
    """A server on a port that the kernel chooses; it says which: its own is the one before that for its cluster."""
    words = ("-dev", "-dev-no-store-token", f"-dev-root-token-id={TOKEN}", "-log-level=error")
    process = subprocess.Popen(
        [str(BIN / "bao"), "server", *words, "-dev-listen-address=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        while "server started" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        port = re.search(r'cluster address: "127\.0\.0\.1:(\d+)"', said)
        assert port is not None, said
        made = Bao(f"http://127.0.0.1:{int(port[1]) - 1}")
        made.ask("POST", "sys/mounts/transit", {"type": "transit"})
        yield made
    finally:
        process.kill()
        process.communicate()
