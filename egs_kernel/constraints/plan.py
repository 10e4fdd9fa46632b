"""What an artifact's constraints come to at a launch: steps for the launcher, checks for the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.constraints import seccomp
from egs_kernel.constraints.attest import Plan

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Constraints


def check(constraints: Constraints) -> None:
    """Refuse what could never be enforced, before it is signed. Pure.

    Raises:
        Refused: a word names something unknown or contradicts itself; the message starts with the field.
    """
    if constraints.syscalls is not None:
        seccomp.check(constraints.syscalls)


def plan(constraints: Constraints | None) -> Plan:
    """What the launcher has to do, and what has to hold then.

    Raises:
        Refused: a word names something unknown, contradicts itself, or this host cannot do it.
    """
    if constraints is None:
        return Plan()
    filters = () if constraints.syscalls is None else (seccomp.compile_filter(constraints.syscalls),)
    return Plan(filters=filters)
