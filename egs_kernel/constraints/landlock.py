"""`constraints.filesystem`, and the ports of `constraints.network`, → what a Landlock ruleset must hold. Pure.

A word of the constraint always means the same. Where the kernel's Landlock is too old for a part of it, the host
cannot enforce it, unless the artifact itself says that this part may stay unrestricted (`degrade`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.reach import FilesystemConstraint, NetworkConstraint

FILESYSTEM: Final = "constraints.filesystem"
NETWORK: Final = "constraints.network"
SIGNALS: Final = "constraints.process.signals"

LEAST_ABI: Final = 2
"""Linux 5.19, where files can be moved between folders that both permit it. No kernel that has the gate is older."""


class Access(IntFlag):
    """What Landlock can refuse on files: linux/landlock.h."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class PortAccess(IntFlag):
    """What Landlock can refuse on TCP sockets."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(IntFlag):
    """What Landlock can refuse towards processes outside of the domain."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


ON_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
"""The rights that mean something on what is no folder; the kernel refuses a rule with another one."""

READ: Final = Access.READ_FILE | Access.READ_DIR
EXECUTE: Final = Access.EXECUTE | Access.READ_FILE
WRITE: Final = (
    Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
    | Access.IOCTL_DEV
)
"""Device nodes are in no root: nobody makes them."""

HANDLED: Final = ~Access(0)

NEEDS_ABI: Final = {Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
"""Rights that an older Landlock does not know, and the first that does."""
DEGRADES: Final = {"truncate": Access.TRUNCATE, "device-control": Access.IOCTL_DEV}
"""The artifact's word for a right that may stay unrestricted."""
PORTS_NEED_ABI: Final = 4
SCOPES_NEED_ABI: Final = 6
LOGS_NEED_ABI: Final = 7


@dataclass(frozen=True)
class PathRule:
    """What is permitted at and below a path.

    Attributes:
        path: absolute.
        access: for a folder; of what is none, the part of it that applies.
        field: the field of the artifact that says so; "" for a path of the base, which may be missing.
    """

    path: str
    access: Access
    field: str


@dataclass(frozen=True)
class Plan:
    """A ruleset. What is handled is refused, but for what a rule permits.

    Attributes:
        handled: rights on files.
        handled_ports: rights on TCP ports.
        paths: may repeat; rights add up.
        ports: port number and what is permitted on it.
        scoped: what it can do to its own processes only.
        degraded: in the artifact's words, what this kernel leaves unrestricted with its consent.
    """

    handled: Access
    handled_ports: PortAccess
    paths: tuple[PathRule, ...]
    ports: tuple[tuple[int, PortAccess], ...]
    scoped: Scope
    degraded: tuple[str, ...]


# What a program that is linked dynamically needs on Debian, Ubuntu, Fedora, SUSE and Alpine, and what the C library
# reads for names, time zones, locales and certificates. docs/constraints.md lists it; a test compares.
_SYSTEM: Final = (
    (
        EXECUTE,
        (
            "/lib/ld-linux-aarch64.so.1",
            "/lib/ld-linux.so.2",
            "/lib/ld-musl-x86_64.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ),
    ),
    (
        READ,
        (
            "/dev/random",
            "/dev/urandom",
            "/dev/zero",
            "/etc/ca-certificates",
            "/etc/crypto-policies",
            "/etc/gai.conf",
            "/etc/group",
            "/etc/host.conf",
            "/etc/hosts",
            "/etc/ld.so.cache",
            "/etc/ld.so.preload",
            "/etc/localtime",
            "/etc/nsswitch.conf",
            "/etc/passwd",
            "/etc/pki/ca-trust/extracted",
            "/etc/pki/tls",
            "/etc/protocols",
            "/etc/resolv.conf",
            "/etc/services",
            "/etc/ssl/certs",
            "/etc/ssl/openssl.cnf",
            "/etc/terminfo",
            "/lib",
            "/lib64",
            "/usr/lib",
            "/usr/lib64",
            "/usr/local/lib",
            "/usr/share/ca-certificates",
            "/usr/share/i18n",
            "/usr/share/locale",
            "/usr/share/terminfo",
            "/usr/share/zoneinfo",
        ),
    ),
    (READ | Access.WRITE_FILE | Access.TRUNCATE, ("/dev/full", "/dev/null")),
    (READ | Access.WRITE_FILE | Access.IOCTL_DEV, ("/dev/tty",)),
)
BASES: Final = {
    "system": tuple(PathRule(path, access, "") for access, paths in _SYSTEM for path in paths),
}


def plan(
    filesystem: FilesystemConstraint | None,
    network: NetworkConstraint | None,
    abi: int,
    *,
    own_signals: bool = False,
) -> Plan | None:
    """The ruleset for these constraints on a kernel with this Landlock; None: they need none.

    Args:
        filesystem: which files; None: all of them.
        network: which ports; None, or without ports: Landlock has no part in it.
        abi: of the kernel; 0: it has no Landlock.
        own_signals: it may signal its own processes only.

    Raises:
        Refused: a part of what they mean cannot be enforced here, and the artifact does not consent to that.
    """
    ports = network if network is not None and network.mode == "ports" else None
    scoped = Scope.SIGNAL if own_signals else Scope(0)
    if ports is not None and ports.abstract == "own":
        scoped |= Scope.ABSTRACT_UNIX_SOCKET
    if filesystem is None and ports is None and not scoped:
        return None
    if filesystem is not None and abi < LEAST_ABI:
        raise _unenforceable(FILESYSTEM, "files", abi, LEAST_ABI)
    if ports is not None and abi < PORTS_NEED_ABI:
        raise _unenforceable(f"{NETWORK}.mode", "TCP ports", abi, PORTS_NEED_ABI)
    if scoped and abi < SCOPES_NEED_ABI:
        field = f"{NETWORK}.abstract" if scoped & Scope.ABSTRACT_UNIX_SOCKET else SIGNALS
        raise _unenforceable(field, "what leaves the domain", abi, SCOPES_NEED_ABI)
    handled, degraded = Access(0), tuple[str, ...]()
    if filesystem is not None:
        handled, degraded = _handled(filesystem, abi)
    return Plan(
        handled=handled,
        handled_ports=PortAccess(0) if ports is None else PortAccess.BIND_TCP | PortAccess.CONNECT_TCP,
        paths=() if filesystem is None else _paths(filesystem, handled),
        ports=() if ports is None else _ports(ports),
        scoped=scoped,
        degraded=degraded,
    )


def _handled(filesystem: FilesystemConstraint, abi: int) -> tuple[Access, tuple[str, ...]]:
    handled, degraded = HANDLED, []
    for word, right in DEGRADES.items():
        if abi >= NEEDS_ABI[right]:
            continue
        if word not in filesystem.degrade:
            raise _unenforceable(FILESYSTEM, word, abi, NEEDS_ABI[right])
        handled &= ~right
        degraded.append(word)
    return handled, tuple(degraded)


def _paths(filesystem: FilesystemConstraint, handled: Access) -> tuple[PathRule, ...]:
    named = [
        PathRule(path, access & handled, f"{FILESYSTEM}.{field}[{index}]")
        for field, access in (("read", READ), ("write", WRITE), ("execute", EXECUTE))
        for index, path in enumerate(getattr(filesystem, field))
    ]
    return (*named, *(() if filesystem.base is None else _base(filesystem.base, handled)))


@cache
def _base(name: str, handled: Access) -> tuple[PathRule, ...]:
    return tuple(PathRule(rule.path, rule.access & handled, "") for rule in BASES[name])


def _ports(network: NetworkConstraint) -> tuple[tuple[int, PortAccess], ...]:
    permitted: dict[int, PortAccess] = {}
    for access, ports in ((PortAccess.CONNECT_TCP, network.connect), (PortAccess.BIND_TCP, network.bind)):
        for port in ports:
            permitted[port] = permitted.get(port, PortAccess(0)) | access
    return tuple(sorted(permitted.items()))


def _unenforceable(field: str, what: str, abi: int, needed: int) -> Refused:
    has = f"Landlock of version {abi}" if abi else "no Landlock"
    consent = f', or issue an artifact with degrade = ["{what}"]' if what in DEGRADES else ""
    return Refused(
        Reason.CONSTRAINT_UNENFORCEABLE,
        f"{field}: this kernel has {has}; restricting {what} takes version {needed}",
        f"Use a newer kernel, with `landlock` among its LSMs (lsm=){consent}.",
    )
