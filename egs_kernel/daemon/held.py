"""One exec that is held: what it is, as the gate and the kernel say, and how it is shown."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.proc import parse_environment
from egs_kernel.daemon import protocol
from egs_kernel.daemon.intents import MAX_ARGUMENTS
from egs_kernel.errors import EgsError, Refused
from egs_kernel.gate.events import split_argv
from egs_kernel.identity.units import unit_of
from egs_kernel.model import ARGV_MAX, Intent, Reason, TaskIdentity
from egs_kernel.processes import cgroup_of

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Constraints
    from egs_kernel.model import ExecEvent, Grant, Measurement

MAX_ENVIRONMENT: Final = 1024 * 1024
"""Bytes of environment of what is held."""


@dataclass(eq=False)
class Hold:
    """An exec that waits. `until` is CLOCK_BOOTTIME nanoseconds; `problem`: why it was not authorized so far."""

    event: ExecEvent
    until: int
    intent: Intent | None = None
    program: Measurement | None = None
    problem: EgsError | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None
    looking: asyncio.Task[None] | None = None
    look_again: bool = False

    @property
    def id(self) -> str:
        """What people and the record call it: the execution that it will be."""
        return str(self.event.execution)

    @property
    def task(self) -> TaskIdentity:
        """The process."""
        return TaskIdentity(self.event.pid, self.event.start_ticks)

    def status(self, clock_offset: int) -> protocol.HoldStatus:
        """For those who ask. `clock_offset`: CLOCK_REALTIME minus CLOCK_BOOTTIME, nanoseconds."""
        event, intent = self.event, self.intent
        return protocol.HoldStatus(
            id=self.id,
            pid=event.pid,
            parent_pid=event.parent_pid,
            scope=event.scope,
            program=event.filename if intent is None else intent.program,
            digest="" if intent is None else intent.digest,
            kind="" if intent is None else intent.program_kind.value,
            argv=event.argv if intent is None or intent.argv is None else _texts(intent.argv),
            uid=event.uid,
            since=round((event.time + clock_offset) / 1e9, 3),
            until=round((self.until + clock_offset) / 1e9, 3),
            reason=event.reason.code,
            message="" if self.problem is None else self.problem.message,
        )


def held_intent(event: ExecEvent) -> Intent:
    """What a held process wants to execute, before its program is measured. Reads /proc.

    Whoever asks makes sure afterwards that the process is still held: then what was read was its.

    Raises:
        Refused: it is gone, its arguments are more than can be recorded, or not those that the gate saw.
    """
    process = Path(f"/proc/{event.pid}")
    try:
        arguments = _read(process / "cmdline", MAX_ARGUMENTS)
        environment = _read(process / "environ", MAX_ENVIRONMENT)
        folder = str((process / "cwd").readlink())
        groups = _groups((process / "status").read_text(), event.gid)
        unit = unit_of(cgroup_of(event.pid))
    except OSError as error:
        raise gone(event) from error
    seen = arguments[: ARGV_MAX if event.argv_truncated else event.argv_bytes]
    if len(arguments) != event.argv_bytes or split_argv(seen) != event.argv:
        raise Refused(
            Reason.ARGV_MISMATCH,
            f"the arguments of process {event.pid} are not those that it executed with, or more than {MAX_ARGUMENTS} bytes",
            "Look who traces it: egs holds deny",
        )
    if len(environment) > MAX_ENVIRONMENT:
        raise Refused(
            Reason.ENVIRONMENT_UNREADABLE,
            f"the environment of process {event.pid} has more than {MAX_ENVIRONMENT} bytes",
            "Start it with a smaller one.",
        )
    parts = arguments.removesuffix(b"\0").split(b"\0") if arguments else []
    return Intent(
        program=event.filename,
        digest="",
        argv=tuple(os.fsdecode(part) for part in parts),
        cwd=folder,
        environment=parse_environment(environment),
        uid=event.uid,
        groups=groups,
        unit=unit,
    )


def require_conditions(grant: Grant, event: ExecEvent) -> None:
    """What the gate would have compared at the exec, had the grant been there. Pure.

    Raises:
        Refused: with the gate's reason.
    """
    if grant.scope != event.scope:
        raise Refused(
            Reason.SCOPE_MISMATCH,
            f"process {event.pid} is governed by scope {event.scope}, the artifact is for scope {grant.scope}",
            f"Have it issued for scope {event.scope}.",
        )
    if grant.uid is not None and (event.uid, event.euid) != (grant.uid, grant.uid):
        raise Refused(
            Reason.IDENTITY_MISMATCH,
            f"it is for uid {grant.uid}; process {event.pid} runs as {event.uid}, effectively {event.euid}",
            "Have it issued for that user; a set-user-ID program cannot be let go.",
        )
    if grant.cgroup_id is not None and event.cgroup_id != grant.cgroup_id:
        raise Refused(
            Reason.CGROUP_MISMATCH,
            f"process {event.pid} executed in another cgroup than the artifact is for",
            "Start it in that cgroup, or have it issued without one.",
        )
    if event.script is not None and all(file.identity != event.script for file in grant.subjects):
        raise Refused(
            Reason.SCRIPT_UNAUTHORIZED,
            f"process {event.pid} executes the script {event.filename}, which the artifact does not name, or not as it was then",
            f"Issue for it: egs issue --program {event.filename}; if it was touched since, deny this one, and start it again.",
        )


def require_no_launch(constraints: Constraints | None) -> None:
    """A held process was not launched, and its image is there: nothing that a launch does can be done to it. Pure.

    Raises:
        Refused: the artifact has a constraint that takes a launch.
    """
    if constraints is not None and constraints.at_launch:
        raise Refused(
            Reason.CONSTRAINT_NOT_ATTESTED,
            f"its artifact constrains {', '.join(constraints.at_launch)}, which takes a launch",
            "Start the program with egs run.",
        )


def gone(event: ExecEvent) -> Refused:
    """The error for a process that is not held any more."""
    return Refused(Reason.HOLD_LOST, f"process {event.pid} is not held any more", "Run: egs holds")


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)


def _groups(status: str, gid: int) -> tuple[int, ...]:
    line = next(line for line in status.splitlines() if line.startswith("Groups:"))
    return tuple(sorted({gid, *(int(group) for group in line.split()[1:])}))


def _texts(argv: tuple[str, ...]) -> tuple[str, ...]:
    """As text: bytes that are no UTF-8 appear escaped."""
    return tuple(os.fsencode(argument).decode("utf-8", "backslashreplace") for argument in argv)
