"""What a launcher wants to execute: what it says, completed by what the kernel says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.constraints.proc import parse_environment
from egs_kernel.errors import Refused
from egs_kernel.identity.units import unit_of
from egs_kernel.model import Intent, Reason
from egs_kernel.processes import cgroup_of, read_whole

if TYPE_CHECKING:
    from egs_kernel import verify
    from egs_kernel.daemon.programs import Program
    from egs_kernel.daemon.protocol import LaunchRequest
    from egs_kernel.peers import Peer

MAX_ARGUMENTS: Final = 128 * 1024
"""Bytes of path and argv in one launch: what is asked must fit into one entry of the record."""


def declared_intent(peer: Peer, request: LaunchRequest) -> Intent:
    """The intent before the program is measured.

    Working directory and environment are those of the asking process, which becomes the program. It could
    still change them before its exec: their rules bind a launcher that keeps to the protocol.

    Raises:
        Refused: it has gone, or asks for more than can be recorded.
    """
    size = len(request.program.encode()) + sum(len(argument.encode()) + 1 for argument in request.argv)
    if size > MAX_ARGUMENTS:
        raise Refused(
            Reason.ARGV_MISMATCH,
            f"the arguments have {size} bytes; a launch has at most {MAX_ARGUMENTS}",
            "Pass less on the command line, or the rest in a file.",
        )
    return Intent(
        program=request.program,
        digest="",
        argv=request.argv,
        cwd=_working_directory(peer),
        environment=_environment(peer),
        uid=peer.uid,
        groups=peer.groups,
        unit=_unit(peer),
    )


def measured_intent(intent: Intent, program: Program) -> Intent:
    """The intent with what was measured."""
    return msgspec.structs.replace(
        intent, program=program.path, digest=program.measurement.digest, program_kind=program.kind
    )


def interpreted_intent(intent: Intent, words: tuple[str, ...]) -> Intent:
    """The intent to execute a script, as the kernel makes it the intent to execute its interpreter.

    Args:
        intent: as it was declared: by the script's name.
        words: what the kernel puts before that name.
    """
    arguments = (intent.argv or ())[1:]
    return msgspec.structs.replace(intent, argv=(*words, intent.program, *arguments))


def recorded_intent(intent: Intent, artifact: verify.Artifact | None) -> Intent:
    """The intent as the record has it: of the environment only what the artifact fixes, as it holds secrets."""
    declared = artifact.statement.predicate.intent if artifact is not None else None
    rules = declared.environment if declared is not None else None
    if rules is None or intent.environment is None:
        return msgspec.structs.replace(intent, environment=None)
    fixed = tuple((name, value) for name, value in intent.environment if rules.set.get(name) == value)
    return msgspec.structs.replace(intent, environment=fixed)


def _working_directory(peer: Peer) -> str:
    try:
        return str(Path(f"/proc/{peer.task.pid}/cwd").readlink())
    except OSError as error:
        raise _gone() from error


def _environment(peer: Peer) -> tuple[tuple[str, str], ...]:
    try:
        return parse_environment(read_whole(f"/proc/{peer.task.pid}/environ"))
    except OSError as error:
        raise _gone() from error


def _unit(peer: Peer) -> str | None:
    try:
        return unit_of(cgroup_of(peer.task.pid))
    except ProcessLookupError as error:
        raise _gone() from error


def _gone() -> Refused:
    return Refused(Reason.LAUNCHER_LOST, "the launcher has gone")
