"""The authority over HTTPS: who has a client certificate of the right kind; and its API against its OpenAPI document."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.failures import FailureGroup

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import format_time, parse_statement
from egs_kernel.audit.entries import Issuance
from egs_kernel.authority import openapi
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.errors import EgsError, Unreachable
from egs_kernel.trust.store import Role
from tests.authorities import BUILDER, Home, body_of, home
from tests.certificates import Certificates, uri


@dataclass(frozen=True)
class Served:
    """An authority that listens on HTTPS, and a client's certificate."""

    home: Home
    url: str
    remote: Remote
    certificates: Certificates
    session: requests.Session

    @property
    def call(self) -> dict[str, Any]:
        """How schemathesis is to call: on connections that stay open."""
        tls = {"cert": (str(self.remote.certificate), str(self.remote.key)), "verify": str(self.remote.ca)}
        return {"base_url": self.url, "session": self.session} | tls


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with home() as made:
        certificates = made.secure()
        made.start(listeners=2)
        with requests.Session() as session:
            yield Served(made, made.addresses[1], made.remote, certificates, session)


@pytest.fixture
def people(served: Served) -> Path:
    """The key of somebody who may approve."""
    served.home.trust("ann", Role.APPROVER)
    return served.home.root / "ann.key"


def asked(served: Served, **intent: Any) -> dict[str, Any]:
    body = body_of("/bin/true", **({"host": "host-7"} | intent))
    return ask(served.home.paths, "POST", "/v1/requests", body, remote=served.remote)


def test_a_certificate_says_which_workload_asks(served: Served) -> None:
    answer = asked(served)
    predicate = parse_statement(parse_envelope(answer["artifact"].encode()).payload).predicate
    assert predicate.identity is not None
    assert (predicate.identity.spiffe_id, predicate.identity.hosts) == (BUILDER, ("host-7",))
    assert served.home.of(Issuance)[-1].principal == f"workload:{BUILDER}"


def test_another_host_has_to_be_named(served: Served) -> None:
    with pytest.raises(EgsError, match="no host was named"):
        asked(served, host=None)


def test_the_command_asks_over_https(served: Served, tmp_path: Path) -> None:
    remote = served.remote
    files = ("--certificate", remote.certificate, "--certificate-key", remote.key, "--ca", remote.ca)
    out = tmp_path / "artifact.json"
    done = served.home.egs(
        *("request", "--authority", served.url, *map(str, files), "--host", "host-7", "--out", str(out)),
        *("--", "/bin/true"),
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()


@pytest.fixture
def named(served: Served) -> Iterator[Callable[..., None]]:
    """Has egs.toml name the authority."""
    file = served.home.paths.config
    before = file.read_text()

    def name(**changes: str) -> None:
        file.write_text(before + served.home.named(**changes))

    yield name
    file.write_text(before)


def test_the_commands_ask_the_authority_of_egs_toml(
    served: Served, named: Callable[..., None], people: Path
) -> None:
    named()
    egs = served.home.egs
    done = egs("request", "--json", "--", "/bin/true")
    assert done.returncode == 0, done.stderr
    identity = parse_statement(parse_envelope(json.loads(done.stdout)["artifact"].encode()).payload)
    assert identity.predicate.identity is not None
    assert (identity.predicate.identity.spiffe_id, identity.predicate.identity.hosts) == (
        BUILDER,
        ("test-host",),
    )
    assert json.loads(egs("authority", "status", "--json").stdout)["host"] == "test-host"
    waits = egs("request", "--json", "--", "/bin/echo")
    assert (waits.returncode, json.loads(waits.stdout)["error"]["reason"]) == (1, "approval_required")
    (waiting,) = json.loads(egs("approvals", "--json").stdout)["waiting"]
    assert waiting["principal"] == f"workload:{BUILDER}"
    approved = egs("approve", waiting["request"], "--key", str(people))
    assert (approved.returncode, approved.stdout.splitlines()[-1]) == (0, "counted: 1 of 2 approvals")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"key": "/nowhere.key"}, 2, "/nowhere.key or"),
        ({"key": "{}/server.key"}, 2, "server.key or"),
        ({"ca": "{}/client.pem"}, 4, "certificate verify failed"),
        ({"url": "https://127.0.0.1:9"}, 4, "Look whether it runs there"),
    ],
)
def test_what_egs_toml_cannot_say(
    served: Served, named: Callable[..., None], changes: dict[str, str], code: int, said: str
) -> None:
    named(**{name: value.format(served.home.root) for name, value in changes.items()})
    done = served.home.egs("request", "--", "/bin/true")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "alternatives"),
    [("nobody", ()), ("dns", ("https://example.org/x",)), ("two", (BUILDER, "spiffe://example.org/other"))],
)
def test_a_certificate_without_one_spiffe_id(
    served: Served, name: str, alternatives: tuple[str, ...]
) -> None:
    certificate, key = served.certificates.issue(name, *map(uri, alternatives))
    with pytest.raises(Unreachable):
        ask(
            served.home.paths,
            "GET",
            "/v1/status",
            remote=Remote(served.url, certificate, key, served.remote.ca),
        )
    assert "SPIFFE id" in served.home.log()


def test_a_certificate_of_somebody_else_or_none(served: Served, tmp_path: Path) -> None:
    certificate, key = Certificates.make(tmp_path).issue("client", uri(BUILDER))
    with pytest.raises(Unreachable):
        ask(
            served.home.paths,
            "GET",
            "/v1/status",
            remote=Remote(served.url, certificate, key, served.remote.ca),
        )
    with pytest.raises((requests.exceptions.ConnectionError, ssl.SSLError)):
        requests.get(f"{served.url}/v1/status", verify=str(served.remote.ca), timeout=10)


# -- against the OpenAPI document ------------------------------------------------------------------


ONE_IN = 15
"""schemathesis makes 1,200 cases by going through the schemas. All of them passed; here it is one in so many, always the same."""
NUMBERS = count()


def whole(value: Any) -> Any:
    """JSON Schema takes 1.0 for an integer. In the record, and so here, there are no floats (RFC 8785)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def document() -> schemathesis.schemas.BaseSchema:
    """The document, and what of it is no finding."""
    found = schemathesis.openapi.from_dict(json.loads(openapi.document()))
    # What violates the schema by its size is refused by its size.
    found.config.checks.negative_data_rejection.expected_statuses = ["400", "403", "404", "405", "413"]
    return found


schema = document()


@schema.parametrize()
@settings(
    max_examples=10,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_api_is_what_its_document_says(case: schemathesis.Case[Any], served: Served) -> None:
    if next(NUMBERS) % ONE_IN:
        return
    case.body = whole(case.body)
    if isinstance(case.body, dict) and isinstance(case.body.get("askedAt"), str):
        case.body["askedAt"] = format_time(datetime.now(UTC))  # any other time ends it there
    case.call_and_validate(**served.call)


def test_a_document_that_says_something_else_is_found(served: Served) -> None:
    changed = json.loads(openapi.document())
    del changed["paths"]["/v1/status"]["get"]["responses"]["200"]
    operation = schemathesis.openapi.from_dict(changed)["/v1/status"]["GET"]
    with pytest.raises(FailureGroup, match="distinct failure"):
        operation.Case().call_and_validate(**served.call)
