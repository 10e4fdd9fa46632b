"""Where keys are that are not in files: a SoftHSM2 token, and a stand-in for Vault's transit engine."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from base64 import b64decode, b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "4321"
TOKEN = "s.test"  # noqa: S105 - of the stand-in below


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


@dataclass
class Vault:
    """What `hvac` asks of Vault's transit engine: versions of a key, and signatures. Not Vault itself."""

    address: str = ""
    versions: dict[int, Ed25519PrivateKey] = field(default_factory=dict)
    signs_with: int | None = None
    """A version to sign with whatever was asked for: a service that errs, or lies."""

    def rotate(self) -> int:
        """Add a version, and return its number."""
        number = len(self.versions) + 1
        self.versions[number] = Ed25519PrivateKey.generate()
        return number

    def key(self) -> dict[str, object]:
        """As `GET transit/keys/NAME` answers."""
        publics = {
            str(number): {
                "public_key": b64encode(
                    key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
                ).decode()
            }
            for number, key in self.versions.items()
        }
        return {"data": {"keys": publics, "type": "ed25519"}}

    def sign(self, version: int, data: bytes) -> dict[str, object]:
        """As `POST transit/sign/NAME` answers."""
        number = version if self.signs_with is None else self.signs_with
        signature = b64encode(self.versions[number].sign(data)).decode()
        return {"data": {"signature": f"vault:v{version}:{signature}"}}


@contextmanager
def vault() -> Iterator[Vault]:
    """A stand-in on a port of this host, with one version of one key, `issuer`."""
    found = Vault()
    found.rotate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(self.path == "/v1/transit/keys/issuer", found.key)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(
                self.path == "/v1/transit/sign/issuer",
                lambda: found.sign(asked["key_version"], b64decode(asked["input"])),
            )

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def _answer(self, known: bool, make: object) -> None:  # noqa: FBT001 - as the two callers read best
            permitted = self.headers.get("X-Vault-Token") == TOKEN
            status = 403 if not permitted else 200 if known else 404
            answer = make() if status == 200 else {"errors": ["permission denied"] if status == 403 else []}  # type: ignore[operator]
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
