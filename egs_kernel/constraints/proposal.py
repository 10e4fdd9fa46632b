"""From the system calls that a run made to a constraint that allows them. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.calls import SyscallConstraint, SyscallRule
from egs_kernel.constraints.profiles import NARROWEST_FIRST, PROFILES
from egs_kernel.constraints.syscalls import I386_ONLY, LAUNCH, MULTIPLEXERS, SYSCALLS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.constraints.conditions import Condition
    from egs_kernel.constraints.profiles import Profile

_MOST_VALUES: Final = 16
_LOW_HALF: Final = 2**32 - 1

ASKED: Final = {
    (call, condition.argument)
    for profile in PROFILES.values()
    for call, conditions in profile.conditions.items()
    for condition in conditions
}
"""The arguments that some profile asks for."""


@dataclass
class Seen:
    """What a run did.

    Attributes:
        counts: calls by convention ("" is the native one, "i386" and "x32") and name, and how often. Those that every launch
            needs are allowed in any case, and not counted.
        arguments: the low half of what ASKED arguments were, by call and argument.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    arguments: dict[tuple[str, int], set[int]] = field(default_factory=dict)

    def take(self, convention: str, name: str, arguments: tuple[int, ...]) -> None:
        """One more call."""
        self.counts[convention, name] += 1
        for index, value in enumerate(arguments):
            if (name, index) in ASKED:
                self.arguments.setdefault((name, index), set()).add(value & _LOW_HALF)

    @property
    def calls(self) -> frozenset[str]:
        """The calls of SYSCALLS that it needs, whatever it calls them by."""
        found: set[str] = set()
        for convention, name in self.counts:
            if convention == "i386":
                found |= MULTIPLEXERS.get(name, frozenset({I386_ONLY.get(name, name)}))
            else:
                found.add(name)
        return frozenset(found & SYSCALLS)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Calls that no constraint can allow: they answer ENOSYS."""
        known = SYSCALLS | set(I386_ONLY) | set(MULTIPLEXERS)
        return tuple(sorted({name for _, name in self.counts if name not in known}))

    @property
    def conventions(self) -> tuple[str, ...]:
        """The conventions beside the native one."""
        return tuple(sorted({convention for convention, _ in self.counts} - {""}))


@dataclass(frozen=True)
class _Fit:
    """What a profile lacks for what was seen."""

    name: str
    allow: tuple[str, ...]
    rules: tuple[SyscallRule, ...]

    @property
    def distance(self) -> tuple[int, int]:
        """Fewest exceptions first; of equals the narrowest profile."""
        return len(self.allow) + len(self.rules), NARROWEST_FIRST.index(self.name)


def propose(seen: Seen) -> SyscallConstraint:
    """The nearest profile, and what it lacks."""
    best = min(
        (_fit(name, profile, seen) for name, profile in PROFILES.items()), key=lambda fit: fit.distance
    )
    return SyscallConstraint(
        profile=best.name,
        allow=best.allow,
        rules=best.rules,
        architectures=seen.conventions,  # type: ignore[arg-type] # of the two that are named
    )


def propose_exact(seen: Seen) -> SyscallConstraint:
    """Exactly the calls that were seen, and those of the launch."""
    return SyscallConstraint(
        allow=tuple(sorted(seen.calls | LAUNCH)),
        architectures=seen.conventions,  # type: ignore[arg-type] # of the two that are named
    )


def _fit(name: str, profile: Profile, seen: Seen) -> _Fit:
    allow, rules = [], []
    for call in sorted(seen.calls):
        if call in profile.denied:
            allow.append(call)
        for condition in profile.conditions.get(call, ()):
            values = seen.arguments.get((call, condition.argument), set())
            if all(condition.holds(value) for value in values):
                continue
            rule = _widened(call, condition, values)
            if rule is None:
                allow.append(call)
            else:
                rules.append(rule)
    return _Fit(name, tuple(allow), tuple(rules))


def _widened(call: str, condition: Condition, values: Iterable[int]) -> SyscallRule | None:
    """The profile's condition with the values that were seen; None: that is not to be said by one."""
    wanted = sorted({*condition.values, *values})
    if not condition.equal or condition.mask != _LOW_HALF or len(wanted) > _MOST_VALUES:
        return None
    return SyscallRule(call=call, argument=condition.argument, op="eq", values=tuple(wanted))


def toml_of(constraint: SyscallConstraint, comments: Iterable[str] = ()) -> str:
    """The constraint as a file for `egs issue --constraints`."""
    lines = [*(f"# {comment}" for comment in comments), "[syscalls]"]
    if constraint.profile is not None:
        lines.append(f'profile = "{constraint.profile}"')
    for name in ("allow", "deny", "architectures"):
        if values := getattr(constraint, name):
            lines += [f"{name} = [", *(f'    "{value}",' for value in values), "]"]
    if constraint.action is not None:
        lines.append(f'action = "{constraint.action}"')
    for rule in constraint.rules:
        values = ", ".join(f"{value:#x}" for value in rule.values)
        lines += ["", "[[syscalls.rules]]", f'call = "{rule.call}"', f"argument = {rule.argument}"]
        lines += [f'op = "{rule.op}"', f"values = [{values}]"]
        if rule.mask != _LOW_HALF:
            lines.append(f"mask = {rule.mask:#x}")
    return "\n".join(lines) + "\n"
