"""`constraints.syscalls` of an artifact → the BPF program that the launcher must install.

`check` is pure and needs no libseccomp: `egs issue` refuses early with it. `compile_filter` gives the same
bytes for the same constraint on the same host: the daemon compares them with what the kernel says it runs.

Default deny, in both forms of the constraint: a call that this version does not know answers ENOSYS (programs
then fall back, as on an older kernel), a call that it knows and does not allow meets `action`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.constraints.syscalls import LAUNCH, PROFILES, SYSCALLS, Condition
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egs_kernel.artifact.statement import SyscallConstraint

FIELD: Final = "constraints.syscalls"
ACTIONS: Final = ("errno", "kill")
_UNKNOWN_CALL: Final = -1  # libseccomp's __NR_SCMP_ERROR; other negative numbers: not on this architecture
_INSTRUCTION_SIZE: Final = 8
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


@dataclass(frozen=True)
class Plan:
    """What a constraint comes to, call by call, before any architecture is known.

    Every call of SYSCALLS is in exactly one of the four.

    Attributes:
        allowed: calls that pass.
        denied: calls that meet the action.
        conditional: calls that pass when the condition holds and meet the action otherwise.
        absent: calls that answer ENOSYS.
        named: calls that the artifact names itself; each must be known to this host's libseccomp.
        kill: the action is to kill the process; otherwise it is EPERM.
    """

    allowed: frozenset[str]
    denied: frozenset[str]
    conditional: tuple[tuple[str, Condition], ...]
    absent: frozenset[str]
    named: frozenset[str]
    kill: bool


def check(constraint: SyscallConstraint) -> Plan:
    """Check the constraint and say what it comes to. Pure.

    That it says anything at all, and does not both allow and deny a call, its type has made sure of.

    Raises:
        Refused: it names something unknown, contradicts itself, or would forbid the launch; the message
            starts with the field.
    """
    if constraint.action is not None and constraint.action not in ACTIONS:
        raise _malformed("action", f"{constraint.action!r} is unknown", f"Use one of: {', '.join(ACTIONS)}.")
    _check_names("allow", constraint.allow)
    _check_names("deny", constraint.deny)
    for index, name in enumerate(constraint.deny):
        if name in constraint.allow:
            raise _malformed(
                f"deny[{index}]", f"{name!r} is in allow as well", "Remove it from one of the two lists."
            )
    plan = _plan(constraint)
    _check_launch(constraint, plan)
    return plan


@lru_cache(maxsize=256)
def compile_filter(constraint: SyscallConstraint) -> bytes:
    """Compile to the `struct sock_filter` array that seccomp(2) takes, in this host's byte order.

    Only the native architecture passes: a system call by another convention of the processor (i386 or x32
    on x86-64) kills the process, because its numbers mean other calls.

    Raises:
        Refused: `check` refuses it, or this host's libseccomp is missing or too old for it.
    """
    plan = check(constraint)
    try:
        import pyseccomp  # noqa: PLC0415 - it raises without libseccomp, and check() must work without
    except (ImportError, RuntimeError) as error:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{FIELD}: libseccomp is not installed on this host",
            "Install it (Debian: apt-get install libseccomp2).",
        ) from error
    try:
        program = _compile(plan, pyseccomp)
    except OSError as error:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{FIELD}: libseccomp cannot compile it: {error.strerror}",
            "Update libseccomp, or issue an artifact with a simpler constraint.",
        ) from error
    instructions = len(program) // _INSTRUCTION_SIZE
    if instructions > _MAX_INSTRUCTIONS:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{FIELD}: compiles to {instructions} instructions; the kernel takes {_MAX_INSTRUCTIONS}",
            "Issue an artifact with a shorter list.",
        )
    return program


def _malformed(field: str, problem: str, next_step: str) -> Refused:
    where = f"{FIELD}.{field}" if field else FIELD
    return Refused(Reason.ARTIFACT_MALFORMED, f"{where}: {problem}", next_step)


def _check_names(field: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name not in SYSCALLS:
            raise _malformed(f"{field}[{index}]", f"{name!r} is no known system call", "Correct the name.")
        if name in names[:index]:
            raise _malformed(f"{field}[{index}]", f"{name!r} is listed twice", "Remove one.")


def _plan(constraint: SyscallConstraint) -> Plan:
    allow, deny = frozenset(constraint.allow), frozenset(constraint.deny)
    named, kill = allow | deny, constraint.action == "kill"
    if constraint.profile is None:
        if allow and deny:
            raise _malformed(
                "",
                "allow and deny without a profile do not say what happens to all other calls",
                "Name a profile, or keep one of the two lists.",
            )
        allowed = allow or SYSCALLS - deny
        return Plan(allowed, SYSCALLS - allowed, (), frozenset(), named, kill)
    profile = PROFILES.get(constraint.profile)
    if profile is None:
        raise _malformed(
            "profile", f"{constraint.profile!r} is unknown", f"Use one of: {', '.join(sorted(PROFILES))}."
        )
    denied = (profile.denied - allow) | deny
    absent = profile.absent - named
    conditional = tuple(
        sorted((name, rule) for name, rule in profile.conditions.items() if name not in named)
    )
    allowed = SYSCALLS - denied - absent - {name for name, _ in conditional}
    return Plan(allowed, denied, conditional, absent, named, kill)


def _check_launch(constraint: SyscallConstraint, plan: Plan) -> None:
    missing = sorted(LAUNCH - plan.allowed)
    if not missing:
        return
    for index, name in enumerate(constraint.deny):
        if name in LAUNCH:
            raise _malformed(
                f"deny[{index}]", f"{name!r} is needed by the launch itself", "Remove it from deny."
            )
    raise _malformed(
        "allow", f"lacks what the launch itself needs: {' '.join(missing)}", "Add these calls to allow."
    )


def _compile(plan: Plan, seccomp: Any) -> bytes:
    action = seccomp.KILL_PROCESS if plan.kill else seccomp.ERRNO(errno.EPERM)
    program = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    # Sorted: the order of the rules decides the order of the instructions.
    for name in sorted(plan.allowed):
        _add(program, seccomp, seccomp.ALLOW, name, plan.named)
    for name in sorted(plan.denied):
        _add(program, seccomp, action, name, plan.named)
    for name, condition in plan.conditional:
        _add_conditional(program, seccomp, action, name, condition)
    return _export(program)


def _number(seccomp: Any, name: str, named: frozenset[str]) -> int | None:
    """The number here, or None: not on this architecture, or newer than libseccomp and not named."""
    number: int = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    if number == _UNKNOWN_CALL and name in named:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"{FIELD}: this host's libseccomp does not know {name!r}",
            f"Update libseccomp, or issue an artifact that does not name {name!r}.",
        )
    return number if number >= 0 else None


def _add(program: Any, seccomp: Any, action: int, name: str, named: frozenset[str]) -> None:
    number = _number(seccomp, name, named)
    if number is not None:
        program.add_rule_exactly(action, number)


def _add_conditional(program: Any, seccomp: Any, action: int, name: str, condition: Condition) -> None:
    """Allow when the condition holds; otherwise the action, and not the ENOSYS of unknown calls.

    "Otherwise" is written as one rule for each bit that may differ: libseccomp has no masked "not equal".
    """
    number = _number(seccomp, name, frozenset())
    if number is None:
        return
    argument = condition.argument
    holds = seccomp.Arg(argument, seccomp.MASKED_EQ, condition.mask, condition.value)
    program.add_rule_exactly(seccomp.ALLOW, number, holds)
    for bit in (1 << index for index in range(32)):
        if condition.mask & bit:
            differs = seccomp.Arg(argument, seccomp.MASKED_EQ, bit, ~condition.value & bit)
            program.add_rule_exactly(action, number, differs)


def _export(program: Any) -> bytes:
    with os.fdopen(os.memfd_create("egs-seccomp", os.MFD_CLOEXEC), "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
