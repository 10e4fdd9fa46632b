"""One event of the gate as an example; tests say what of it is other."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from egs_kernel.model import ExecEvent, FileIdentity, GrantKind, Reason, Tier, Verdict

FILE: Final = FileIdentity(1, 2, 3, 4, 5, 6)
_EXEC: Final = ExecEvent(
    verdict=Verdict.ALLOW,
    reason=Reason.AUTHORIZED,
    enforced=True,
    scope="agents",
    tier=Tier.TRACEPOINT,
    time=10**9,
    execution=1,
    parent_execution=0,
    grant_id=0,
    grant_kind=GrantKind.NONE,
    artifact_id="",
    file=FILE,
    pid=42,
    parent_pid=1,
    uid=1000,
    euid=1000,
    gid=1000,
    cgroup_id=1,
    start_ticks=9,
    no_new_privs=False,
    seccomp_mode=0,
    seccomp_filters=0,
    comm="x",
    filename="/bin/x",
    argv=("/bin/x", "-v"),
    argv_bytes=9,
    argv_truncated=False,
    kill_error=0,
)


def exec_event(**changes: Any) -> ExecEvent:
    """An exec that the gate saw, with these fields."""
    return msgspec.structs.replace(_EXEC, **changes)
