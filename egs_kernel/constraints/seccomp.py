"""`constraints.syscalls` of an artifact → the BPF program that the launcher must install.

`check` is pure and needs no libseccomp: `egs issue` refuses early with it. `compile_filter` gives the same
bytes for the same constraint on the same host: the daemon compares them with what the kernel says it runs.

Default deny, in every form of the constraint: a call that this version does not know answers ENOSYS (programs
then fall back, as on an older kernel), a call that it knows and does not allow meets `action`.
"""

from __future__ import annotations

import errno
import platform
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.constraints.conditions import Condition, split
from egs_kernel.constraints.libseccomp import export, load_library
from egs_kernel.constraints.profiles import PROFILES
from egs_kernel.constraints.syscalls import (
    I386_ONLY,
    LAUNCH,
    MULTIPLEXERS,
    SAME_ON_I386,
    SAME_REQUESTS,
    SYSCALLS,
)
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from egs_kernel.artifact.calls import SyscallConstraint, SyscallRule

FIELD: Final = "constraints.syscalls"
ACTIONS: Final = ("errno", "kill", "log")
_UNKNOWN_CALL: Final = -1  # libseccomp's __NR_SCMP_ERROR; other negative numbers: not on this architecture
_TWICE_ON_I386: Final = (
    *range(-120, -100),
    *range(-224, -200),
)  # libseccomp's numbers of what multiplexers do, too
_INSTRUCTION_SIZE: Final = 8
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_MAX_PARTS: Final = 640
"""Parts that the rules of one constraint may cut arguments into, for all conventions: more take long, or fit into no filter."""


@dataclass(frozen=True)
class Plan:
    """What a constraint comes to, call by call, before any architecture is known.

    Every call of SYSCALLS is in exactly one of the four.

    Attributes:
        allowed: calls that pass.
        denied: calls that meet the action.
        conditional: calls that pass when every condition holds and meet the action otherwise.
        absent: calls that answer ENOSYS.
        named: calls that the artifact names itself; each must be known to this host's libseccomp.
        action: what a refused call meets: "errno" is EPERM, "kill" the end of the process; "log" lets it pass.
        conventions: the other ones of the processor that may be used.
    """

    allowed: frozenset[str]
    denied: frozenset[str]
    conditional: tuple[tuple[str, tuple[Condition, ...]], ...]
    absent: frozenset[str]
    named: frozenset[str]
    action: str
    conventions: tuple[str, ...]


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
    plan = _plan(constraint, _check_rules(constraint))
    _check_launch(constraint, plan)
    return plan


@lru_cache(maxsize=256)
def compile_filter(constraint: SyscallConstraint) -> bytes:
    """Compile to the `struct sock_filter` array that seccomp(2) takes, in this host's byte order.

    A system call by another convention of the processor (i386 or x32 on x86-64) than the native one and those that the
    constraint names kills the process, because its numbers mean other calls.

    Raises:
        Refused: `check` refuses it, or this host's libseccomp is missing or too old for it.
    """
    plan = check(constraint)
    seccomp = load_library(FIELD)
    try:
        program = _compile(plan, seccomp)
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


def _check_rules(constraint: SyscallConstraint) -> dict[str, tuple[Condition, ...]]:
    """The conditions that the artifact states itself, by call."""
    found: dict[str, tuple[Condition, ...]] = {}
    for index, rule in enumerate(constraint.rules):
        field = f"rules[{index}]"
        _check_rule(field, rule)
        for name in ("allow", "deny"):
            if rule.call in getattr(constraint, name):
                raise _malformed(
                    f"{field}.call", f"{rule.call!r} is in {name} as well", f"Remove it from {name}."
                )
        others = found.get(rule.call, ())
        if any(rule.argument == other.argument for other in others):
            raise _malformed(
                f"{field}.argument",
                f"argument {rule.argument} of {rule.call!r} has a rule already",
                "Write all values into one rule.",
            )
        condition = Condition(rule.argument, tuple(sorted(rule.values)), rule.mask, rule.op == "eq")
        found[rule.call] = (*others, condition)
        parts = sum(sum(1 for _ in split(conditions)) for conditions in found.values())
        if parts * (1 + len(constraint.architectures)) > _MAX_PARTS:
            raise _malformed(
                field,
                f"with this rule a filter needs more than {_MAX_PARTS} patterns, those of each architecture counted",
                "Compare fewer values, fewer bits, or fewer arguments of one call.",
            )
    return found


def _check_rule(field: str, rule: SyscallRule) -> None:
    if rule.call not in SYSCALLS:
        raise _malformed(f"{field}.call", f"{rule.call!r} is no known system call", "Correct the name.")
    if rule.call in LAUNCH:
        raise _malformed(f"{field}.call", f"{rule.call!r} is needed by the launch itself", "Remove the rule.")
    for index, value in enumerate(rule.values):
        if value & ~rule.mask:
            raise _malformed(
                f"{field}.values[{index}]",
                f"{value:#x} has bits that the mask {rule.mask:#x} leaves out",
                "Correct the value or the mask.",
            )
        if value in rule.values[:index]:
            raise _malformed(f"{field}.values[{index}]", f"{value:#x} is listed twice", "Remove one.")
    if len(rule.values) == 1 << rule.mask.bit_count():
        raise _malformed(
            f"{field}.values", "these are all that the mask leaves", "Use allow or deny instead of a rule."
        )


def _plan(constraint: SyscallConstraint, rules: dict[str, tuple[Condition, ...]]) -> Plan:
    allow, deny = frozenset(constraint.allow), frozenset(constraint.deny)
    denied, absent, conditions = _base(constraint, allow, deny)
    named = allow | deny | set(rules)
    conditional = {name: rule for name, rule in conditions.items() if name not in named} | rules
    denied = (denied - allow - set(rules)) | deny
    absent = absent - named
    return Plan(
        allowed=SYSCALLS - denied - absent - set(conditional),
        denied=denied,
        conditional=tuple(sorted(conditional.items())),
        absent=absent,
        named=named,
        action=constraint.action or "errno",
        conventions=tuple(sorted(constraint.architectures)),
    )


def _base(
    constraint: SyscallConstraint, allow: frozenset[str], deny: frozenset[str]
) -> tuple[frozenset[str], frozenset[str], Mapping[str, tuple[Condition, ...]]]:
    """What the lists and rules change: calls that are denied, absent, and conditional."""
    if constraint.profile is None:
        if allow and deny:
            raise _malformed(
                "",
                "allow and deny without a profile do not say what happens to all other calls",
                "Name a profile, or keep one of the two lists.",
            )
        return (SYSCALLS if allow else frozenset()), frozenset(), {}
    profile = PROFILES.get(constraint.profile)
    if profile is None:
        raise _malformed(
            "profile", f"{constraint.profile!r} is unknown", f"Use one of: {', '.join(sorted(PROFILES))}."
        )
    return profile.denied, profile.absent, profile.conditions


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
    program = _native(plan, seccomp)
    for convention in plan.conventions:
        if platform.machine() != "x86_64":
            raise Refused(
                Reason.CONSTRAINT_UNENFORCEABLE,
                f"{FIELD}.architectures: this processor has no convention {convention}",
                "Run it on an x86-64 host, or issue an artifact without it.",
            )
        program.merge(_i386(plan, seccomp) if convention == "i386" else _x32(plan, seccomp))
    return export(program)


def _empty(seccomp: Any) -> Any:
    program = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    return program


def _action(plan: Plan, seccomp: Any) -> int:
    actions: dict[str, int] = {
        "errno": seccomp.ERRNO(errno.EPERM),
        "kill": seccomp.KILL_PROCESS,
        "log": seccomp.LOG,
    }
    return actions[plan.action]


def _native(plan: Plan, seccomp: Any) -> Any:
    program, action = _empty(seccomp), _action(plan, seccomp)
    # Sorted: the order of the rules decides the order of the instructions.
    for name in sorted(plan.allowed):
        _add(program, seccomp, seccomp.ALLOW, name, plan.named)
    for name in sorted(plan.denied):
        _add(program, seccomp, action, name, plan.named)
    for name, conditions in plan.conditional:
        number = _number(seccomp, name, plan.named)
        if number is not None:
            _add_conditional(program, seccomp, action, number, conditions)
    return program


def _x32(plan: Plan, seccomp: Any) -> Any:
    """The same calls by the same names, with numbers of their own."""
    program, action = _foreign(seccomp, seccomp.Arch.X32), _action(plan, seccomp)
    conditional = dict(plan.conditional)
    for name in sorted(SYSCALLS - plan.absent):
        if seccomp.resolve_syscall(seccomp.Arch.X32, name) < 0:
            continue
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if name in conditional and _means_the_same(name, conditional[name]):
            _add_conditional(program, seccomp, action, number, conditional[name])
        else:
            program.add_rule_exactly(seccomp.ALLOW if name in plan.allowed else action, number)
    return program


def _i386(plan: Plan, seccomp: Any) -> Any:
    """Its calls by the names they have there, judged as the ones they stand for; what cannot be judged is refused."""
    program, action = _foreign(seccomp, seccomp.Arch.X86), _action(plan, seccomp)
    conditional = dict(plan.conditional)
    judged = {name: name for name in SYSCALLS} | I386_ONLY
    for name, as_what in sorted(judged.items()):
        there = seccomp.resolve_syscall(seccomp.Arch.X86, name)
        if as_what in plan.absent or (there < 0 and there not in _TWICE_ON_I386):
            continue
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)  # negative where only i386 has it
        if (
            as_what in conditional
            and as_what in SAME_ON_I386
            and _means_the_same(as_what, conditional[as_what])
        ):
            _add_conditional(program, seccomp, action, number, conditional[as_what])
        else:
            program.add_rule_exactly(seccomp.ALLOW if as_what in plan.allowed else action, number)
    # Last: libseccomp adds the part of a multiplexer that a call stands for, and the whole replaces that.
    for name, parts in sorted(MULTIPLEXERS.items()):
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        program.add_rule_exactly(seccomp.ALLOW if parts <= plan.allowed else action, number)
    return program


def _means_the_same(name: str, conditions: Sequence[Condition]) -> bool:
    """Whether what must not be asked for has no other number where pointers are short."""
    refused = [value for item in conditions if not item.equal for value in item.values]
    return name != "ioctl" or max(refused, default=0) < SAME_REQUESTS


def _foreign(seccomp: Any, architecture: int) -> Any:
    program = _empty(seccomp)
    program.remove_arch(seccomp.Arch.NATIVE)
    program.add_arch(architecture)
    return program


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


def _add_conditional(
    program: Any, seccomp: Any, action: int, number: int, conditions: Sequence[Condition]
) -> None:
    """Allow when all of them hold; otherwise the action, and not the ENOSYS of unknown calls."""
    for holds, patterns in split(conditions):
        arguments = [
            seccomp.Arg(item.argument, seccomp.MASKED_EQ, item.mask, item.value) for item in patterns
        ]
        program.add_rule_exactly(seccomp.ALLOW if holds else action, number, *arguments)
