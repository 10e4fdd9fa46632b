"""The authority over HTTPS with X.509-SVIDs: trust bundles say who may name whom, not the handshake alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import Identity, parse_statement
from egs_kernel.audit.entries import Issuance, Submission
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.errors import EgsError, Unreachable
from egs_kernel.model import Reason
from tests.authorities import AUTHORITY, Home, body_of, home
from tests.certificates import Certificates, address
from tests.svids import AGENT, Shape, TrustDomain, certificate, new_key

HTTPS = """
[https]
listen = "127.0.0.1:0"
certificate = "{0}/server.pem"
key = "{0}/server.key"
"""
OURS, FOREIGN, STRANGER = TrustDomain(), TrustDomain(name="other.example"), TrustDomain()
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the authority runs as another user: needs root")


@dataclass(frozen=True)
class Served:
    """An authority that trusts two trust domains."""

    home: Home
    url: str

    def client(self, domain: TrustDomain, *uris: str) -> Remote:
        """A workload with an SVID of this domain, valid now."""
        now = datetime.now(UTC)
        key = new_key()
        shape = Shape(uris=uris, start=now - timedelta(minutes=1), end=now + timedelta(minutes=5))
        leaf = certificate(shape, key, domain.root)
        paths = self.home.root / "svid.pem", self.home.root / "svid.key"
        paths[0].write_bytes(leaf.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Remote(self.url, *paths, self.home.root / "ca.pem")

    def request(self, remote: Remote) -> str | None:
        """Ask for an artifact; the SPIFFE id in it."""
        body = body_of("/bin/true", host="host-7")
        answer = ask(self.home.paths, "POST", "/v1/requests", body, remote=remote)
        identity = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate.identity
        return None if identity is None else identity.spiffe_id


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with home() as made:
        Certificates.make(made.root).issue("server", address("127.0.0.1"))
        os.chown(made.root / "server.key", AUTHORITY, AUTHORITY)
        made.paths.bundles.mkdir(mode=0o755)
        for domain in (OURS, FOREIGN):
            domain.write(made.paths.bundles)
        made.settings(HTTPS.format(made.root))
        made.start(listeners=2)
        yield Served(made, made.addresses[1])


def test_a_workload_asks_with_its_svid(served: Served) -> None:
    assert served.request(served.client(OURS, AGENT)) == AGENT
    other = "spiffe://other.example/ci"
    assert served.request(served.client(FOREIGN, other)) == other


@pytest.mark.parametrize(
    ("domain", "uris"),
    [
        (FOREIGN, (AGENT,)),  # its handshake succeeds: the authority of another domain that is trusted
        (OURS, ("spiffe://other.example/ci",)),
        (STRANGER, (AGENT,)),
        (OURS, (AGENT, "spiffe://example.org/root")),
        (OURS, ("spiffe://example.org",)),
        (OURS, ()),
    ],
)
def test_nobody_is_named_by_somebody_else(domain: TrustDomain, uris: tuple[str, ...], served: Served) -> None:
    with pytest.raises(Unreachable):
        served.request(served.client(domain, *uris))


# -- a process of this host, with a JWT-SVID ---------------------------------------------------------


def token(served: Served, domain: TrustDomain = OURS, **claims: Any) -> str:
    """For this host, now, with these claims instead."""
    now = int(time.time())
    host = served.home.ask("GET", "/v1/status")["host"]
    return domain.token(**{"aud": [f"egs-kernel/{host}"], "iat": now - 5, "exp": now + 300, **claims})


def locally(served: Served, svid: str | None) -> Identity:
    answer = ask(served.home.paths, "POST", "/v1/requests", body_of("/bin/true"), svid=svid)
    identity = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate.identity
    assert identity is not None
    return identity


def test_a_process_asks_as_its_user_and_as_its_workload(served: Served) -> None:
    identity = locally(served, token(served))
    assert (identity.uid, identity.spiffe_id) == (os.geteuid(), AGENT)
    asked = served.home.of(Submission)[-1]
    assert (asked.spiffe_id, asked.principal) == (AGENT, "user:root")
    assert locally(served, None).spiffe_id is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda served: token(served, exp=int(time.time()) - 1), Reason.SVID_EXPIRED),
        (lambda served: token(served, aud=["egs-kernel/another"]), Reason.SVID_INVALID),
        (lambda served: token(served, STRANGER), Reason.SVID_INVALID),
        (lambda _served: "nonsense", Reason.SVID_INVALID),
        (lambda _served: "", Reason.SVID_INVALID),
    ],
)
def test_a_process_is_no_workload_by_a_bad_token(
    change: Callable[[Served], str], reason: Reason, served: Served
) -> None:
    with pytest.raises(EgsError) as caught:
        locally(served, change(served))
    assert caught.value.reason is reason
    assert served.home.of(Issuance)[-1].reason is reason


def test_a_certificate_and_a_token_are_one_too_many(served: Served) -> None:
    body = body_of("/bin/true", host="host-7")
    with pytest.raises(EgsError) as caught:
        ask(
            served.home.paths,
            "POST",
            "/v1/requests",
            body,
            remote=served.client(OURS, AGENT),
            svid=token(served),
        )
    assert caught.value.reason is Reason.NOT_PERMITTED


def test_the_command_shows_a_token(served: Served) -> None:
    svid, out = served.home.root / "token", served.home.root / "artifact.json"
    svid.write_text(token(served))
    asked = served.home.egs("request", "--svid", str(svid), "--out", str(out), "--", "/bin/true")
    assert asked.returncode == 0, asked.stderr
    assert AGENT in served.home.egs("show", str(out), "--json").stdout
    missing = served.home.egs("request", "--svid", str(svid) + "x", "--out", str(out), "--", "/bin/true")
    assert (missing.returncode, "[svid_invalid]" in missing.stderr) == (2, True)


def test_without_a_bundle_it_does_not_start(tmp_path: Path) -> None:
    with home() as made:
        Certificates.make(made.root).issue("server", address("127.0.0.1"))
        os.chown(made.root / "server.key", AUTHORITY, AUTHORITY)
        made.settings(HTTPS.format(made.root))
        with pytest.raises(AssertionError, match="no trust bundle"):
            made.start()
