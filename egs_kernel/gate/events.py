"""Bytes from the ring buffer → typed events. Pure."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from mmap import PAGESIZE
from typing import Final

from egs_kernel.errors import GateError
from egs_kernel.gate import abi
from egs_kernel.model import (
    Attempt,
    AttemptEvent,
    CodeEvent,
    ExecEvent,
    ExitEvent,
    FileIdentity,
    GateEvent,
    GrantKind,
    Reason,
    Tier,
    Verdict,
)

_TYPE_BYTES = 4
_NO_FILE: Final = FileIdentity(0, 0, 0, 0, 0, 0)


def parse_event(data: bytes, scopes: Mapping[int, str], tier: Tier) -> GateEvent:
    """One event of the gate.

    Args:
        data: the ring buffer's sample.
        scopes: scope slot → name; a slot without a name is shown by its number.
        tier: how the gate that wrote it enforces.

    Raises:
        GateError: no gate of this ABI version writes such bytes.
    """
    kind = int.from_bytes(data[:_TYPE_BYTES], "little")
    try:
        if kind == abi.EventType.EXEC:
            return _exec(data, scopes, tier)
        if kind == abi.EventType.EXIT:
            return _exit(abi.ExitEvent.from_buffer_copy(data), scopes)
        if kind == abi.EventType.CODE:
            return _code(abi.CodeEvent.from_buffer_copy(data), scopes)
        if kind == abi.EventType.ATTEMPT:
            return _attempt(abi.AttemptEvent.from_buffer_copy(data))
    except ValueError as error:
        raise _alien(str(error)) from error
    raise _alien(f"type {kind}")


def file_identity(raw: abi.FileId) -> FileIdentity:
    """The C struct as the model's type."""
    return FileIdentity(
        device=raw.device,
        inode=raw.inode,
        generation=raw.generation,
        size=raw.size,
        ctime_seconds=raw.ctime_sec,
        ctime_nanoseconds=raw.ctime_nsec,
    )


def split_argv(raw: bytes) -> tuple[str, ...]:
    """NUL-terminated strings as text; bytes that are no UTF-8 appear escaped, as the record is JSON."""
    if not raw:
        return ()
    return tuple(part.decode("utf-8", "backslashreplace") for part in raw.removesuffix(b"\0").split(b"\0"))


def _exec(data: bytes, scopes: Mapping[int, str], tier: Tier) -> ExecEvent:
    raw = abi.ExecEvent.from_buffer_copy(data)
    head = ctypes.sizeof(abi.ExecEvent)
    script = file_identity(raw.script)
    argv = data[head : head + raw.argv_copied]
    return ExecEvent(
        verdict=Verdict(raw.verdict),
        reason=Reason(raw.reason),
        enforced=bool(raw.enforced),
        scope=scopes.get(raw.scope, f"#{raw.scope}"),
        tier=tier,
        time=raw.time,
        execution=raw.execution,
        parent_execution=raw.parent_execution,
        grant_id=raw.grant_id,
        grant_kind=GrantKind(raw.grant_kind),
        artifact_id=bytes(raw.artifact_id).hex() if raw.grant_kind else "",
        file=file_identity(raw.file),
        script=None if script == _NO_FILE else script,
        pid=raw.pid,
        parent_pid=raw.parent_pid,
        uid=raw.uid,
        euid=raw.euid,
        gid=raw.gid,
        cgroup_id=raw.cgroup_id,
        start_ticks=raw.start_ticks,
        no_new_privs=bool(raw.no_new_privs),
        seccomp_mode=raw.seccomp_mode,
        seccomp_filters=raw.seccomp_filters,
        comm=raw.comm.decode("utf-8", "backslashreplace"),
        filename=raw.filename.decode("utf-8", "backslashreplace"),
        argv=split_argv(argv),
        argv_bytes=raw.argv_length,
        argv_truncated=raw.argv_length > raw.argv_copied,
        kill_error=raw.kill_error,
    )


def _exit(raw: abi.ExitEvent, scopes: Mapping[int, str]) -> ExitEvent:
    return ExitEvent(
        scope=scopes.get(raw.scope, f"#{raw.scope}"),
        time=raw.time,
        execution=raw.execution,
        pid=raw.pid,
        status=raw.status,
        cpu_nanoseconds=raw.cpu,
        max_rss_bytes=raw.max_rss * PAGESIZE,
    )


def _code(raw: abi.CodeEvent, scopes: Mapping[int, str]) -> CodeEvent:
    file = file_identity(raw.file)
    return CodeEvent(
        reason=Reason(raw.reason),
        enforced=bool(raw.enforced),
        scope=scopes.get(raw.scope, f"#{raw.scope}"),
        time=raw.time,
        execution=raw.execution,
        pid=raw.pid,
        file=None if file == _NO_FILE else file,
        name=raw.name.decode("utf-8", "backslashreplace"),
    )


def _attempt(raw: abi.AttemptEvent) -> AttemptEvent:
    return AttemptEvent(
        what=Attempt(raw.what).name.lower(),
        time=raw.time,
        number=raw.number,
        pid=raw.pid,
        uid=raw.uid,
        comm=raw.comm.decode("utf-8", "backslashreplace"),
        device=raw.device,
        inode=raw.inode,
        name=raw.name.decode("utf-8", "backslashreplace"),
    )


def _alien(what: str) -> GateError:
    return GateError(
        Reason.GATE_VERSION_MISMATCH,
        f"the gate wrote an event that this version does not know ({what})",
        "Load the gate of this version: egs gate unload && egs gate load",
    )
