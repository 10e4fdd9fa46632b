from __future__ import annotations

import itertools
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.entries import Refusal
from egs_kernel.constraints.refusals import (
    LANDLOCK_ACCESS,
    LANDLOCK_DOMAIN,
    SECCOMP,
    DomainSeen,
    Refused,
    parse,
)
from egs_kernel.daemon.refusals import FIRST_PAUSE, KINDS, LONGEST_PAUSE, OTHERS, Source, Tallies

HEAD: Final = "audit(1795464867.741:106): auid=4294967295 uid=0 gid=0 ses=4294967295 "
NAMES: Final = {161: "chroot", 435: "clone3"}
SOURCE: Final = Source(7, "test", "ab" * 32, 4711)


def resolve(architecture: int, number: int) -> str:
    return f"{'' if architecture == 0xC000003E else 'i386 '}{NAMES.get(number, f'call {number}')}"


def seccomp(number: int, code: str, *, comm: str = '"python"', arch: str = "c000003e") -> bytes:
    return (
        f'{HEAD}subj=unconfined pid=16735 comm={comm} exe="/usr/bin/python3.11" sig=0 arch={arch} '
        f"syscall={number} compat=0 ip=0x7f5f29c514f7 code={code}\0"
    ).encode()


# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (seccomp(161, "0x50000"), "chroot"),
        (seccomp(161, "0x80000000"), "chroot (killed)"),
        (seccomp(161, "0x7ffc0000"), "chroot (passed)"),
        (seccomp(161, "0x0"), "chroot (killed)"),
        (seccomp(9999, "0x50000"), "call 9999"),
        (seccomp(161, "0x50000", arch="40000003"), "i386 chroot"),
        (seccomp(435, "0x80000000"), "clone3 (killed)"),
        (seccomp(435, "0x50000"), None),
    ],
)
def test_what_a_filter_did(message: bytes, expected: str | None) -> None:
    found = parse(SECCOMP, message, resolve)
    assert found == (None if expected is None else Refused("syscalls", expected, 1795464867.741, pid=16735))


def test_what_landlock_refused_and_whose_domain_it_was() -> None:
    """As Linux 6.18 wrote them."""
    refused = parse(
        LANDLOCK_ACCESS,
        b'audit(1795467321.4:9): domain=1a6fdd1 blockers=fs.read_file path="/etc/hostname" dev="vda" ino=12',
        resolve,
    )
    assert refused == Refused("filesystem", "fs.read_file /etc/hostname", 1795467321.4, domain="1a6fdd1")
    port = parse(
        LANDLOCK_ACCESS, b"audit(1.2:9): domain=1a blockers=net.connect_tcp daddr=127.0.0.1 dest=2", resolve
    )
    assert port == Refused("network", "net.connect_tcp 2", 1.2, domain="1a")
    for blocker, word in (("signal", "process"), ("abstract_unix_socket", "network")):
        message = f"audit(1.2:9): domain=1a blockers=scope.{blocker} opid=1".encode()
        assert parse(LANDLOCK_ACCESS, message, resolve) == Refused(word, f"scope.{blocker}", 1.2, domain="1a")
    domain = parse(
        LANDLOCK_DOMAIN,
        b'audit(1.2:9): domain=1a status=allocated mode=enforcing pid=11 uid=0 exe="/x" comm="y"',
        resolve,
    )
    assert domain == DomainSeen("1a", 11, 1.2)
    assert parse(LANDLOCK_DOMAIN, b"audit(1.2:9): domain=1a status=deallocated denials=3", resolve) is None


def test_a_name_cannot_add_a_field() -> None:
    """The kernel writes names with blanks in hexadecimal; and the first of two fields counts."""
    assert parse(SECCOMP, seccomp(161, "0x50000", comm="78207069643D31"), resolve) == Refused(
        "syscalls", "chroot", 1795464867.741, pid=16735
    )
    twice = seccomp(161, "0x50000").rstrip(b"\0") + b" pid=1 syscall=2"
    assert parse(SECCOMP, twice, resolve) == Refused("syscalls", "chroot", 1795464867.741, pid=16735)


@given(st.integers(0, 2000), st.binary())
def test_whatever_comes_is_understood_or_left(kind: int, text: bytes) -> None:
    assert parse(kind, text, resolve) is None


@pytest.mark.parametrize("lacks", [b"audit(", b"pid=", b"syscall=", b"code=", b"arch="])
def test_a_message_that_lacks_something_is_left(lacks: bytes) -> None:
    assert parse(SECCOMP, seccomp(161, "0x50000").replace(lacks, b"x="), resolve) is None


# -- counting ----------------------------------------------------------------------------------------


def test_the_first_is_told_at_once_and_the_others_by_their_number_after_pauses_that_grow() -> None:
    tallies, told = Tallies(), []
    for tenth in range(3000):
        now = tenth / 10
        entry = tallies.take(SOURCE, "syscalls", "chroot", now)
        if entry is not None:
            told.append((now, entry.count))
    times = [now for now, _ in told]
    assert times[0] == 0.0
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == [FIRST_PAUSE, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert sum(count for _, count in told) + sum(entry.count for entry in tallies.rest()) == 3000
    assert tallies.of(7) == [("syscalls", "chroot", 3000)]
    assert tallies.totals == {("test", "syscalls"): 3000}


def test_who_stops_being_refused_is_told_of_to_the_end() -> None:
    tallies = Tallies()
    for _ in range(5):
        tallies.take(SOURCE, "syscalls", "chroot", 0.0)
    assert not list(tallies.due(FIRST_PAUSE / 2))
    (entry,) = tallies.due(FIRST_PAUSE)
    assert (entry.count, entry.execution, entry.scope, entry.pid) == (4, 7, "test", 4711)
    assert not list(tallies.due(1000.0))


def test_many_kinds_are_told_together() -> None:
    tallies = Tallies()
    entries = [tallies.take(SOURCE, "filesystem", f"fs.read_file /{n}", 0.0) for n in range(10 * KINDS)]
    told = [entry.what for entry in entries if entry is not None]
    assert len(told) == KINDS + 1
    assert told[-1] == OTHERS
    assert sum(count for _, _, count in tallies.of(7)) == 10 * KINDS


def test_executions_without_end_take_no_memory_without_end() -> None:
    tallies = Tallies()
    for execution in range(5000):
        tallies.take(Source(execution, "test", "", None), "syscalls", "chroot", 0.0)
    assert not tallies.of(0)
    assert tallies.of(4999)
    assert tallies.totals["test", "syscalls"] == 5000


def test_what_somebody_else_has_found_is_counted_and_not_told_again() -> None:
    tallies = Tallies()
    for _ in range(2):
        tallies.add(Refusal(execution=7, scope="test", word="resources", what="memory", count=3))
    assert tallies.totals == {("test", "resources"): 6}
    assert tallies.of(7) == [("resources", "memory", 6)]
    assert not list(tallies.rest())
