from __future__ import annotations

import platform
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.artifact.calls import SyscallConstraint
from egs_kernel.constraints.profiles import PROFILES, Profile
from egs_kernel.constraints.seccomp import check, compile_filter
from egs_kernel.constraints.syscalls import LAUNCH, SYSCALLS
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from tests.unit.interpreting import ALLOW, ENOSYS, EPERM, I386, KILL, LOG, X32_BIT, number_of, run, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENT: Final = Path(__file__).parents[2] / "docs/constraints.md"

NEWER_THAN_ANY_TABLE: Final = 1000
CLONE_NEWUSER, CLONE_THREAD = 0x10000000, 0x00010000
AF_UNIX, AF_INET, AF_NETLINK = 1, 2, 16


def constraint(
    profile: str | None = None,
    *,
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    action: str | None = None,
) -> SyscallConstraint:
    # The type admits two actions; hostile input is checked all the same.
    return SyscallConstraint(profile=profile, allow=allow, deny=deny, action=action)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_constraint", "field", "words"),
    [
        (constraint("defualt"), "profile", "unknown"),
        (constraint("default", action="trap"), "action", "unknown"),
        (constraint("default", deny=("raed",)), "deny[0]", "no known system call"),
        (constraint("default", deny=("acct", "")), "deny[1]", "no known system call"),
        (constraint("default", allow=("mount", "Ptrace")), "allow[1]", "no known system call"),
        (constraint("default", allow=("mount", "mount")), "allow[1]", "listed twice"),
        (constraint("default", deny=("execve",)), "deny[0]", "needed by the launch"),
        (constraint(deny=("mount", "exit_group")), "deny[1]", "needed by the launch"),
        (constraint(allow=tuple(sorted(LAUNCH - {"execve", "mmap"}))), "allow", "execve mmap"),
        (constraint(allow=tuple(sorted(LAUNCH)), deny=("mount",)), "", "without a profile"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_field(
    given_constraint: SyscallConstraint, field: str, words: str
) -> None:
    with pytest.raises(Refused) as caught:
        check(given_constraint)
    assert caught.value.reason is Reason.ARTIFACT_MALFORMED
    where = f"constraints.syscalls.{field}" if field else "constraints.syscalls"
    assert caught.value.message.startswith(f"{where}: ")
    assert words in caught.value.message
    assert caught.value.next_step


def test_what_contradicts_itself_or_says_nothing_cannot_be_written_down() -> None:
    with pytest.raises(ValueError, match="both allows and denies mount"):
        constraint("default", allow=("mount",), deny=("bpf", "mount"))
    with pytest.raises(ValueError, match="at least one of"):
        constraint()


def test_check_needs_no_libseccomp() -> None:
    program = (
        "import sys; sys.modules['pyseccomp'] = None\n"
        "from egs_kernel.constraints.seccomp import check, compile_filter\n"
        "from egs_kernel.errors import Refused\n"
        "class C:\n profile = 'default'; allow = deny = rules = architectures = (); action = 'errno'\n"
        "assert 'mount' in check(C()).denied\n"
        "try:\n compile_filter(C())\n"
        "except Refused as refused:\n print(refused.reason.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "constraint_unenforceable"


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize(
    ("action", "refusal"), [(None, EPERM), ("errno", EPERM), ("kill", KILL), ("log", LOG)]
)
def test_a_profile_stops_what_it_lists_and_nothing_else(name: str, action: str, refusal: int) -> None:
    profile = PROFILES[name]
    program = compile_filter(constraint(name, action=action))
    seen = 0
    for call in sorted(SYSCALLS):
        if number_of(call) < 0:
            continue
        seen += 1
        if call in profile.denied:
            assert verdict(program, call) == refusal, call
        elif call in profile.absent:
            assert verdict(program, call) == ENOSYS, call
        elif call not in profile.conditions:
            assert verdict(program, call) == ALLOW, call
    assert seen > 250


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_is_made_of_known_calls_and_lets_the_launch_happen(name: str) -> None:
    profile = PROFILES[name]
    assert profile.denied | profile.absent | set(profile.conditions) <= SYSCALLS
    assert not LAUNCH & (profile.denied | profile.absent | set(profile.conditions))
    program = compile_filter(constraint(name))
    for call in sorted(LAUNCH):
        if number_of(call) >= 0:
            assert verdict(program, call) == ALLOW, call


@pytest.mark.parametrize(("action", "refusal"), [("errno", EPERM), ("kill", KILL)])
def test_clone_makes_threads_and_no_namespaces(action: str, refusal: int) -> None:
    program = compile_filter(constraint("default", action=action))
    assert verdict(program, "clone", CLONE_THREAD | 0xFF) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert verdict(program, "clone", 1 << bit | 17) == refusal
    assert verdict(program, "clone", 0x7E020000) == refusal
    assert verdict(program, "clone", 1 << 32 | CLONE_NEWUSER) == refusal


@given(domain=st.integers(0, 2**64 - 1))
@settings(max_examples=300)
def test_a_socket_is_judged_by_the_low_half_of_its_domain_as_in_the_kernel(domain: int) -> None:
    program = compile_filter(constraint("no-network"))
    expected = ALLOW if domain & 0xFFFFFFFF == AF_UNIX else EPERM
    assert verdict(program, "socket", domain) == expected


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_no_network_leaves_unix_sockets(call: str) -> None:
    program = compile_filter(constraint("no-network", action="kill"))
    assert verdict(program, call, AF_UNIX) == ALLOW
    assert verdict(program, call, 1 << 32 | AF_UNIX) == ALLOW
    for domain in (0, AF_INET, AF_NETLINK, 3, 1 << 31 | 1, 0xFFFFFFFF):
        assert verdict(program, call, domain) == KILL
    assert verdict(compile_filter(constraint("default")), call, AF_INET) == ALLOW


def test_lists_change_a_profile() -> None:
    program = compile_filter(
        constraint("no-network", allow=("ptrace", "clone", "clone3"), deny=("socket", "kill"))
    )
    assert verdict(program, "ptrace") == ALLOW
    assert verdict(program, "clone", CLONE_NEWUSER) == ALLOW
    assert verdict(program, "clone3") == ALLOW
    assert verdict(program, "socket", AF_UNIX) == EPERM
    assert verdict(program, "kill") == EPERM
    assert verdict(program, "mount") == EPERM


def test_an_allow_list_allows_nothing_else() -> None:
    program = compile_filter(constraint(allow=tuple(sorted(LAUNCH | {"openat"})), action="kill"))
    for call in sorted(SYSCALLS):
        if number_of(call) >= 0:
            assert verdict(program, call) == (ALLOW if call in LAUNCH | {"openat"} else KILL), call


def test_a_deny_list_denies_nothing_else() -> None:
    program = compile_filter(constraint(deny=("kill",)))
    assert verdict(program, "kill") == EPERM
    assert verdict(program, "mount") == ALLOW
    assert verdict(program, "clone3") == ALLOW


@pytest.mark.parametrize("action", ["errno", "kill"])
def test_a_call_that_nobody_reviewed_does_not_exist(action: str) -> None:
    for given_constraint in (
        constraint("default", action=action),
        constraint(deny=("kill",), action=action),
        constraint(allow=tuple(sorted(LAUNCH)), action=action),
    ):
        assert run(compile_filter(given_constraint), NEWER_THAN_ANY_TABLE) == ENOSYS


def test_another_convention_of_the_processor_is_killed() -> None:
    program = compile_filter(constraint("default"))
    assert run(program, number_of("read"), arch=I386) == KILL
    if platform.machine() == "x86_64":
        assert run(program, X32_BIT | number_of("read")) == KILL  # x32


def test_the_same_constraint_compiles_to_the_same_bytes() -> None:
    first = constraint("default", allow=("ptrace", "bpf"), deny=("kill", "tkill"))
    second = constraint("default", allow=("bpf", "ptrace"), deny=("tkill", "kill"))
    program = compile_filter(first)
    assert compile_filter.__wrapped__(first) == program
    assert compile_filter(second) == program
    script = (
        "import sys; from egs_kernel.artifact.calls import SyscallConstraint as C\n"
        "from egs_kernel.constraints.seccomp import compile_filter\n"
        "c = C(profile='default', allow=('ptrace', 'bpf'), deny=('kill', 'tkill'), action='errno')\n"
        "sys.stdout.buffer.write(compile_filter(c))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, env={"PYTHONHASHSEED": seed}
        )
        assert done.stdout == program


def calls(names: Iterable[str]) -> str:
    text = " ".join(f"`{name}`" for name in sorted(names))
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def listed(profile: Profile) -> str:
    """What it refuses, or, when that is shorter, all that passes."""
    allowed, denied = f"Allowed:\n\n{calls(profile.allowed)}", f"Refused:\n\n{calls(profile.denied)}"
    return min(allowed, denied, key=len)


def test_the_document_lists_what_the_profiles_do() -> None:
    text = DOCUMENT.read_text()
    assert f"must\ncontain:\n\n{calls(LAUNCH)}\n" in text
    profiles = text.partition("\n### Profiles\n")[2].partition("\n### ")[0]
    assert re.findall(r"(?m)^#### `(.*)`$", profiles) == sorted(PROFILES)
    for name, profile in PROFILES.items():
        section = profiles.partition(f"#### `{name}`\n")[2].partition("\n##")[0]
        assert profile.summary in section
        assert f"{listed(profile)}\n" in section
        assert f"can see: {calls(profile.absent)}\n" in section
        assert re.findall(r"(?m)^- (.*)$", section) == [
            f"`{call}`: {rule}" for call, rules in sorted(profile.conditions.items()) for rule in rules
        ]


def test_the_example_of_the_document_is_valid() -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    table = tomllib.loads(example[1])
    plan = check(msgspec.convert(table["syscalls"], SyscallConstraint))
    assert "ptrace" in plan.allowed
    assert {"kill", "tkill"} <= plan.denied
    assert plan.action == "kill"


def test_a_call_that_this_libseccomp_does_not_know_is_not_named_in_vain() -> None:
    unknown = sorted(name for name in SYSCALLS if number_of(name) == -1)
    if not unknown:
        pytest.skip("this host's libseccomp knows every call of the table")
    with pytest.raises(Refused) as caught:
        compile_filter(constraint("default", deny=(unknown[0],)))
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert unknown[0] in caught.value.message
