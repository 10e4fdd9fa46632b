"""`/etc/egs/authority.toml`: who the authority is, what it signs with, and how much it gives."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import Constraints
from egs_kernel.config import parse_duration
from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file
from egs_kernel.trust.store import ANY_SCOPE, require_scope_name
from egs_kernel.web import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

ANYBODY: Final = "*"
ISSUER_KEY: Final = "issuer.key"
"""In the authority's folder, when the settings name no other key."""

_LIMIT: Final = 1024 * 1024
_Positive = Annotated[int, Meta(ge=1, le=1_000_000)]


class HttpsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTPS for other hosts: where, with which certificate, and whose certificates are clients'. All are PEM files.

    Without `client_ca` clients show X.509-SVIDs, which the host's trust bundles verify. With `enrolled_hosts` a request needs
    a statement by the key of a host that is enrolled (authority/hosts.py).
    """

    listen: str
    certificate: str
    key: str
    client_ca: str | None = None
    enrolled_hosts: bool = False


class _Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    artifacts: _Positive
    per: str
    principal: str = ANYBODY
    scope: str = ANY_SCOPE


class _Scope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    constraints: Constraints | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str = "egs-authority"
    key: str = ISSUER_KEY
    default_scope: str | None = None
    valid_for: str = "5m"
    max_valid_for: str = "1h"
    approval_window: str = "1h"
    clock_tolerance: str = "30s"
    rate: _Positive = 20
    burst: _Positive = 40
    may_see: tuple[str, ...] = ()
    https: HttpsConfig | None = None
    quota: tuple[_Quota, ...] = ()
    scope: tuple[_Scope, ...] = ()


@dataclass(frozen=True)
class Quota:
    """At most `artifacts` artifacts in `seconds`, for each principal that it is for, in a scope or in all together."""

    principal: str
    scope: str
    artifacts: int
    seconds: int

    def covers(self, principal: str, scope: str) -> bool:
        """Whether an artifact for this principal and scope counts."""
        return self.principal in (ANYBODY, principal) and self.scope in (ANY_SCOPE, scope)

    @property
    def name(self) -> str:
        """What it is called in the state: another rule is counted anew."""
        return f"{self.principal} {self.scope} {self.seconds}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the authority was told. Durations are seconds.

    Attributes:
        name: the issuer, as its artifacts and its record name it.
        key: the issuer's key: a path, or a URI that trust/signers.py opens.
        default_scope: for whoever names none.
        valid_for: how long an artifact is valid when nothing else was asked for; `max_valid_for` at most.
        approval_window: how long a request waits for approvals, and an approval may be old.
        clock_tolerance: how far an asker's clock may be off.
        rate: requests a second that one principal may send; `burst` at once.
        may_see: principals and groups that may see what others asked for, such as "group:approvers".
        https: None: the Unix socket alone.
        quotas: all of them hold.
        constraints: by scope: what every artifact for it has, whatever was asked for.
    """

    name: str
    key: str
    default_scope: str | None
    valid_for: int
    max_valid_for: int
    approval_window: int
    clock_tolerance: int
    rate: int
    burst: int
    may_see: frozenset[str]
    https: HttpsConfig | None
    quotas: tuple[Quota, ...]
    constraints: Mapping[str, Constraints]


def load_settings(path: Path) -> Settings:
    """Read and check the authority's configuration.

    Raises:
        UsageError: it is missing, unsafe, or wrong.
    """
    try:
        content = read_private_file(path, _LIMIT)
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from error
    return parse_settings(content, path)


def parse_settings(content: bytes, path: Path) -> Settings:
    """Parse TOML bytes; `path` is what to call them.

    Raises:
        UsageError: with what is wrong.
    """
    try:
        file = msgspec.convert(tomllib.loads(content.decode()), _File, strict=True)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, str(error)) from error

    def seconds(text: str, setting: str) -> int:
        return parse_duration(text, f"{path}: {setting}")

    if not file.name.strip() or " " in file.name or "+" in file.name or not file.name.isprintable():
        raise _invalid(path, f"name: {file.name!r} has spaces or a plus, or is empty")
    scopes = [scope.name for scope in file.scope]
    if len(set(scopes)) != len(scopes):
        raise _invalid(path, "a scope occurs twice")
    for name in (*scopes, *(quota.scope for quota in file.quota), file.default_scope or ANY_SCOPE):
        require_scope_name(name)
    settings = Settings(
        name=file.name,
        key=file.key,
        default_scope=file.default_scope,
        valid_for=seconds(file.valid_for, "valid_for"),
        max_valid_for=seconds(file.max_valid_for, "max_valid_for"),
        approval_window=seconds(file.approval_window, "approval_window"),
        clock_tolerance=seconds(file.clock_tolerance, "clock_tolerance"),
        rate=file.rate,
        burst=file.burst,
        may_see=frozenset(file.may_see),
        https=file.https,
        quotas=tuple(
            Quota(quota.principal, quota.scope, quota.artifacts, seconds(quota.per, "quota: per"))
            for quota in file.quota
        ),
        constraints={scope.name: scope.constraints for scope in file.scope if scope.constraints is not None},
    )
    if settings.valid_for > settings.max_valid_for:
        raise _invalid(path, "valid_for is more than max_valid_for")
    if settings.https is not None:
        Address.parse(settings.https.listen, f"{path}: https.listen")
    return settings


def _invalid(path: Path, problem: str) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID,
        f"{path}: {problem}",
        "Correct it; docs/authority.md has an example. A first one: egs authority init",
    )
