"""Where everything lives. `EGS_ROOT=DIR` relocates all of it under DIR and names the pin folder."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

BPFFS = Path("/sys/fs/bpf")


@dataclass(frozen=True)
class Paths:
    """The files and folders of one instance of egs-kernel."""

    config_dir: Path
    run_dir: Path
    state_dir: Path
    pins: Path

    @classmethod
    def from_environment(cls) -> Paths:
        """The instance that `EGS_ROOT` names, or the host's own."""
        return cls.under(os.environ.get("EGS_ROOT") or None)

    @classmethod
    def under(cls, root: str | None) -> Paths:
        """The instance below `root`; None is the host's own (`/etc/egs`, `/run/egs`, `/var/lib/egs`)."""
        if root is None:
            return cls(Path("/etc/egs"), Path("/run/egs"), Path("/var/lib/egs"), BPFFS / "egs")
        base = Path(root).absolute()
        instance = hashlib.sha256(os.fsencode(base)).hexdigest()[:12]
        return cls(base / "etc/egs", base / "run/egs", base / "var/lib/egs", BPFFS / f"egs-{instance}")

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.config_dir / "egs.toml"

    @property
    def trust(self) -> Path:
        """The trust store: public keys with roles."""
        return self.config_dir / "trust"

    @property
    def policy(self) -> Path:
        """Where the active policy set is."""
        return self.config_dir / "policy"

    @property
    def policy_set(self) -> Path:
        """The active policy set: its signed form."""
        return self.policy / "active.json"

    @property
    def artifacts(self) -> Path:
        """Standing artifacts: the daemon follows this folder."""
        return self.config_dir / "artifacts"

    @property
    def socket(self) -> Path:
        """The daemon's Unix socket."""
        return self.run_dir / "egsd.sock"

    @property
    def daemon_lock(self) -> Path:
        """Locked (flock) by the one daemon of the instance."""
        return self.run_dir / "egsd.lock"

    @property
    def monitor_lock(self) -> Path:
        """The same by its monitor."""
        return self.run_dir / "monitor.lock"

    @property
    def gate_manifest(self) -> Path:
        """What `egs gate load` loaded: program tags, ABI version, kernel, boot id."""
        return self.run_dir / "gate.json"

    @property
    def record(self) -> Path:
        """The append-only record."""
        return self.state_dir / "record"

    @property
    def log_keys(self) -> Path:
        """The keys that sign the record's checkpoints."""
        return self.state_dir / "log-keys"

    @property
    def host_keys(self) -> Path:
        """The host's own key."""
        return self.state_dir / "host-keys"

    @property
    def bundles(self) -> Path:
        """Trust bundles, one a SPIFFE trust domain."""
        return self.config_dir / "bundles"

    @property
    def index(self) -> Path:
        """Indexes of the record, which can be deleted. No state: what a sealed gate keeps cannot be written."""
        return self.state_dir.parent.parent / "cache" / self.state_dir.name

    @property
    def cosigned(self) -> Path:
        """The latest checkpoint of the record that witnesses cosigned."""
        return self.state_dir / "cosigned"

    @property
    def witness_config(self) -> Path:
        """The configuration of a witness; on a host of its own, as a rule."""
        return self.config_dir / "witness.toml"

    @property
    def witness_state(self) -> Path:
        """The key of a witness, and what it cosigned last."""
        return self.state_dir.with_name("egs-witness")

    @property
    def authority_config(self) -> Path:
        """The configuration of the authority."""
        return self.config_dir / "authority.toml"

    @property
    def authority_state(self) -> Path:
        """The authority's own: its record, the record's keys, its key for artifacts, what it has to find again."""
        return self.state_dir.with_name("egs-authority")

    @property
    def authority_socket(self) -> Path:
        """The authority's Unix socket."""
        return self.run_dir.with_name("egs-authority") / "authority.sock"

    @property
    def revocations(self) -> Path:
        """Revoked artifact ids, one file each."""
        return self.state_dir / "revoked"

    @property
    def drift_rules(self) -> Path:
        """What is done about drift, and what is none."""
        return self.config_dir / "drift.toml"

    @property
    def metrics(self) -> Path:
        """The daemon's metrics, which `egs console serve` serves."""
        return self.run_dir / "metrics.prom"
