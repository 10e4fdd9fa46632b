"""`/etc/egs/egs.toml`: parsed strictly, once, into frozen types."""

from __future__ import annotations

import itertools
import re
import tomllib
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from egs_kernel.errors import UsageError
from egs_kernel.filesystems import KNOWN
from egs_kernel.model import Mode, OnMissing, Reason, Tier
from egs_kernel.ownership import read_private_file

CONFIG_LIMIT = 256 * 1024
MAX_SCOPES = 64
"""bpf/egs_abi.h EGS_MAX_SCOPES."""
MAX_LIBRARY_ROOTS = 64
"""bpf/egs_abi.h EGS_LIBRARY_FOLDERS."""

MAX_WITNESSES = 16
"""A checkpoint with all of their cosignatures is one that every verifier must accept (signed-note)."""


class DriftEvents(Enum):
    """What `egs gate load` does about the drift programs."""

    AUTO = "auto"  # it loads them where the kernel can have them, and says where it cannot
    REQUIRED = "required"  # without them it loads nothing
    OFF = "off"


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d)")
_HOLD_TIMEOUT = "60s"
_HOLD_LIMIT = 24 * 3600
"""Seconds. What nobody decided in a day is forgotten, not considered."""

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DURATION = 36525 * 86400
"""Seconds. Longer ones are mistakes, and so long ago, or so far ahead, is no date any more."""


class ScopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A set of processes that is governed: a cgroup subtree, binaries, or users; exactly one of them."""

    name: str
    cgroup: str | None = None
    binaries: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    mode: Mode = Mode.ENFORCE
    on_missing: OnMissing = OnMissing.KILL
    hold_timeout: str | None = None

    @property
    def holds(self) -> bool:
        """Whether an exec without a grant waits here for an authorization. Who only observes holds nobody."""
        return self.on_missing is OnMissing.HOLD and self.mode is Mode.ENFORCE

    @property
    def hold_seconds(self) -> int:
        """How long it waits."""
        return parse_duration(self.hold_timeout or _HOLD_TIMEOUT, f"scope {self.name!r}: hold_timeout")


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where metrics go. `textfile_dir` is node exporter's textfile folder; None writes none."""

    textfile_dir: str | None = None


class ConsoleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the console listens, on loopback, and whether it shows the record's entries to all who reach it."""

    listen: str = "127.0.0.1:9731"
    entries: bool = False


class RecordConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record as a log: its name for others, and how often its checkpoints go to the witnesses."""

    origin: str | None = None
    witness_interval: str = "1m"

    def origin_of(self, host_id: str) -> str:
        """The log's origin on the host with this id."""
        return self.origin or f"egs-kernel/{host_id}/record"


class RevocationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which scopes demand a signed revocation list, and how old it may be. Without `max_age` none does; else all, or `scopes`."""

    max_age: str | None = None
    scopes: tuple[str, ...] = ()

    @property
    def max_age_seconds(self) -> int:
        """How old a list may be; 0: none is demanded."""
        return 0 if self.max_age is None else parse_duration(self.max_age, "revocation.max_age")

    def demands(self, scope: str) -> bool:
        """Whether nothing is authorized in this scope without a list that is new enough."""
        return self.max_age is not None and (not self.scopes or scope in self.scopes)


class WitnessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A witness that cosigns this host's checkpoints: the address before `/add-checkpoint`, and its verifier key."""

    url: str
    key: str


class DriftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the gate is loaded with the drift programs, which tell what governed processes do while they run."""

    events: DriftEvents = DriftEvents.AUTO


class AuthorityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another host's authority, which this host asks: its URL; this workload's certificate and its key; whose certificate it has.

    All are paths of PEM files. `svid` is one of a JWT-SVID: a launch shows it to egsd for what was issued to the workload.
    """

    url: str
    certificate: str
    key: str
    ca: str
    svid: str | None = None


LIBRARY_ROOTS = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32")
"""Folders below which a library of root's may be code of any governed program; those that exist count."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration.

    `daemon_grace` is seconds without a heartbeat until the gate refuses all. `tier` None: the best that the host
    offers. `exec_digest`: the gate takes a file's digest from the kernel at every exec, where it can. `sealed`: the
    daemon seals the gate when it is ready.
    """

    daemon_grace: int = 10
    tier: Tier | None = None
    exec_digest: bool = True
    sealed: bool = False
    library_roots: tuple[str, ...] = LIBRARY_ROOTS
    host_id: str | None = None
    host_labels: tuple[str, ...] = ()
    trusted_filesystems: frozenset[str] = frozenset()
    scopes: tuple[ScopeConfig, ...] = ()
    metrics: MetricsConfig = MetricsConfig()
    console: ConsoleConfig = ConsoleConfig()
    record: RecordConfig = RecordConfig()
    revocation: RevocationConfig = RevocationConfig()
    witnesses: tuple[WitnessConfig, ...] = ()
    drift: DriftConfig = DriftConfig()
    authority: AuthorityConfig | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    daemon_grace: str = "10s"
    tier: str = "auto"
    exec_digest: bool = True
    sealed: bool = False
    library_roots: tuple[str, ...] = LIBRARY_ROOTS
    host_id: str | None = None
    host_labels: tuple[str, ...] = ()
    trusted_filesystems: tuple[str, ...] = ()
    scope: tuple[ScopeConfig, ...] = ()
    metrics: MetricsConfig = MetricsConfig()
    console: ConsoleConfig = ConsoleConfig()
    record: RecordConfig = RecordConfig()
    revocation: RevocationConfig = RevocationConfig()
    witness: tuple[WitnessConfig, ...] = ()
    drift: DriftConfig = DriftConfig()
    authority: AuthorityConfig | None = None


def load_config(path: Path) -> Config:
    """Read and check the configuration file.

    Raises:
        UsageError: it is missing, unsafe, or says something that this version does not understand.
    """
    return parse_config(read_config(path), str(path))


def read_config(path: Path) -> bytes:
    """The configuration file's bytes.

    Raises:
        UsageError: it is missing or unsafe.
    """
    if not path.exists():
        raise UsageError(
            Reason.CONFIG_INVALID,
            f"{path} does not exist",
            "Create it; docs/configuration.md has an example.",
        )
    try:
        return read_private_file(path, CONFIG_LIMIT)
    except OSError as error:
        raise UsageError(
            Reason.CONFIG_INVALID, f"cannot read {path}: {error.strerror}", f"Run: chmod u+r {path}"
        ) from error


def parse_config(content: bytes, name: str = "egs.toml") -> Config:
    """Parse TOML bytes. Pure.

    Raises:
        UsageError: with the field that is wrong.
    """
    try:
        table: dict[str, Any] = tomllib.loads(content.decode())
        file = msgspec.convert(table, _File, strict=True)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, str(error)) from error
    _check_scopes(name, file.scope)
    unknown = sorted(set(file.trusted_filesystems) - KNOWN)
    if unknown:
        raise _invalid(name, f"trusted_filesystems: {unknown[0]!r} is none of {', '.join(sorted(KNOWN))}")
    return Config(
        daemon_grace=parse_duration(file.daemon_grace, f"{name}: daemon_grace"),
        tier=_tier(name, file.tier),
        exec_digest=file.exec_digest,
        sealed=file.sealed,
        library_roots=_library_roots(name, file.library_roots),
        host_id=file.host_id,
        host_labels=file.host_labels,
        trusted_filesystems=frozenset(file.trusted_filesystems),
        scopes=file.scope,
        metrics=file.metrics,
        console=file.console,
        record=file.record,
        revocation=_revocation(name, file),
        witnesses=_witnesses(name, file),
        drift=file.drift,
        authority=_authority(name, file.authority),
    )


def _revocation(name: str, file: _File) -> RevocationConfig:
    parse_duration(file.revocation.max_age or "1h", f"{name}: revocation.max_age")
    unknown = sorted(set(file.revocation.scopes) - {scope.name for scope in file.scope})
    if unknown:
        raise _invalid(name, f"revocation.scopes: there is no scope {unknown[0]!r}")
    if file.revocation.scopes and file.revocation.max_age is None:
        raise _invalid(name, "revocation.scopes demand a list, and revocation.max_age does not say how new")
    return file.revocation


def _witnesses(name: str, file: _File) -> tuple[WitnessConfig, ...]:
    parse_duration(file.record.witness_interval, f"{name}: record.witness_interval")
    for witness in file.witness:
        if not witness.url.startswith(("http://", "https://")):
            raise _invalid(name, f"witness: the url {witness.url!r} begins with neither http:// nor https://")
    if len({witness.key for witness in file.witness}) != len(file.witness):
        raise _invalid(name, "two witnesses have one key")
    if len(file.witness) > MAX_WITNESSES:
        raise _invalid(name, f"{len(file.witness)} witnesses; at most {MAX_WITNESSES}")
    return file.witness


def _authority(name: str, found: AuthorityConfig | None) -> AuthorityConfig | None:
    if found is None:
        return None
    if not found.url.startswith("https://"):
        raise _invalid(name, f"authority.url: {found.url!r} does not begin with https://")
    for setting in ("certificate", "key", "ca", "svid"):
        path = getattr(found, setting)
        if path is not None and not path.startswith("/"):
            raise _invalid(name, f"authority.{setting}: {path!r} is no absolute path")
    return found


def _tier(name: str, tier: str) -> Tier | None:
    known = {"auto": None} | {known.value: known for known in Tier}
    if tier not in known:
        raise _invalid(name, f"tier: {tier!r} is none of {', '.join(known)}")
    return known[tier]


def _library_roots(name: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    for root in roots:
        if not root.startswith("/") or root != _normal(root):
            raise _invalid(
                name, f"library_roots: {root!r} must be a plain absolute path, and not the root folder"
            )
    if len(roots) > MAX_LIBRARY_ROOTS:
        raise _invalid(name, f"library_roots: {len(roots)} folders; at most {MAX_LIBRARY_ROOTS}")
    return roots


def parse_duration(text: str, where: str) -> int:
    """`90s`, `15m`, `1h`, `30d` → seconds.

    Raises:
        UsageError: it is none of these, or longer than a hundred years.
    """
    match = _DURATION.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNIT_SECONDS[match[2]]
    if not 0 < seconds <= _LONGEST_DURATION:
        raise UsageError(
            Reason.USAGE,
            f"{where}: {text!r} is no duration of a hundred years at most",
            "Write a number and a unit: 90s, 15m, 1h or 30d.",
        )
    return seconds


def moment_after(start: datetime, text: str, where: str) -> datetime:
    """The end of a duration that begins then.

    Raises:
        UsageError: it is no duration, or ends after the year 9999.
    """
    duration = timedelta(seconds=parse_duration(text, where))
    try:
        return start + duration
    except OverflowError as error:
        raise UsageError(
            Reason.USAGE, f"{where}: {text!r} from then on ends after the year 9999", "Begin earlier."
        ) from error


def _invalid(name: str, problem: str) -> UsageError:
    return UsageError(Reason.CONFIG_INVALID, f"{name}: {problem}", "Correct it, then run: egs config check")


def _check_scopes(name: str, scopes: tuple[ScopeConfig, ...]) -> None:
    if len(scopes) > MAX_SCOPES:
        raise _invalid(name, f"{len(scopes)} scopes; at most {MAX_SCOPES}")
    seen: set[str] = set()
    for scope in scopes:
        if scope.name in seen:
            raise _invalid(name, f"two scopes are named {scope.name!r}")
        seen.add(scope.name)
        _check_scope(name, scope)
    _check_cgroups_apart(name, scopes)


def _check_scope(name: str, scope: ScopeConfig) -> None:
    where = f"scope {scope.name!r}"
    if not _NAME.fullmatch(scope.name):
        raise _invalid(
            name, f"{where}: a name is 1 to 32 of a-z 0-9 . _ -, and starts with a letter or digit"
        )
    if sum((scope.cgroup is not None, bool(scope.binaries), bool(scope.users))) != 1:
        raise _invalid(name, f"{where}: needs exactly one of cgroup, binaries, users")
    if scope.cgroup is not None and (
        not scope.cgroup.startswith("/") or scope.cgroup != _normal(scope.cgroup)
    ):
        raise _invalid(
            name,
            f"{where}: cgroup {scope.cgroup!r} must be a plain absolute path below the cgroup v2 mount, and not its root",
        )
    for binary in scope.binaries:
        if not binary.startswith("/"):
            raise _invalid(name, f"{where}: binary {binary!r} must be an absolute path")
    if scope.hold_timeout is not None and scope.on_missing is not OnMissing.HOLD:
        raise _invalid(name, f'{where}: hold_timeout is for on_missing = "hold"')
    if scope.hold_seconds > _HOLD_LIMIT:
        raise _invalid(name, f"{where}: hold_timeout {scope.hold_timeout} is more than a day")


def _normal(cgroup: str) -> str:
    parts = [part for part in cgroup.split("/") if part not in ("", ".", "..")]
    return "/" + "/".join(parts) if parts else ""


def _check_cgroups_apart(name: str, scopes: tuple[ScopeConfig, ...]) -> None:
    """One process, one scope: a subtree inside another scope's subtree would make that ambiguous."""
    cgroups = sorted((f"{scope.cgroup}/", scope.name) for scope in scopes if scope.cgroup is not None)
    for (outer, outer_name), (inner, inner_name) in itertools.pairwise(cgroups):
        if inner.startswith(outer):
            raise _invalid(name, f"scope {inner_name!r} ({inner}) lies inside scope {outer_name!r} ({outer})")
