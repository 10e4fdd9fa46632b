"""What an artifact's words about files and networks come to, before any kernel is asked."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.artifact.reach import FilesystemConstraint, NetworkConstraint
from egs_kernel.constraints.landlock import (
    BASES,
    DEGRADES,
    HANDLED,
    NEEDS_ABI,
    ON_FILES,
    Access,
    PortAccess,
    Scope,
    plan,
)
from egs_kernel.constraints.network import compile_socket_filter
from egs_kernel.constraints.reach import enforceable
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.verify import authorize
from tests.unit.interpreting import ALLOW, EPERM, I386, KILL, run
from tests.unit.issuing import NOW, host, intent
from tests.unit.test_verify import artifact

NEWEST: Final = 7
FILES: Final = FilesystemConstraint(base="system", read=("/in",), write=("/out",), execute=("/run",))
PORTS: Final = NetworkConstraint(mode="ports", connect=(443, 80), bind=(80,))

DOCUMENT: Final = Path(__file__).parents[2] / "docs/constraints.md"


# -- the words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["", "relative", "/a/", "//a", "/a//b", "/a/./b", "/a/../b", "/..", "/a/.", "/a\0b", "/a\n", "/a/\u202e"],
)
def test_a_root_has_one_form(path: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"read": [path]}, FilesystemConstraint)


@pytest.mark.parametrize("path", ["/", "/a", "/a b/ü", "/.hidden", "/a/..b", "/a/..."])
def test_roots(path: str) -> None:
    assert msgspec.convert({"read": [path]}, FilesystemConstraint).read == (path,)


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (FilesystemConstraint, {}, "at least one of"),
        (FilesystemConstraint, {"degrade": ["truncate"]}, "at least one of"),
        (FilesystemConstraint, {"read": ["/a", "/a"]}, "twice"),
        (FilesystemConstraint, {"base": "debian"}, "base"),
        (FilesystemConstraint, {"base": "system", "degrade": ["refer"]}, "degrade"),
        (FilesystemConstraint, {"reed": ["/a"]}, "unknown field"),
        (NetworkConstraint, {}, "mode"),
        (NetworkConstraint, {"mode": "host"}, "mode"),
        (NetworkConstraint, {"mode": "none", "connect": [1]}, "mode none"),
        (NetworkConstraint, {"mode": "none", "udp": "refused"}, "mode none"),
        (NetworkConstraint, {"mode": "none", "abstract": "own"}, "mode none"),
        (NetworkConstraint, {"mode": "ports"}, "use mode none"),
        (NetworkConstraint, {"mode": "ports", "connect": [0]}, "connect"),
        (NetworkConstraint, {"mode": "ports", "connect": [65536]}, "connect"),
        (NetworkConstraint, {"mode": "ports", "connect": [-1]}, "connect"),
        (NetworkConstraint, {"mode": "ports", "bind": [80, 80]}, "twice"),
    ],
)
def test_words_that_make_no_sense_are_refused(kind: Any, words: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(words, kind)


# -- the ruleset ---------------------------------------------------------------------------------------


def test_nothing_is_planned_when_landlock_has_no_part_in_it() -> None:
    assert plan(None, None, 0) is None
    assert plan(None, NetworkConstraint(mode="none"), 0) is None


def test_a_ruleset_handles_every_right_that_there_is() -> None:
    made = plan(FILES, None, NEWEST)
    assert made is not None
    assert made.handled == HANDLED == Access((1 << 16) - 1)
    assert made.handled_ports == PortAccess(0)
    assert made.degraded == ()


def test_who_may_write_may_not_read_or_execute_and_nobody_makes_devices() -> None:
    made = plan(FILES, None, NEWEST)
    assert made is not None
    read, write, execute = (rule.access for rule in made.paths[:3])
    assert [rule.field for rule in made.paths[:3]] == [
        "constraints.filesystem.read[0]",
        "constraints.filesystem.write[0]",
        "constraints.filesystem.execute[0]",
    ]
    assert read == Access.READ_FILE | Access.READ_DIR
    assert execute == Access.EXECUTE | Access.READ_FILE
    assert write == HANDLED & ~(read | execute | Access.MAKE_CHAR | Access.MAKE_BLOCK)
    assert all(rule.field == "" for rule in made.paths[3:])


def test_the_base_makes_nothing_and_writes_to_devices_alone() -> None:
    for rule in BASES["system"]:
        if rule.access & ~(Access.READ_FILE | Access.READ_DIR | Access.EXECUTE):
            assert rule.path in ("/dev/null", "/dev/full", "/dev/tty")
            assert not rule.access & ~ON_FILES & ~Access.READ_DIR


@pytest.mark.parametrize("abi", range(NEWEST + 1))
def test_an_older_kernel_enforces_all_of_it_or_the_host_cannot(abi: int) -> None:
    if abi >= 5:
        assert plan(FILES, None, abi) == plan(FILES, None, NEWEST)
        return
    with pytest.raises(Refused) as caught:
        plan(FILES, None, abi)
    assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
    assert "Landlock" in caught.value.message


@pytest.mark.parametrize(("abi", "lost"), [(2, "truncate device-control"), (3, "device-control"), (5, "")])
def test_what_stays_unrestricted_is_what_the_artifact_consents_to(abi: int, lost: str) -> None:
    consenting = msgspec.structs.replace(FILES, degrade=("truncate", "device-control"))
    made = plan(consenting, None, abi)
    assert made is not None
    assert made.degraded == tuple(lost.split())
    assert made.handled == HANDLED & ~sum((DEGRADES[word] for word in lost.split()), Access(0))
    assert all(rule.access & ~made.handled == Access(0) for rule in made.paths)
    for word in lost.split():
        other = msgspec.structs.replace(FILES, degrade=tuple(set(DEGRADES) - {word}))
        with pytest.raises(Refused, match=f"restricting {word} takes version {NEEDS_ABI[DEGRADES[word]]}"):
            plan(other, None, abi)


def test_no_consent_makes_up_for_a_kernel_without_landlock() -> None:
    consenting = msgspec.structs.replace(FILES, degrade=("truncate", "device-control"))
    with pytest.raises(Refused, match="no Landlock"):
        plan(consenting, None, 0)


def test_ports() -> None:
    made = plan(None, PORTS, 4)
    assert made is not None
    assert made.ports == (
        (80, PortAccess.CONNECT_TCP | PortAccess.BIND_TCP),
        (443, PortAccess.CONNECT_TCP),
    )
    assert (made.handled, made.paths) == (Access(0), ())
    assert made.handled_ports == PortAccess.CONNECT_TCP | PortAccess.BIND_TCP
    with pytest.raises(Refused, match="TCP ports takes version 4"):
        plan(None, PORTS, 3)


def test_what_leaves_the_domain() -> None:
    own = msgspec.structs.replace(PORTS, abstract="own")
    for network, signals, scoped in ((own, False, 1), (PORTS, True, 2), (None, True, 2), (own, True, 3)):
        made = plan(None, network, 6, own_signals=signals)
        assert made is not None
        assert made.scoped == Scope(scoped)
        with pytest.raises(Refused, match="takes version 6"):
            plan(None, network, 5, own_signals=signals)


ROOTS: Final = {"base": "system", "read": ["/in"]}
WORDS: Final = {
    "filesystem, which takes Landlock of version 2 (Linux 5.19)": ({"filesystem": ROOTS}, 2),
    "filesystem.truncate, which takes Landlock of version 3 (Linux 6.2)": ({"filesystem": ROOTS}, 3),
    "filesystem.deviceControl, which takes Landlock of version 5 (Linux 6.10)": ({"filesystem": ROOTS}, 5),
    "network.ports, which takes Landlock of version 4 (Linux 6.7)": (
        {"network": {"mode": "ports", "connect": [443]}},
        4,
    ),
    "network.abstract, which takes Landlock of version 6 (Linux 6.12)": (
        {"network": {"abstract": "own", "mode": "ports", "udp": "allowed"}},
        6,
    ),
    "process.signals, which takes Landlock of version 6 (Linux 6.12)": ({"process": {"signals": "own"}}, 6),
}


@pytest.mark.parametrize("missing", WORDS)
def test_a_host_that_lacks_it_refuses_and_names_it(missing: str) -> None:
    words, since = WORDS[missing]
    for abi in range(NEWEST + 1):
        facts = host(enforceable=enforceable(abi, namespaces=True) | {"process"})
        if abi >= since:
            if abi >= max(since for _, since in WORDS.values()):
                authorize(artifact({"constraints": words}), intent(), facts, NOW)
            continue
        with pytest.raises(Refused) as caught:
            authorize(artifact({"constraints": words}), intent(), facts, NOW)
        assert caught.value.reason is Reason.CONSTRAINT_UNENFORCEABLE
        assert missing in caught.value.message


def test_a_daemon_without_the_capabilities_refuses_a_network_namespace() -> None:
    none = artifact({"constraints": {"network": {"mode": "none"}}})
    authorize(none, intent(), host(enforceable=enforceable(NEWEST, namespaces=True)), NOW)
    with pytest.raises(
        Refused, match=r"cannot enforce network\.none, which takes user and network namespaces"
    ):
        authorize(none, intent(), host(enforceable=enforceable(NEWEST, namespaces=False)), NOW)


def test_an_artifact_that_consents_needs_less() -> None:
    consenting = artifact(
        {"constraints": {"filesystem": {**ROOTS, "degrade": ["truncate", "device-control"]}}}
    )
    authorize(consenting, intent(), host(enforceable=enforceable(2, namespaces=False)), NOW)


# -- the filter ----------------------------------------------------------------------------------------

X86: Final = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of x86-64")
SOCKET, SOCKETPAIR, SENDTO, SENDMSG, SENDMMSG, IO_URING_SETUP = 41, 53, 44, 46, 307, 425
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
FASTOPEN: Final = 0x20000000


def sockets(mode: str, udp: bool, family: int, kind: int, protocol: int) -> bool:  # noqa: FBT001
    """Whether the documentation permits a socket."""
    if family == UNIX:
        return True
    if mode == "none":
        return family in (INET, INET6, NETLINK)
    if family == NETLINK:
        return protocol == 0
    tcp = kind & 0xF == 1 and protocol in (0, 6)
    return family in (INET, INET6) and (tcp or (udp and kind & 0xF == 2 and protocol in (0, 17)))


@X86
@settings(max_examples=400)
@given(
    mode=st.sampled_from(["none", "ports"]),
    udp=st.booleans(),
    family=st.integers(0, 50),
    kind=st.integers(0, 15),
    flags=st.sampled_from([0, 0o2000000, 0o4000]),
    protocol=st.one_of(st.integers(0, 20), st.sampled_from([132, 136, 262, 2**31])),
)
def test_the_filter_lets_pass_the_sockets_that_are_documented(
    mode: str,
    udp: bool,  # noqa: FBT001
    family: int,
    kind: int,
    flags: int,
    protocol: int,
) -> None:
    expected = ALLOW if sockets(mode, udp, family, kind, protocol) else EPERM
    assert (
        run(compile_socket_filter(mode, udp=udp, listens=True), SOCKET, (family, kind | flags, protocol))
        == expected
    )


@X86
@given(
    st.integers(0, 50), st.integers(0, 5), st.integers(0, 20), st.integers(1, 2**32 - 1), st.integers(0, 2)
)
def test_what_the_kernel_cuts_off_an_argument_opens_nothing(
    family: int, kind: int, protocol: int, upper: int, where: int
) -> None:
    """The kernel takes 32 bits of what a filter sees as 64."""
    arguments = [family, kind, protocol]
    program = compile_socket_filter("ports", udp=False, listens=True)
    plain = run(program, SOCKET, tuple(arguments))
    arguments[where] |= upper << 32
    assert run(program, SOCKET, tuple(arguments)) in (plain, EPERM)


@X86
@pytest.mark.parametrize("mode", ["none", "ports"])
def test_other_ways_to_a_socket(mode: str) -> None:
    program = compile_socket_filter(mode, udp=False, listens=True)
    assert run(program, IO_URING_SETUP, (1, 0)) == EPERM
    assert run(program, SOCKETPAIR, (UNIX, 1, 0)) == ALLOW
    assert run(program, SOCKETPAIR, (30, 1, 0)) == EPERM  # AF_TIPC
    for call, flags in ((SENDTO, 3), (SENDMSG, 2), (SENDMMSG, 3)):
        for value, answer in ((0, ALLOW), (0x4000, ALLOW), (FASTOPEN, EPERM), (FASTOPEN | 0x4000, EPERM)):
            arguments = tuple(value if index == flags else 0 for index in range(6))
            assert run(program, call, arguments) == (answer if mode == "ports" else ALLOW)
    assert run(program, 20, (), I386) == KILL
    listen = 50
    assert run(program, listen, (3, 1)) == ALLOW
    without_ports = compile_socket_filter(mode, udp=False, listens=False)
    assert run(without_ports, listen, (3, 1)) == (EPERM if mode == "ports" else ALLOW)


@X86
def test_the_filter_is_the_same_each_time() -> None:
    first = compile_socket_filter("ports", udp=True, listens=True)
    compile_socket_filter.cache_clear()
    assert compile_socket_filter("ports", udp=True, listens=True) == first


# -- the documentation ---------------------------------------------------------------------------------


def test_the_base_is_documented_path_by_path() -> None:
    section = DOCUMENT.read_text().split('#### `base = "system"`')[1].split("\n#")[0]
    said = {
        path: words.strip()
        for words, paths in re.findall(r"^\| ([^|]+) \| ((?:`/[^`]+`(?:, )?)+) \|$", section, re.MULTILINE)
        for path in re.findall(r"`([^`]+)`", paths)
    }
    names = {
        "execute": Access.EXECUTE | Access.READ_FILE,
        "read": Access.READ_FILE | Access.READ_DIR,
        "read, write": Access.READ_FILE | Access.READ_DIR | Access.WRITE_FILE | Access.TRUNCATE,
        "read, write, device control": Access.READ_FILE
        | Access.READ_DIR
        | Access.WRITE_FILE
        | Access.IOCTL_DEV,
    }
    assert {path: names[words] for path, words in said.items()} == {
        rule.path: rule.access for rule in BASES["system"]
    }
