"""The host's own integrity state, read anew for decisions (clause 3.4)."""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import HostLacks
from egs_kernel.model import Posture, Reason, Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from egs_kernel.config import Config

UNAVAILABLE: Final = "unavailable"
"""`lockdown` where securityfs is not mounted, or the kernel has no lockdown."""
EMPTY_POLICY: Final = hashlib.sha256(b"[]").hexdigest()
"""In the place of a policy set's digest, where none ever was active."""
_APPLICATION: Final = uuid.UUID("208287b5-7e7f-4ef1-9922-0fd1ab0cfde2")
"""Ours, for `systemd-id128 machine-id --app-specific=…`, which yields the same host id."""
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5


class _Timex(ctypes.Structure):
    """`struct timex` (adjtimex(2)) up to what we read; the rest is room for the kernel to write."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def clock_synchronized() -> bool:
    """Whether the kernel's clock is disciplined by something (NTP, PTP, the hypervisor).

    Raises:
        OSError: the kernel does not say.
    """
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC


def read_posture(  # noqa: PLR0913 - the facts that make a posture, each from its own source
    *,
    tier: Tier,
    gate_programs: Mapping[str, str],
    expected_programs: Mapping[str, str],
    policy_digest: str,
    proc: Path = Path("/proc"),
    securityfs: Path = Path("/sys/kernel/security"),
    synchronized: Callable[[], bool] = clock_synchronized,
) -> Posture:
    """Read the posture. What cannot be established is a problem, and a posture with problems denies.

    An unsynchronized clock and a missing lockdown are reported; they are not problems.

    Args:
        tier: how this host stops an exec.
        gate_programs: what is pinned now, program name → the kernel's tag of its instructions.
        expected_programs: the same from the manifest that `egs gate load` wrote.
        policy_digest: of the active policy set.
        proc: where procfs is mounted.
        securityfs: where securityfs is mounted, if it is. Nothing is mounted here.
        synchronized: asks the kernel about its clock.
    """
    problems: list[str] = []
    release = _fact(proc / "sys/kernel/osrelease", problems)
    version = _fact(proc / "sys/kernel/version", problems)
    boot_id = _fact(proc / "sys/kernel/random/boot_id", problems)
    lockdown = _lockdown(securityfs / "lockdown", problems)
    try:
        clock = synchronized()
    except OSError as error:
        clock = False
        problems.append(f"the kernel does not tell the state of its clock: {error.strerror}")
    problems += compare_programs(gate_programs, expected_programs)
    return Posture(
        kernel=f"{release} {version}",
        boot_id=boot_id,
        lockdown=lockdown,
        tier=tier,
        gate=tuple(sorted(gate_programs.items())),
        policy_digest=policy_digest,
        clock_synchronized=clock,
        problems=tuple(problems),
    )


def compare_programs(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What is wrong with the pinned gate programs, in words; empty when they are those that were loaded."""
    if not expected:
        return ["no gate program is known to have been loaded"]
    problems = [f"gate program {name} is not pinned" for name in sorted(expected.keys() - found.keys())]
    problems += [
        f"gate program {name} was not loaded by us" for name in sorted(found.keys() - expected.keys())
    ]
    problems += [
        f"gate program {name} has tag {found[name]}, loaded was {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    return problems


def host_id(config: Config, machine_id: Path = Path("/etc/machine-id")) -> str:
    """This host's id in artifacts: the configured one, or one derived from the machine id.

    The machine id itself stays secret (machine-id(5)): what is derived is specific to this product.

    Raises:
        HostLacks: nothing is configured and the machine id is missing or malformed.
    """
    if config.host_id is not None:
        return config.host_id
    try:
        key = bytes.fromhex(machine_id.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise _no_host_id(machine_id) from error
    if len(key) != 16 or key == bytes(16):  # noqa: PLR2004 - 128 bits
        raise _no_host_id(machine_id)
    derived = hmac.digest(key, _APPLICATION.bytes, "sha256")[:16]
    return uuid.UUID(bytes=derived, version=4).hex


def _no_host_id(machine_id: Path) -> HostLacks:
    return HostLacks(
        Reason.CONFIG_INVALID,
        f"this host has no id: {machine_id} is missing or malformed",
        'Set host_id = "…" in egs.toml, or run: systemd-machine-id-setup',
    )


def _fact(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return UNAVAILABLE


def _lockdown(path: Path, problems: list[str]) -> str:
    """The chosen word of `none [integrity] confidentiality`."""
    try:
        words = path.read_text("utf-8").split()
    except FileNotFoundError:
        return UNAVAILABLE
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return UNAVAILABLE
    chosen = [word[1:-1] for word in words if word.startswith("[") and word.endswith("]")]
    if len(chosen) != 1:
        problems.append(f"{path} says {' '.join(words)!r}")
        return UNAVAILABLE
    return chosen[0]
