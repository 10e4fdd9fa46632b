"""A sealed system for tests: maintenance keys, artifacts made on the spot, and a way back whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.artifact.envelope import sign
from egs_kernel.artifact.maintenance import MaintenancePredicate, maintenance_statement
from egs_kernel.artifact.statement import encode_statement, format_time
from egs_kernel.gate.cgroups import cgroup_mount
from egs_kernel.trust.keys import load_private
from tests.harness import BIN, Cgroup, Instance
from tests.reaper import UNSEAL
from tests.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST: Final = "test-host"


class Sealed:
    """A running system whose gate can be sealed, and its maintenance keys `keeper` and `other`."""

    def __init__(self, running: Running, cgroup: Cgroup) -> None:
        self.running = running
        self.instance = running.instance
        self.cgroup = cgroup
        self._known: str | None = None  # how the gate is, as far as we have made it so: asking takes a while
        cgroup.folder.mkdir()

    @staticmethod
    def trust(running: Running, name: str, role: str = "maintenance") -> None:
        """Make a key and trust it."""
        egs, folder = running.instance.egs, running.folder
        egs("keys", "generate", "--name", name, "--out", str(folder))
        egs("trust", "add", str(folder / f"{name}.pub"), "--role", role, "--scope", "maintenance")

    @property
    def pid(self) -> int:
        """The daemon."""
        return self.running.pid

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon says."""
        answer: dict[str, Any] = json.loads(self.instance.egs("status", "--json").stdout)
        return answer

    def artifact(
        self,
        *keys: str,
        start: float = -60,
        end: float = 3600,
        host: str = HOST,
        purpose: str = "a test",
        name: str = "maintenance.json",
    ) -> Path:
        """A maintenance artifact; `start` and `end` are seconds from now on."""
        now = datetime.now(UTC)
        predicate = MaintenancePredicate(
            issued_at=format_time(now + timedelta(seconds=min(start, 0))),
            not_before=format_time(now + timedelta(seconds=start)),
            not_after=format_time(now + timedelta(seconds=end)),
            purpose=purpose,
            operator="the tests",
        )
        signers = [load_private(self.running.folder / f"{key}.key") for key in keys or ("keeper",)]
        path = self.running.folder / name
        path.write_bytes(sign(encode_statement(maintenance_statement((host,), predicate)), signers))
        return path

    def seal(self) -> None:
        """Seal the gate; nothing when it is."""
        if self._known != "sealed":
            self.instance.egs("seal")
            self._known = "sealed"

    def unseal(self, artifact: Path) -> subprocess.CompletedProcess[str]:
        """Ask for it."""
        self._known = None
        return self.instance.egs("unseal", str(artifact), check=False)

    def lift(self, seconds: float = 3600) -> None:
        """Lift the seal; nothing when it is lifted for long."""
        if self._known == "lifted":
            return
        if self.status["seal"] == "sealed":
            done = self.unseal(self.artifact(end=seconds, purpose=f"until {datetime.now(UTC)}"))
            assert done.returncode == 0, done.stderr
            self._known = "lifted" if seconds > 600 else None

    def start(self, *prefix: str) -> None:
        """Start the daemon, by a command before it, in a cgroup by which it can be killed while it is protected."""
        self.running.start(*prefix)
        self._known = None  # its configuration may seal
        self.cgroup.procs.write_text(f"{self.pid}\n")

    def crash(self) -> None:
        """Kill the daemon by what stays open."""
        (self.cgroup.folder / "cgroup.kill").write_text("1")
        assert self.running.daemon is not None
        self.running.daemon.wait()

    def impostor(self, *before: str, **environment: str) -> subprocess.Popen[str]:
        """The daemon's program with its arguments, started by somebody else."""
        return subprocess.Popen(
            [*before, str(BIN / "egsd"), "--foreground"],
            env=self.instance.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        """Undo the seal, so that everything else can be undone."""
        daemon = self.running.daemon
        assert daemon is not None
        if daemon.poll() is not None:
            self.running.start()
        self.lift()
        self.running.close()
        self.cgroup.folder.rmdir()


@contextlib.contextmanager
def sealable_host(folder: Path) -> Iterator[Sealed]:
    """A running system of its own, with maintenance keys, not sealed yet. What is sealed is unsealed at the end."""
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    instance = Instance.create(folder / "egs")
    try:
        work = folder / "work"
        work.mkdir(mode=0o755)
        running = Running(instance, work)
        loaded = json.loads(instance.egs("doctor", "--json").stdout)
        assert loaded["seal"] == "unsealed", loaded
        for name in ("keeper", "other"):
            Sealed.trust(running, name)
        Sealed.trust(running, "issuing", role="issuer")
        instance.egs("keys", "generate", "--name", "stranger", "--out", str(work))
        instance.egs("reload")
        name = f"egs-sealed-{os.getpid()}"
        sealed = Sealed(running, Cgroup(f"/{name}", cgroup_mount() / name))
        (instance.root / UNSEAL).write_bytes(sealed.artifact("keeper", "other", end=86400).read_bytes())
        sealed.cgroup.procs.write_text(f"{running.pid}\n")
        try:
            yield sealed
        finally:
            sealed.close()
    finally:
        instance.close()
