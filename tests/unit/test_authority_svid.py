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
from cryptography.x509 import load_pem_x509_certificate

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import Identity, format_time, parse_statement, parse_time
from egs_kernel.audit.entries import Issuance, Submission
from egs_kernel.authority.approvals import sign_approval
from egs_kernel.authority.askers import Asker
from egs_kernel.authority.drafts import Draft
from egs_kernel.authority.intent import IntentDocument, NamedFile
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.errors import EgsError, Refused, Unreachable
from egs_kernel.model import ProgramKind, Reason
from egs_kernel.sslib import Signer
from egs_kernel.trust.store import Role
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


def test_an_artifact_ends_with_the_svid_that_it_is_for(served: Served) -> None:
    """What was asked for is an upper bound: five minutes here, an hour there."""
    end = int(time.time()) + 90
    for svid, expected in ((token(served, exp=end), end), (token(served, exp=end + 86400), None)):
        answer = ask(served.home.paths, "POST", "/v1/requests", body_of("/bin/true"), svid=svid)
        start, found = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate.window
        assert format_time(found) == answer["notAfter"] == served.home.of(Issuance)[-1].until
        asked = start + timedelta(minutes=5)
        assert found == (asked if expected is None else datetime.fromtimestamp(expected, UTC))
    remote = served.client(OURS, AGENT)  # for five minutes
    body = body_of("/bin/true", host="host-7", validFor=3600)
    answer = ask(served.home.paths, "POST", "/v1/requests", body, remote=remote)
    leaf = load_pem_x509_certificate(remote.certificate.read_bytes())
    assert parse_time(answer["notAfter"]) == leaf.not_valid_after_utc


def test_what_is_approved_too_late_for_the_svid_is_not_issued() -> None:
    """The end of the SVID is kept with what waits, over a restart."""
    with home() as made:
        made.paths.bundles.mkdir(mode=0o755)
        OURS.write(made.paths.bundles)
        people = [made.trust(name, Role.APPROVER) for name in ("ann", "bob")]
        made.start()
        host = made.ask("GET", "/v1/status")["host"]
        now = int(time.time())
        svid = OURS.token(aud=[f"egs-kernel/{host}"], iat=now - 5, exp=now + 600)
        long = body_of("/bin/echo", validFor=3600)
        early = ask(made.paths, "POST", "/v1/requests", long, svid=svid)
        assert parse_time(early["until"]) == datetime.fromtimestamp(now + 600, UTC)  # and not an hour
        late = ask(made.paths, "POST", "/v1/requests", body_of("/bin/echo", purpose="another"), svid=svid)
        made.stop()
        made.start()

        def approve(answer: dict[str, Any], signer: Signer, when: datetime) -> dict[str, Any]:
            body = sign_approval(
                signer,
                request=answer["request"],
                digest=answer["intentDigest"],
                approves=True,
                now=when,
                valid_for=timedelta(minutes=2),
            )
            return ask(made.paths, "POST", f"/v1/requests/{answer['request']}/approvals", body)

        approve(early, people[0], datetime.now(UTC))
        issued = approve(early, people[1], datetime.now(UTC))
        predicate = parse_statement(parse_envelope(issued["artifact"].encode()).payload).predicate
        assert predicate.identity is not None
        assert predicate.identity.spiffe_id == AGENT
        assert predicate.window[1] == datetime.fromtimestamp(now + 600, UTC)
        approve(late, people[0], datetime.now(UTC))
        made.stop()
        made.start(first="import time; real = time.time; time.time = lambda: real() + 600")
        with pytest.raises(EgsError, match="waited until"):
            approve(late, people[1], datetime.now(UTC) + timedelta(seconds=600))


def test_a_draft_ends_with_its_svid_or_is_refused() -> None:
    now = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)
    program = NamedFile(path="/bin/true", sha256="ab" * 32)
    intent = IntentDocument(program=program, argv=("true",), valid_for=300)

    def end(seconds: float | None) -> datetime:
        expires = None if seconds is None else now + timedelta(seconds=seconds)
        asker = Asker(principal="user:root", name="root", spiffe_id=AGENT, expires=expires)
        return Draft(asker=asker, intent=intent, kind=ProgramKind.NATIVE).end(now)

    assert [(end(seconds) - now).total_seconds() for seconds in (None, 301, 300, 299, 1)] == [
        300,
        300,
        300,
        299,
        1,
    ]
    for seconds in (0.9, 0, -1):
        with pytest.raises(Refused) as caught:
            end(seconds)
        assert caught.value.reason is Reason.SVID_EXPIRED


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
