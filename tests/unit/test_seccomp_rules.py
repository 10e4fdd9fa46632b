from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from egs_kernel.artifact.calls import SyscallConstraint, SyscallRule
from egs_kernel.constraints.conditions import WHOLE, Condition, split
from egs_kernel.constraints.profiles import PROFILES
from egs_kernel.constraints.seccomp import Plan, check, compile_filter
from egs_kernel.constraints.syscalls import I386_ONLY, LAUNCH, MULTIPLEXERS, SAME_ON_I386, SYSCALLS
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from tests.unit.interpreting import (
    ALLOW,
    AUDIT_ARCH,
    ENOSYS,
    EPERM,
    I386,
    KILL,
    LOG,
    X32_BIT,
    number_of,
    run,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has other conventions")

TIOCSTI: Final = 0x5412


def rule(call: str, argument: int, op: str, *values: int, mask: int = WHOLE) -> SyscallRule:
    return SyscallRule(call=call, argument=argument, op=op, values=values, mask=mask)  # type: ignore[arg-type]


def rules(*given_rules: SyscallRule, **more: Any) -> SyscallConstraint:
    return SyscallConstraint(rules=given_rules, **more)


# -- what makes no sense -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "field", "words"),
    [
        (rules(rule("sokcet", 0, "eq", 1)), "rules[0].call", "no known system call"),
        (rules(rule("mount", 0, "eq", 1), rule("mmap", 2, "ne", 4)), "rules[1].call", "needed by the launch"),
        (rules(rule("ioctl", 1, "ne", 1), profile="default", deny=("ioctl",)), "rules[0].call", "in deny"),
        (rules(rule("ioctl", 1, "ne", 1), profile="default", allow=("ioctl",)), "rules[0].call", "in allow"),
        (rules(rule("kill", 1, "eq", 9, 9)), "rules[0].values[1]", "listed twice"),
        (rules(rule("kill", 1, "eq", 1, 0x100, mask=0xFF)), "rules[0].values[1]", "leaves out"),
        (rules(rule("kill", 1, "eq", 0, 1, mask=1)), "rules[0].values", "all that the mask leaves"),
        (rules(rule("kill", 1, "eq", 9), rule("kill", 1, "eq", 15)), "rules[1].argument", "a rule already"),
        (
            rules(rule("kill", 1, "eq", *range(0, 160, 10)), rule("kill", 0, "eq", *range(0, 160, 10))),
            "rules[1]",
            "more than 640 patterns",
        ),
        (
            rules(rule("kill", 1, "eq", *(n << 28 | 1 for n in range(16))), architectures=("i386", "x32")),
            "rules[0]",
            "more than 640 patterns",
        ),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_field(
    constraint: SyscallConstraint, field: str, words: str
) -> None:
    with pytest.raises(Refused) as caught:
        check(constraint)
    assert caught.value.reason is Reason.ARTIFACT_MALFORMED
    assert caught.value.message.startswith(f"constraints.syscalls.{field}: ")
    assert words in caught.value.message
    assert caught.value.next_step


# -- what the patterns are ---------------------------------------------------------------------------

masks = st.one_of(st.just(WHOLE), st.integers(1, WHOLE), st.integers(1, 255))


@st.composite
def conditions(draw: st.DrawFn, argument: int) -> Condition:
    mask = draw(masks)
    values = draw(st.sets(st.integers(0, WHOLE).map(lambda value: value & mask), min_size=1, max_size=4))
    assume(len(values) < 1 << mask.bit_count())
    return Condition(argument, tuple(sorted(values)), mask, draw(st.booleans()))


@given(st.data())
@settings(max_examples=100)
def test_every_value_is_in_exactly_one_part(data: st.DataObject) -> None:
    chosen = [
        data.draw(conditions(argument)) for argument in data.draw(st.sets(st.integers(0, 5), max_size=2))
    ]
    words = [data.draw(near(chosen, argument)) for argument in range(6)]
    found = [
        holds
        for holds, patterns in split(chosen)
        if all(words[item.argument] & item.mask == item.value for item in patterns)
    ]
    assert found == [all(item.holds(words[item.argument]) for item in chosen)]


def near(chosen: Sequence[Condition], argument: int) -> st.SearchStrategy[int]:
    """Arguments, most of them close to what a condition compares with; the upper half is the caller's to choose."""
    values = [value for item in chosen if item.argument == argument for value in item.values]
    low = st.integers(0, WHOLE)
    if values:
        low = st.one_of(
            low,
            st.tuples(st.sampled_from(values), st.integers(0, 32)).map(
                lambda pair: (pair[0] ^ (1 << pair[1])) & WHOLE
            ),
            st.sampled_from(values),
        )
    return st.tuples(st.sampled_from([0, 0, 1, 0x80000000, WHOLE]), low).map(
        lambda pair: pair[0] << 32 | pair[1]
    )


# -- what the filter answers -------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25)
def test_a_filter_answers_as_the_rules_say(data: st.DataObject) -> None:
    arguments = data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=2))
    chosen = [data.draw(conditions(argument)) for argument in sorted(arguments)]
    given_rules = tuple(
        rule("ioctl", item.argument, "eq" if item.equal else "ne", *item.values, mask=item.mask)
        for item in chosen
    )
    try:
        program = compile_filter(SyscallConstraint(allow=tuple(sorted(LAUNCH)), rules=given_rules))
    except Refused as refused:
        assert "more than" in refused.message  # noqa: PT017 - too large is the only reason, and a good one
        assume(False)
    for _ in range(20):
        words = tuple(data.draw(near(chosen, argument)) for argument in range(6))
        expected = ALLOW if all(item.holds(words[item.argument]) for item in chosen) else EPERM
        assert verdict(program, "ioctl", *words) == expected


def test_a_rule_decides_alone_about_its_call() -> None:
    program = compile_filter(
        rules(
            rule("ptrace", 0, "eq", 0),
            rule("socket", 0, "eq", 1, 16),
            rule("clone3", 0, "eq", 7),
            profile="no-network",
            deny=("bind",),
        )
    )
    assert verdict(program, "ptrace", 0) == ALLOW
    assert verdict(program, "ptrace", 16) == EPERM
    assert [verdict(program, "socket", domain) for domain in (1, 2, 16)] == [ALLOW, EPERM, ALLOW]
    assert verdict(program, "socketpair", 16) == EPERM
    assert verdict(program, "clone3", 7) == ALLOW
    assert verdict(program, "clone3", 8) == EPERM
    assert verdict(program, "bind") == EPERM
    assert verdict(program, "mount") == EPERM


def test_a_denied_value_has_no_second_spelling() -> None:
    """A filter that compares 64 bits lets TIOCSTI pass when its caller sets a bit that the kernel ignores."""
    program = compile_filter(rules(rule("ioctl", 1, "ne", TIOCSTI)))
    for upper in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        assert verdict(program, "ioctl", 0, upper << 32 | TIOCSTI) == EPERM
        assert verdict(program, "ioctl", 0, upper << 32 | 0x5401) == ALLOW


def test_rules_without_a_profile_leave_everything_else_as_the_lists_do() -> None:
    alone = compile_filter(rules(rule("kill", 1, "eq", 0)))
    assert verdict(alone, "mount") == ALLOW
    with_allow = compile_filter(rules(rule("kill", 1, "eq", 0), allow=tuple(sorted(LAUNCH)), action="kill"))
    assert verdict(with_allow, "mount") == KILL
    with_deny = compile_filter(rules(rule("kill", 1, "eq", 0), deny=("mount",)))
    assert verdict(with_deny, "mount") == EPERM
    for program, refusal in ((alone, EPERM), (with_allow, KILL), (with_deny, EPERM)):
        assert verdict(program, "kill", 1, 0) == ALLOW
        assert verdict(program, "kill", 1, 9) == refusal


def test_log_lets_pass_what_is_refused_otherwise_and_nothing_that_nobody_reviewed() -> None:
    program = compile_filter(rules(rule("ioctl", 1, "ne", TIOCSTI), profile="default", action="log"))
    assert verdict(program, "mount") == LOG
    assert verdict(program, "ioctl", 0, TIOCSTI) == LOG
    assert verdict(program, "read") == ALLOW
    assert verdict(program, "clone3") == ENOSYS
    assert run(program, 1000) == ENOSYS
    assert run(program, number_of("read"), arch=I386) == KILL


# -- the processor's other conventions ---------------------------------------------------------------


def expected(plan: Plan, call: str, refusal: int, arguments: tuple[int, ...] = ()) -> int:
    if call in plan.absent:
        return ENOSYS
    for name, wanted in plan.conditional:
        if name == call:
            return ALLOW if all(item.holds((*arguments, 0, 0)[item.argument]) for item in wanted) else refusal
    return ALLOW if call in plan.allowed else refusal


def names_of(architecture: str, numbers: range) -> dict[int, str]:
    import pyseccomp  # noqa: PLC0415 - importing it needs libseccomp, which only these tests do

    arch = getattr(pyseccomp.Arch, architecture)
    found = {}
    for number in numbers:
        try:
            found[number] = pyseccomp.resolve_syscall(arch, number).decode()
        except (OSError, ValueError):
            continue
    return found


EVERYTHING = [
    *((profile, ()) for profile in sorted(PROFILES)),
    (None, (rule("kill", 1, "eq", 0), rule("socket", 0, "ne", 17), rule("fallocate", 1, "eq", 0))),
]


@x86_64
@pytest.mark.parametrize(("profile", "given_rules"), EVERYTHING)
def test_i386_gets_what_its_calls_mean(profile: str | None, given_rules: tuple[SyscallRule, ...]) -> None:
    """Every number there is: what passes is what means the same as a call that passes natively, and nothing else."""
    constraint = rules(*given_rules, profile=profile, architectures=("i386",))
    plan, program = check(constraint), compile_filter(constraint)
    conditional = dict(plan.conditional)
    seen = set()
    for number, name in names_of("X86", range(500)).items():
        call = I386_ONLY.get(name, name)
        answer = run(program, number, arch=I386)
        if name in MULTIPLEXERS:
            assert answer == (ALLOW if MULTIPLEXERS[name] <= plan.allowed else EPERM), name
        elif call not in SYSCALLS:
            assert answer == ENOSYS, name
        elif call in conditional and call not in SAME_ON_I386:
            assert answer == EPERM, name
        else:
            assert answer == expected(plan, call, EPERM), name
            seen.add(name)
    assert len(seen) > 300
    assert run(program, 499, arch=I386) == ENOSYS
    for call in sorted(LAUNCH):  # natively everything is as without it
        if number_of(call) >= 0:
            assert verdict(program, call) == ALLOW
    assert run(program, X32_BIT | number_of("read")) == KILL


@x86_64
@pytest.mark.parametrize(("profile", "given_rules"), EVERYTHING)
def test_x32_gets_the_same_calls(profile: str | None, given_rules: tuple[SyscallRule, ...]) -> None:
    constraint = rules(*given_rules, profile=profile, architectures=("x32",))
    plan, program = check(constraint), compile_filter(constraint)
    numbers = {**names_of("X32", range(X32_BIT, X32_BIT + 550))}
    assert len(numbers) > 300
    for number, name in numbers.items():
        answer = run(program, number)
        assert answer == (expected(plan, name, EPERM) if name in SYSCALLS else ENOSYS), name
    assert run(program, number_of("read"), arch=I386) == KILL
    assert run(program, X32_BIT | 1000) == ENOSYS


@x86_64
def test_a_request_that_has_another_number_there_takes_the_whole_call_with_it() -> None:
    """_IOW('X', 1, a structure with a pointer): what must not be asked for could be asked for by the other number."""
    conventions = ("i386", "x32")
    sized = compile_filter(rules(rule("ioctl", 1, "ne", 0x40105801), architectures=conventions))
    plain = compile_filter(rules(rule("ioctl", 1, "ne", TIOCSTI), architectures=conventions))
    for number, arch in ((54, I386), (X32_BIT | 514, AUDIT_ARCH)):
        assert run(sized, number, (0, 0x400C5801), arch=arch) == EPERM
        assert run(plain, number, (0, TIOCSTI), arch=arch) == EPERM
        assert run(plain, number, (0, 0x5401), arch=arch) == ALLOW
    assert verdict(sized, "ioctl", 0, 0x400C5801) == ALLOW


@x86_64
def test_i386_only_calls_are_judged_as_calls_that_exist() -> None:
    known = set(names_of("X86", range(500)).values())
    assert set(I386_ONLY) <= known
    assert set(I386_ONLY.values()) <= SYSCALLS
    assert set(I386_ONLY).isdisjoint(SYSCALLS)
    assert set(MULTIPLEXERS) <= known
    assert set().union(*MULTIPLEXERS.values()) <= SYSCALLS


@x86_64
def test_no_network_means_none_by_the_multiplexer_either() -> None:
    program = compile_filter(SyscallConstraint(profile="no-network", architectures=("i386",)))
    for number in (102, 359):  # socketcall, socket
        for domain in (1, 2, 16):
            assert run(program, number, (domain,), arch=I386) == EPERM
    open_to_all = compile_filter(SyscallConstraint(profile="default", architectures=("i386",)))
    assert run(open_to_all, 102, (1,), arch=I386) == ALLOW


@x86_64
def test_both_conventions_at_once_and_always_the_same_bytes() -> None:
    one = SyscallConstraint(profile="strict", architectures=("i386", "x32"))
    other = SyscallConstraint(profile="strict", architectures=("x32", "i386"))
    program = compile_filter(one)
    assert compile_filter(other) == program
    assert compile_filter.__wrapped__(one) == program
    assert run(program, 3, arch=I386) == ALLOW
    assert run(program, X32_BIT | number_of("read")) == ALLOW
    assert run(program, 21, arch=I386) == EPERM  # mount


def test_a_host_without_the_convention_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Refused) as caught:
        compile_filter.__wrapped__(SyscallConstraint(profile="default", architectures=("i386",)))
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert "architectures" in caught.value.message
