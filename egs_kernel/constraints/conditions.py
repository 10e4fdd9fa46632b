"""What an argument must look like, as libseccomp can be told: disjoint patterns of bits. Pure.

libseccomp takes rules of "these bits are so", and answers with the filter's default action when none of a call's
rules holds. A call that fails its condition must meet the constraint's action instead, which is another one. So the
patterns here cover every value of the argument: those that hold, and those that do not. No two of them overlap,
because then the order of the rules would decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WHOLE: Final = 2**32 - 1
_HALF_BITS: Final = 32


@dataclass(frozen=True)
class Pattern:
    """Some bits of one argument: `mask` says which, `value` what they are."""

    argument: int
    mask: int
    value: int


@dataclass(frozen=True, order=True)
class Condition:
    """What one argument must look like.

    Attributes:
        argument: index of the argument. Only its low 32 bits count: the kernel looks at no more of a number or of flags,
            and whatever else is in the register must not decide.
        values: what the bits are compared with.
        mask: the bits that are compared; those of `values` lie within it.
        equal: whether they must be one of `values`, or must be none of them.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = WHOLE
    equal: bool = True

    def holds(self, argument: int) -> bool:
        """Whether an argument satisfies it."""
        return (argument & self.mask in self.values) is self.equal

    def __str__(self) -> str:
        words = " or ".join(f"{value:#x}" for value in self.values)
        return f"argument {self.argument} & {self.mask:#x} {'=' if self.equal else 'is not'} {words}"

    def patterns(self, *, holding: bool) -> list[Pattern]:
        """Disjoint patterns that together are exactly the arguments for which it holds, or does not."""
        if holding is self.equal:
            return [Pattern(self.argument, self.mask, value) for value in sorted(self.values)]
        bits = [1 << index for index in reversed(range(_HALF_BITS)) if self.mask >> index & 1]
        return list(_others(self.argument, bits, 0, 0, sorted(self.values)))


def _others(
    argument: int, bits: Sequence[int], mask: int, value: int, taken: Sequence[int]
) -> Iterator[Pattern]:
    """Everything that begins with `value`, without `taken`: the largest subtrees that have none of these."""
    if not taken:
        yield Pattern(argument, mask, value)
    elif bits:
        bit, rest = bits[0], bits[1:]
        yield from _others(argument, rest, mask | bit, value, [item for item in taken if not item & bit])
        yield from _others(argument, rest, mask | bit, value | bit, [item for item in taken if item & bit])


def split(conditions: Sequence[Condition]) -> Iterator[tuple[bool, tuple[Pattern, ...]]]:
    """Cut all arguments of a call into disjoint parts: whether every condition holds there, and the part.

    Args:
        conditions: of different arguments.
    """
    yield from _split(conditions, ())


def _split(
    conditions: Sequence[Condition], so_far: tuple[Pattern, ...]
) -> Iterator[tuple[bool, tuple[Pattern, ...]]]:
    if not conditions:
        yield True, so_far
        return
    first, rest = conditions[0], conditions[1:]
    for pattern in first.patterns(holding=False):
        yield False, (*so_far, pattern)
    for pattern in first.patterns(holding=True):
        yield from _split(rest, (*so_far, pattern))
