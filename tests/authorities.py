"""Authorities that tests run: an instance with trust, a signed policy set and settings, and the real process as another user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.entries import EntryType
from egs_kernel.audit.reader import read
from egs_kernel.cli.asking import Remote, ask
from egs_kernel.cli.files import inspect_program
from egs_kernel.paths import Paths
from egs_kernel.policy.catalog import Catalog
from egs_kernel.policy.manifest import PAYLOAD_TYPE, TYPE, Manifest
from egs_kernel.policy.vocabulary import SCHEMA
from egs_kernel.sslib import Signer
from egs_kernel.trust import keys, store
from tests.certificates import Certificates, address, uri
from tests.running import disk_folder

AUTHORITY: Final = 64321
"""The user that it runs as where tests are root."""
NOBODY: Final = Catalog()
BUILDER: Final = "spiffe://example.org/ci/builder"
"""The workload whose certificate `Home.secure` makes."""
HTTPS: Final = """
[https]
listen = "127.0.0.1:0"
certificate = "{0}/server.pem"
key = "{0}/server.key"
client_ca = "{0}/ca.pem"
"""
SCOPES: Final = frozenset({"test"})
POLICY: Final = """
@id("anybody-true")
permit(principal, action == Action::"execute", resource) when { resource.path like "*/true" };

@id("two-people-echo")
permit(principal, action == Action::"execute", resource)
when { resource.path like "*/echo" && context.approvals >= 2 };

@id("never-rm") @advice("Nobody removes files here.")
forbid(principal, action == Action::"execute", resource) when { resource.path like "*/rm" };
"""
# Everything is imported while it may still be read: a checkout can lie where only root may go.
SERVE: Final = """
{first}
import encodings.idna, os, sys
import anyio._backends._asyncio, egs_kernel.cli.authority, egs_kernel.authority.process, egs_kernel.authority.server
import egs_kernel.trust.signers, uvicorn.lifespan.off
from egs_kernel.cli.main import run
{before}
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({user}); os.setuid({user})
sys.exit(run(["authority", *sys.argv[1:]]))
"""


@dataclass
class Home:
    """An instance of egs-kernel with an authority that can be started."""

    root: Path
    process: subprocess.Popen[str] | None = None
    addresses: list[str] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        """Where it lives."""
        return Paths.under(str(self.root))

    @property
    def environment(self) -> dict[str, str]:
        """What makes commands use it."""
        return os.environ | {"EGS_ROOT": str(self.root)}

    # -- the process -----------------------------------------------------------------------------

    def start(self, before: str = "", listeners: int = 1, first: str = "") -> None:
        """Start it, and return when it listens. `first`, `before`: Python that runs before our modules are imported, and after."""
        code = SERVE.format(first=first, before=before, user=AUTHORITY)
        with (self.root / "authority.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "serve"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
            )
        assert self.process.stdout is not None
        self.addresses = [self.process.stdout.readline().strip() for _ in range(listeners)]
        if not all(self.addresses):
            self.stop(signal.SIGKILL)
            raise AssertionError(self.log())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def log(self) -> str:
        """What it said."""
        return (self.root / "authority.log").read_text()

    def secure(self, workload: str = BUILDER) -> Certificates:
        """Have it listen on HTTPS as well, for one workload; what its certificates are made by."""
        certificates = Certificates.make(self.root)
        certificates.issue("server", address("127.0.0.1"))
        os.chown(self.root / "server.key", AUTHORITY, AUTHORITY)
        certificates.issue("client", uri(workload))
        self.settings(HTTPS.format(self.root))
        return certificates

    @property
    def remote(self) -> Remote:
        """It, as the workload reaches it over HTTPS."""
        folder = self.root
        return Remote(self.addresses[1], folder / "client.pem", folder / "client.key", folder / "ca.pem")

    def named(self, **changes: str) -> str:
        """What egs.toml says of it on the workload's host."""
        remote = self.remote
        said = {
            "url": remote.url,
            "certificate": str(remote.certificate),
            "key": str(remote.key),
            "ca": str(remote.ca),
        }
        lines = "\n".join(f'{name} = "{value}"' for name, value in (said | changes).items())
        return f"\n[authority]\n{lines}\n"

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, method: str, resource: str, body: object = None, key: str | None = None) -> dict[str, Any]:
        """Ask at the socket, as this process."""
        return ask(self.paths, method, resource, body, key=key)

    def request(self, program: str = "/bin/true", key: str | None = None, **intent: Any) -> dict[str, Any]:
        """Ask for an artifact."""
        return self.ask("POST", "/v1/requests", body_of(program, **intent), key)

    def egs(self, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run the real `egs` command."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "egs"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            user=user,
        )

    # -- what came of it -------------------------------------------------------------------------

    @property
    def record(self) -> Path:
        """The authority's record."""
        return self.paths.authority_state / "record"

    def entries(self) -> list[EntryType]:
        """Every entry of it."""
        return [recorded.entry for recorded in read(self.record)]

    def of(self, kind: type[Any]) -> list[Any]:
        """The entries of one type."""
        return [entry for entry in self.entries() if isinstance(entry, kind)]

    # -- what it goes by -------------------------------------------------------------------------

    def settings(self, more: str = "") -> None:
        """Write authority.toml."""
        head = 'default_scope = "test"\nrate = 100000\nburst = 100000\n'
        self.paths.authority_config.write_text(head + more)

    def trust(self, name: str, role: store.Role, **more: Any) -> Signer:
        """A new key with a role."""
        signer = keys.generate(keys.Algorithm.ED25519)
        keys.write_pair(signer, self.root, name)
        store.add(
            self.paths.trust,
            store.TrustedKey(
                key=signer.public_key, roles=frozenset({role}), scopes=SCOPES, name=name, **more
            ),
        )
        return signer

    def activate(self, text: str, signer: Signer, version: int = 1, catalog: Catalog = NOBODY) -> Manifest:
        """Sign a policy set and put it in force."""
        manifest = Manifest(
            type=TYPE,
            name="tests",
            version=version,
            scopes=("test",),
            policies={"a.cedar": text},
            schema=SCHEMA,
            catalog=catalog,
        )
        self.paths.policy.mkdir(mode=0o755, exist_ok=True)
        fresh = self.paths.policy / ".new"
        fresh.write_bytes(sign(manifest.payload, [signer], PAYLOAD_TYPE))
        fresh.rename(self.paths.policy_set)
        return manifest


def body_of(program: str = "/bin/true", argv: Sequence[str] = (), **intent: Any) -> dict[str, Any]:
    """The body of a request to execute a program that is here."""
    found = inspect_program(Path(program))
    said = {
        "program": {"path": str(found.path), "sha256": found.digest},
        "argv": list(argv or [program]),
        **intent,
    }
    return {"intent": said, "askedAt": format_time(datetime.now(UTC))}


@contextmanager
def home(policy: str = POLICY, more: str = "") -> Iterator[Home]:
    """An instance on a disk, with an authority that is not started yet."""
    with disk_folder() as folder:
        made = Home(folder)
        paths = made.paths
        for needed in (paths.config_dir, paths.run_dir, paths.authority_socket.parent, paths.trust):
            needed.mkdir(parents=True, mode=0o755)
        paths.authority_state.mkdir(parents=True, mode=0o700)
        paths.config.write_text('host_id = "test-host"\n')
        made.settings(more)
        signer = keys.generate(keys.Algorithm.ED25519)
        keys.write_pair(signer, paths.authority_state, "issuer")
        issuer = store.TrustedKey(
            key=signer.public_key, roles=frozenset({store.Role.ISSUER}), scopes=SCOPES, name="authority"
        )
        store.add(paths.trust, issuer)
        made.activate(policy, made.trust("policy", store.Role.POLICY))
        for owned in (paths.authority_socket.parent, paths.authority_state, *paths.authority_state.iterdir()):
            os.chown(owned, AUTHORITY, AUTHORITY)
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.stop(signal.SIGKILL)


@contextmanager
def serving(policy: str = POLICY, more: str = "") -> Iterator[Home]:
    """An authority that runs."""
    with home(policy, more) as made:
        made.start()
        yield made
