"""Grants and arguments as bytes for the gate. Pure."""

from __future__ import annotations

import ctypes
from typing import Final

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.model import ARGV_MAX, FileIdentity, Grant, Measurement, Reason, TaskIdentity

_HASH_FACTOR: Final = 0x9E3779B97F4A7C15
"""EGS_ARGV_HASH of bpf/gate.bpf.c."""
_WORD: Final = 0xFFFFFFFFFFFFFFFF


def raw_grant(grant: Grant, grant_id: int, scope: int, task: TaskIdentity | None) -> abi.Grant:
    """A grant as the gate compares it; with `task` it is armed for that process.

    Args:
        grant: what the verifier made.
        grant_id: never used before in this boot.
        scope: the slot of its scope.
        task: the process that it is armed for; None: it stands.
    """
    flags = abi.GrantFlag(0)
    flags |= abi.GrantFlag.BIND_UID if grant.uid is not None else 0
    flags |= abi.GrantFlag.BIND_CGROUP if grant.cgroup_id is not None else 0
    flags |= abi.GrantFlag.BIND_ARGV if grant.argv is not None else 0
    flags |= abi.GrantFlag.BIND_USES if grant.uses is not None else 0
    flags |= abi.GrantFlag.NEED_NO_NEW_PRIVS if grant.no_new_privs else 0
    flags |= abi.GrantFlag.NEED_SECCOMP if grant.seccomp_filters is not None else 0
    flags |= abi.GrantFlag.ALLOW_CODE_VARIABLES if grant.code_variables else 0
    flags |= abi.GrantFlag.REFUSE_ANONYMOUS_CODE if grant.refuse_anonymous_code else 0
    flags |= abi.GrantFlag.OWN_CHILDREN if grant.own_children else 0
    return abi.Grant(
        artifact_id=raw_digest(grant.artifact_id),
        digest=raw_digest(grant.digest),
        file=raw_identity(grant.file),
        grant_id=grant_id,
        measured=grant.measured,
        not_before=_moment(grant.not_before),
        not_after=_moment(grant.not_after),
        cgroup_id=grant.cgroup_id or 0,
        argv_hash=_argv_hash(grant.argv),
        argv_length=_argv_length(grant.argv),
        start_ticks=task.start_ticks if task else 0,
        flags=int(flags),
        scope=scope,
        uid=grant.uid or 0,
        seccomp_filters=grant.seccomp_filters or 0,
    )


def _moment(nanoseconds: int) -> int:
    """A time since boot in 64 bits. They end in 2554: what is valid for longer is valid until then, and wraps nowhere."""
    return min(max(0, nanoseconds), 2**64 - 1)


def raw_identity(file: FileIdentity) -> abi.FileId:
    """A file's identity as the gate compares it."""
    return abi.FileId(
        inode=file.inode,
        size=file.size,
        ctime_sec=file.ctime_seconds,
        ctime_nsec=file.ctime_nanoseconds,
        generation=file.generation,
        device=file.device,
    )


def raw_subject(measured: Measurement) -> abi.Subject:
    """A file that an artifact names, as the gate compares it."""
    return abi.Subject(
        file=raw_identity(measured.identity), digest=raw_digest(measured.digest), measured=measured.time
    )


def raw_digest(digest: str) -> ctypes.Array[ctypes.c_uint8]:
    """A SHA-256 of hex digits as bytes; "" is all zeros, which no file has."""
    return (ctypes.c_uint8 * 32)(*bytes.fromhex(digest))


QUARANTINED: Final = 1
"""The key of an artifact that there is not: the first bytes of a SHA-256 are not that, but by a miracle. No grant is for its children."""


def artifact_key(artifact_id: str) -> int:
    """What the gate knows an artifact by: the first 8 bytes of its id (artifact_key of bpf/gate.bpf.c)."""
    return int.from_bytes(bytes.fromhex(artifact_id)[:8], "little")


def raw_argv(argv: tuple[bytes, ...]) -> abi.Argv:
    """Bound arguments as the gate compares them.

    Raises:
        GateError: they are longer than it compares.
    """
    joined = b"".join(argument + b"\0" for argument in argv)
    if len(joined) > ARGV_MAX:
        raise GateError(
            Reason.ARGV_MISMATCH,
            f"the bound argv has {len(joined)} bytes; the gate compares at most {ARGV_MAX}",
            "Bind fewer arguments, or pass the long one in a file.",
        )
    raw = abi.Argv(length=len(joined))
    ctypes.memmove(ctypes.addressof(raw.words), joined, len(joined))
    return raw


def _argv_length(argv: tuple[bytes, ...] | None) -> int:
    return sum(len(argument) + 1 for argument in argv or ())


def _argv_hash(argv: tuple[bytes, ...] | None) -> int:
    """hash_argv() of bpf/decide.bpf.c: it finds the grant, the bytes decide."""
    value = _argv_length(argv)
    joined = b"".join(argument + b"\0" for argument in argv or ())
    for start in range(0, len(joined), 8):
        word = int.from_bytes(joined[start : start + 8], "little")
        value = (value ^ word) * _HASH_FACTOR & _WORD
        value ^= value >> 32
    return value
