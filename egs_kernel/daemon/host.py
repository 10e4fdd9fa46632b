"""What the verifier is told about this host: configuration, trust, policy, posture, clock.

`Settings` come from files and are replaced all at once by a reload, or not at all. `Host` adds what is
observed while the daemon runs.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import ConfigurationChange, ScopeState
from egs_kernel.audit.lines import posture_digest, posture_entry
from egs_kernel.audit.witnesses import Witness, witnesses_of
from egs_kernel.checks.policy import policy_revocation
from egs_kernel.checks.revocation import revocation_of, without
from egs_kernel.config import Config, parse_config, read_config
from egs_kernel.constraints.attest import require_attestation
from egs_kernel.constraints.injection import may_inject
from egs_kernel.constraints.namespaces import may_isolate
from egs_kernel.constraints.reach import enforceable
from egs_kernel.constraints.rulesets import kernel_abi
from egs_kernel.daemon.known import Known
from egs_kernel.daemon.policy import Policy
from egs_kernel.daemon.workloads import Workloads
from egs_kernel.errors import GateError, HostLacks
from egs_kernel.gate.cgroups import cgroup_id, cgroup_mount
from egs_kernel.gate.parts import links_of
from egs_kernel.gate.seal import boot_now
from egs_kernel.gate.trees import controllers_of
from egs_kernel.hostkey import open_host_key
from egs_kernel.model import HostFacts, Posture, Reason, Tier
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.posture import EMPTY_POLICY, host_id, read_posture
from egs_kernel.trust.store import TrustStore

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.audit.entries import Peer, PostureEntry
    from egs_kernel.gate.pins import Gate
    from egs_kernel.paths import Paths
    from egs_kernel.verify import Artifact

_MANIFEST_LIMIT: Final = 64 * 1024
_CLOCK_TOLERANCE: Final = 100_000_000
"""Nanoseconds that CLOCK_REALTIME may slew before windows are computed again."""


@dataclass(frozen=True)
class Settings:
    """Everything that a reload reads."""

    config: Config
    config_digest: str
    trust: TrustStore
    policy_digest: str
    host_id: str
    host_key: str
    witnesses: tuple[Witness, ...]

    @classmethod
    def load(cls, paths: Paths, policy_digest: str = EMPTY_POLICY) -> Settings:
        """Read configuration and trust store.

        Args:
            paths: where they are.
            policy_digest: of the active policy set; its file is read by activating.py.

        Raises:
            UsageError: one of them is missing, unsafe or wrong.
        """
        if os.path.lexists(paths.policy):
            require_private_folder(paths.policy)
        content = read_config(paths.config)
        config = parse_config(content, str(paths.config))
        host = host_id(config)
        return cls(
            config=config,
            config_digest=hashlib.sha256(content).hexdigest(),
            trust=TrustStore.load(paths.trust),
            policy_digest=policy_digest,
            host_id=host,
            host_key=open_host_key(paths.host_keys, host),
            witnesses=witnesses_of(config.witnesses),
        )

    def entry(self, cause: str, peer: Peer | None = None) -> ConfigurationChange:
        """The entry that says that these are in force from now on."""
        return ConfigurationChange(
            action="applied",
            cause=cause,
            peer=peer,
            config_digest=self.config_digest,
            policy_digest=self.policy_digest,
            trusted_keys=tuple(sorted(self.trust.keys)),
            scopes=tuple(
                ScopeState(scope.name, scope.mode, scope.on_missing) for scope in self.config.scopes
            ),
        )


class _Manifest(msgspec.Struct, frozen=True):
    programs: dict[str, str]


def expected_programs(manifest: Path) -> dict[str, str]:
    """The program tags that `egs gate load` noted.

    Raises:
        GateError: there is no such note: the gate was not loaded by `egs gate load` since the boot.
    """
    try:
        return msgspec.json.decode(read_private_file(manifest, _MANIFEST_LIMIT), type=_Manifest).programs
    except (OSError, msgspec.DecodeError) as error:
        raise GateError(
            Reason.GATE_NOT_LOADED,
            f"{manifest} does not say what was loaded: {error}",
            "Run as root: egs gate unload && egs gate load",
        ) from error


class Host:
    """Settings in force and what is observed: the daemon's single source of `HostFacts`."""

    def __init__(
        self,
        paths: Paths,
        gate: Gate,
        settings: Settings,
        known: Known | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._gate = gate
        self.policy = policy or Policy()
        self.known = known or Known()
        self._pins = paths.pins
        self._pinned = _inode(paths.pins)
        self._expected = expected_programs(paths.gate_manifest)
        self.settings = settings
        self.workloads = Workloads(paths.bundles, settings.host_id)
        self.clock_offset = clock_offset()
        self.enforceable, self.lacks = _enforceable(gate.tier)
        self.unseen = ""
        """Why refusals by constraints are not seen here; they are enforced all the same."""
        self.posture = self._read_posture()

    @property
    def healthy(self) -> bool:
        """Whether anything may be authorized."""
        return not self.posture.problems

    @property
    def posture_digest(self) -> str:
        """What decisions cite."""
        return posture_digest(self.posture)

    def posture_entry(self) -> PostureEntry:
        """The entry that holds what `posture_digest` cites."""
        return posture_entry(self.posture)

    def next_boundary(self, moment: datetime) -> datetime | None:
        """When the validity of a trusted key, or of a revocation list, next begins or ends after `moment`."""
        keys = self.settings.trust.keys.values()
        edges = [edge for key in keys for edge in (key.not_before, key.not_after) if edge is not None]
        stale = self.known.next_boundary(self.settings.config.revocation, moment)
        edges += [] if stale is None else [stale]
        return min((edge for edge in edges if edge > moment), default=None)

    def refresh_posture(self) -> bool:
        """Look again; whether it changed."""
        before, self.posture = self.posture, self._read_posture()
        return self.posture != before

    def refresh_clock(self) -> bool:
        """Look at the clocks again; whether CLOCK_REALTIME was stepped."""
        offset = clock_offset()
        if abs(offset - self.clock_offset) <= _CLOCK_TOLERANCE:
            return False
        self.clock_offset = offset
        return True

    def boot_time(self, moment: datetime) -> int:
        """A moment as CLOCK_BOOTTIME nanoseconds."""
        return int(moment.timestamp() * 1e9) - self.clock_offset

    def real_time(self, boot: int) -> datetime:
        """CLOCK_BOOTTIME nanoseconds as a moment."""
        return datetime.fromtimestamp((boot + self.clock_offset) / 1e9, UTC)

    def trust_for(self, scope: str) -> TrustStore:
        """Who is trusted, less the keys that were revoked for this scope."""
        return without(self.settings.trust, self.known.of(scope).key)

    def policy_revocation(self, scope: str) -> str:
        """Why the active policy set authorizes nothing in a scope any more; "": nobody took it back, or the scope is under none."""
        if not self.policy.governs(scope):
            return ""
        trust, revoked = self.settings.trust, self.known.of(scope)
        return policy_revocation(self.policy.digest, self.policy.signers, trust, revoked, scope)

    def policy_revocations(self) -> dict[str, str]:
        """Scopes of this host in which the active policy set was taken back, and why."""
        found = {scope.name: self.policy_revocation(scope.name) for scope in self.settings.config.scopes}
        return {scope: why for scope, why in found.items() if why}

    def is_revoked(self, artifact: Artifact) -> bool:
        """Whether an artifact was taken back, or anything that it hangs on."""
        ties = artifact.ties
        return (
            bool(self.policy_revocation(ties.scope))
            or revocation_of(ties, self.known.of(ties.scope), self.settings.host_id) is not None
        )

    def facts(self, artifact: Artifact, *, uses: dict[str, int]) -> HostFacts:
        """What `verify.authorize` needs for `artifact`."""
        scope = artifact.statement.predicate.scope.name
        knowledge = self.known.knowledge(scope, self.settings.config.revocation, now())
        identity = artifact.statement.predicate.identity
        users = () if identity is None or identity.user is None else (identity.user,)
        groups = () if identity is None else (group for group in identity.groups if isinstance(group, str))
        config = self.settings.config
        return HostFacts(
            host_id=self.settings.host_id,
            host_key=self.settings.host_key,
            labels=frozenset(config.host_labels),
            scopes=frozenset(scope.name for scope in config.scopes),
            policy_digest=self.settings.policy_digest,
            policy_required=self.policy.governs(scope),
            policy_problem=self.policy.problem if self.policy.governs(scope) else "",
            policy_revoked=self.policy_revocation(scope),
            posture=self.posture,
            revoked=self.known.of(scope),
            revocations_problem=knowledge.problem,
            revocations_until=knowledge.until,
            uses=uses,
            enforceable=self.enforceable,
            boot_offset=self.clock_offset,
            users={name: uid for name in users if (uid := _user_id(name)) is not None},
            group_ids={name: gid for name in groups if (gid := _group_id(name)) is not None},
        )

    def _read_posture(self) -> Posture:
        posture = read_posture(
            tier=self._gate.tier,
            gate_programs=self._gate.programs(),
            expected_programs=self._expected,
            policy_digest=self.settings.policy_digest,
        )
        problems = posture.problems + self._pin_problems()
        seal = self._gate.seal
        word = "unsealed" if seal is None else seal.state().word(boot_now())
        return msgspec.structs.replace(posture, problems=problems, seal=word)

    def _pin_problems(self) -> tuple[str, ...]:
        """We hold the gate's maps open; that says nothing about whether it is still attached."""
        found = _inode(self._pins)
        if found is None:
            return ("the gate was unloaded: run egs gate load, then restart egsd",)
        if found != self._pinned:
            return ("another gate was loaded: restart egsd",)
        missing = [name for name in links_of(self._gate.tier) if not (self._pins / f"link_{name}").exists()]
        if any(scope.holds for scope in self.settings.config.scopes):
            missing += self._gate.holds.missing_guards()
        return tuple(f"gate program {name} is not attached" for name in missing)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def clock_offset() -> int:
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now() -> datetime:
    """The time that windows are compared with."""
    return datetime.now(UTC)


def _enforceable(tier: Tier) -> tuple[frozenset[str], str]:
    """What this host can enforce of the constraints, and in words why it cannot attest any system call filter."""
    by_gate = frozenset({"code.anonymous"}) if tier is Tier.LSM else frozenset()
    try:
        require_attestation()
    except HostLacks as error:
        return by_gate, error.message
    by_itself = enforceable(kernel_abi(), namespaces=may_isolate()) if may_inject() else frozenset()
    return by_gate | by_itself | {"syscalls", "process", "resources"} | _tree_limits(), ""


def _tree_limits() -> frozenset[str]:
    """What can be limited of an execution as a whole."""
    try:
        mount = cgroup_mount()
    except HostLacks:
        return frozenset()
    words = {"memory": "resources.memory", "pids": "resources.processes", "cpu": "resources.cpuPercent"}
    return frozenset({"resources.wallSeconds"} | {words[name] for name in controllers_of(mount)})


def _user_id(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def cgroup_number(path: str | None) -> int | None:
    """The kernel's id of the cgroup at `path`, below the cgroup v2 mount; None when there is no such cgroup."""
    if path is None:
        return None
    try:
        return cgroup_id(cgroup_mount() / path.lstrip("/"))
    except OSError:
        return None
