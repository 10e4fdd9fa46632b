"""A workload from its SVID to its exec: the authority names it, the artifact is for it, the node asks policy about it again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.statement import parse_statement
from egs_kernel.audit.entries import Issuance, Request
from egs_kernel.trust import keys, store
from tests.authorities import AUTHORITY, Home
from tests.running import Running, running_on_disk
from tests.svids import AGENT, DOMAIN, TrustDomain

pytestmark = pytest.mark.kernel

OURS = TrustDomain()
POLICY = f'@id("agent") permit(principal == Workload::"{AGENT}", action, resource);\n'


@pytest.fixture(scope="module")
def home() -> Home:
    """The authority, once it runs."""
    return Home(Path())


@pytest.fixture(scope="module")
def system(home: Home) -> Iterator[Running]:
    """A host with gate, daemon, authority, and a policy set that permits one workload everything."""
    with running_on_disk() as running:
        home.root, paths = running.instance.root, running.instance.paths
        OURS.write(_folder(paths.bundles))
        signer = keys.generate(keys.Algorithm.HYBRID)
        state = _folder(paths.authority_state, 0o700)
        keys.write_pair(signer, state, "issuer")
        roles, scopes = frozenset({store.Role.ISSUER}), frozenset({"test"})
        store.add(paths.trust, store.TrustedKey(key=signer.public_key, roles=roles, scopes=scopes))
        home.secure(AGENT)
        for owned in (_folder(paths.authority_socket.parent), state, *state.iterdir()):
            os.chown(owned, AUTHORITY, AUTHORITY)
        _permit(running)
        home.start(listeners=2)
        try:
            yield running
        finally:
            home.stop()


def _folder(path: Path, mode: int = 0o755) -> Path:
    path.mkdir(parents=True, mode=mode, exist_ok=True)
    return path


def _permit(running: Running) -> None:
    egs, folder = running.instance.egs, running.folder
    egs("keys", "generate", "--name", "policy", "--out", str(folder))
    egs("trust", "add", str(folder / "policy.pub"), "--role", "policy", "--scope", "test")
    egs("reload")
    source = _folder(folder / "set")
    (source / "policy.toml").write_text('name = "tests"\nversion = 1\nscopes = ["test"]\n')
    (source / "a.cedar").write_text(POLICY)
    signed = str(folder / "set.json")
    egs("policy", "sign", str(source), "--key", str(folder / "policy.key"), "--out", signed)
    egs("policy", "activate", "--anyway", signed)


def svid(system: Running, **claims: Any) -> str:
    """A JWT-SVID for this host, in a file."""
    now = int(time.time())
    host = json.loads(system.instance.egs("status", "--json").stdout)["details"]["host_id"]
    path = system.folder / "svid"
    path.write_text(OURS.token(**{"aud": [f"egs-kernel/{host}"], "iat": now - 5, "exp": now + 300, **claims}))
    return str(path)


def test_a_workload_runs_what_policy_permits_it(system: Running) -> None:
    program = system.copy("/bin/true", "program")
    ended = system.run("--svid", svid(system), "--", str(program))
    assert ended.returncode == 0, ended.stderr
    assert system.entries(Request)[-1].intent.spiffe_id == AGENT


def test_its_user_alone_and_another_workload_run_nothing(system: Running) -> None:
    program = system.copy("/bin/true", "other")
    for options in ((), ("--svid", svid(system, sub=f"spiffe://{DOMAIN}/other"))):
        ended = system.run(*options, "--", str(program))
        assert (ended.returncode, "[policy_denied]" in ended.stderr) == (126, True), ended.stderr
    ended = system.run("--svid", svid(system, exp=int(time.time()) - 1), "--", str(program))
    assert (ended.returncode, "[svid_expired]" in ended.stderr) == (126, True), ended.stderr


def test_over_https_it_is_the_same(system: Running, home: Home) -> None:
    """The authority that egs.toml names is asked by the certificate; the token says to egsd who launches."""
    program, config = system.copy("/bin/true", "far"), system.instance.paths.config
    before, token = config.read_text(), svid(system)
    try:
        config.write_text(before + home.named(svid=token))
        ended = system.run("--", str(program))
        assert ended.returncode == 0, ended.stderr
        issuance = home.of(Issuance)[-1]
        assert (issuance.action, issuance.principal, issuance.peer) == ("issued", f"workload:{AGENT}", None)
        ended = system.run("--", str(system.copy("/bin/false", "no")))
        assert ended.returncode == 1, "it is the program's own"
        config.write_text(before + home.named())
        ended = system.run("--", str(program))
        assert (ended.returncode, "egs run --svid FILE" in ended.stderr) == (126, True), ended.stderr
        assert system.run("--svid", token, "--", str(program)).returncode == 0
        config.write_text(before + home.named(svid=token, ca=str(home.remote.certificate)))
        ended = system.run("--", str(program))
        assert (ended.returncode, "[authority_unreachable]" in ended.stderr) == (4, True), ended.stderr
    finally:
        config.write_text(before)


def test_an_enrolled_host_is_known_by_its_key(system: Running, home: Home) -> None:
    """Egsd signs who asks here; the authority, elsewhere, believes this host's key and gives an artifact for it alone."""
    program, config = system.copy("/bin/true", "enrolled"), system.instance.paths.config
    details = json.loads(system.instance.egs("status", "--json").stdout)["details"]
    (key,) = system.instance.paths.host_keys.iterdir()
    public = str(system.folder / "host.pub")
    before, settings = config.read_text(), system.instance.paths.authority_config.read_text()

    def launch() -> subprocess.CompletedProcess[str]:
        """By an authority that has read everything anew."""
        home.stop()
        home.start(listeners=2)
        config.write_text(before + home.named(svid=svid(system)))
        return system.run("--", str(program))

    try:
        system.instance.paths.authority_config.write_text(f"{settings}enrolled_hosts = true\n")
        ended = launch()
        assert (ended.returncode, "[key_untrusted]" in ended.stderr) == (126, True), ended.stderr
        system.instance.egs("keys", "public", "--key", str(key), "--out", public)
        named = ("--role", "host", "--scope", "*", "--name", details["host_id"])
        system.instance.egs("trust", "add", public, *named)
        ended = launch()
        assert ended.returncode == 0, ended.stderr
        issued = parse_statement(parse_envelope(home.of(Issuance)[-1].envelope.encode()).payload)
        assert issued.predicate.identity is not None
        assert issued.predicate.identity.hosts == (details["host_key"],)
        system.instance.egs("trust", "revoke", details["host_key"])
        ended = launch()
        assert (ended.returncode, "[key_not_valid_now]" in ended.stderr) == (126, True), ended.stderr
    finally:
        config.write_text(before)
        system.instance.paths.authority_config.write_text(settings)
