"""The constraint word `syscalls`, as types with every rule that needs no context."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from egs_kernel.artifact.strict import Strict

WHOLE_HALF: Final = 2**32 - 1

Half = Annotated[int, Meta(ge=0, le=WHOLE_HALF)]
SyscallName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(?![\s\S]*[^a-z0-9_])")]
ProfileName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(?![\s\S]*[^a-z0-9-])[a-z]")]


class SyscallRule(Strict, frozen=True):
    """What an argument of a call must look like for the call to pass.

    The low half (32 bits) of argument `argument`, as far as `mask` says, is one of `values` (`eq`) or none of them
    (`ne`).
    """

    call: SyscallName
    argument: Annotated[int, Meta(ge=0, le=5)]
    op: Literal["eq", "ne"]
    values: Annotated[tuple[Half, ...], Meta(min_length=1, max_length=16)]
    mask: Annotated[int, Meta(ge=1, le=WHOLE_HALF)] = WHOLE_HALF


class SyscallConstraint(Strict, frozen=True):
    """Which system calls the program may make: a base profile, and lists and rules that change it.

    `architectures`: the processor's other conventions that the program may use as well.
    """

    profile: ProfileName | None = None
    allow: Annotated[tuple[SyscallName, ...], Meta(max_length=512)] = ()
    deny: Annotated[tuple[SyscallName, ...], Meta(max_length=512)] = ()
    rules: Annotated[tuple[SyscallRule, ...], Meta(max_length=64)] = ()
    action: Literal["errno", "kill", "log"] | None = None
    architectures: Annotated[tuple[Literal["i386", "x32"], ...], Meta(max_length=2)] = ()

    def __post_init__(self) -> None:
        if self.profile is None and not (self.allow or self.deny or self.rules):
            raise ValueError("syscalls needs at least one of profile, allow, deny, rules")
        if both := set(self.allow) & set(self.deny):
            raise ValueError(f"syscalls both allows and denies {', '.join(sorted(both))}")
        if len(set(self.architectures)) < len(self.architectures):
            raise ValueError("syscalls names an architecture twice")

    @property
    def only_records(self) -> bool:
        """Whether nothing is refused that it names: somebody tries it out."""
        return self.action == "log"

    @property
    def needs(self) -> tuple[str, ...]:
        """What a host must be able to enforce; of what is let pass and not recorded nothing would be left."""
        return ("syscalls", "syscalls.log") if self.only_records else ("syscalls",)
