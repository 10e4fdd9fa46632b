"""What an artifact's constraints come to at a launch: steps for the launcher, checks for the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.constraints import process, resources, seccomp
from egs_kernel.constraints.attest import Part, Plan
from egs_kernel.constraints.reach import Reach, reach_of
from egs_kernel.constraints.rulesets import kernel_abi
from egs_kernel.constraints.steps import NoNewPrivs
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Constraints, Predicate


def check(constraints: Constraints) -> None:
    """Refuse what could never be enforced, before it is signed. Pure.

    Raises:
        Refused: a word names something unknown or contradicts itself or another; the message starts with the field.
    """
    if constraints.syscalls is not None:
        seccomp.check(constraints.syscalls)
    _check_conventions(constraints)
    kept = None if constraints.process is None else constraints.process.kept
    if kept is not None and kept & resources.SYS_RESOURCE and _limits(constraints):
        raise Refused(
            Reason.ARTIFACT_MALFORMED,
            "constraints.process.capabilities: sys_resource would lift the limits of constraints.resources",
            "Remove sys_resource, or the limits.",
        )


def _check_conventions(constraints: Constraints) -> None:
    childless = constraints.process is not None and constraints.process.children == "none"
    if childless and constraints.syscalls is not None and constraints.syscalls.architectures:
        raise Refused(
            Reason.ARTIFACT_MALFORMED,
            f"{seccomp.FIELD}.architectures: a program without children has the native convention alone",
            f"Remove the architectures, or {process.CHILDREN}.",
        )


def plan(predicate: Predicate) -> Plan:
    """What the launcher has to do, and what has to hold then.

    Raises:
        Refused: a word names something unknown, contradicts itself, or this host cannot do it.
    """
    constraints, intent = predicate.constraints, predicate.intent
    parts = [] if intent is None else [process.intent_part(intent)]
    filters: tuple[bytes, ...] = ()
    reach = Reach()
    if constraints is not None:
        check(constraints)
        parts += _parts(constraints)
        if constraints.syscalls is not None:
            filters = (seccomp.compile_filter(constraints.syscalls),)
        if constraints.process is not None and constraints.process.children == "none":
            filters = (process.childless_filter(), *filters)
        reach = reach_of(constraints, kernel_abi())
        if reach.filter is not None:
            filters = (*filters, reach.filter)
    return Plan(parts=tuple(part for part in parts if part is not None), filters=filters, reach=reach)


def _parts(constraints: Constraints) -> list[Part | None]:
    word = constraints.process
    kept = None if word is None else word.kept
    limited = _limits(constraints)
    if limited:
        kept = (process.ALL_CAPABILITIES if kept is None else kept) & ~resources.SYS_RESOURCE
    return [
        Part(NoNewPrivs()) if constraints.at_launch else None,  # whatever it is: later execs lift nothing
        None if word is None or word.umask is None else process.umask_part(word.umask),
        None if kept is None else process.capabilities_part(kept),
        None if constraints.resources is None else resources.part(constraints.resources),
    ]


def _limits(constraints: Constraints) -> dict[str, int]:
    return {} if constraints.resources is None else resources.limits(constraints.resources)
