"""What the kernel's audit messages say about refusals: the messages, understood. Pure.

The kernel writes one when a seccomp filter kills, when it fails a call and was installed with
SECCOMP_FILTER_FLAG_LOG (as the launcher does, and the daemon attests), and, since Linux 6.15, when Landlock refuses. It
does that whether or not anybody audits anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SECCOMP: Final = 1326  # linux/audit.h: AUDIT_SECCOMP
LANDLOCK_ACCESS: Final = 1423
LANDLOCK_DOMAIN: Final = 1424

_ACTIONS: Final = {0x7FFC0000: " (passed)", 0x80000000: " (killed)", 0x00000000: " (killed)"}
"""linux/seccomp.h, less what the filter gives along; the message has it so."""

_TIME: Final = re.compile(rb"audit\(([0-9]+\.[0-9]+):[0-9]+\):")

_WORDS: Final = {"net.": "network", "scope.abstract_unix_socket": "network", "scope.signal": "process"}
"""The constraint word for what Landlock calls the rights that were missing; those on files begin with `fs.`."""

ABSENT: Final = frozenset({"clone3"})
"""Calls that the profiles answer with ENOSYS so that programs use an older one: that is no refusal."""

Resolve = Callable[[int, int], str]
"""The name of a system call: by the convention (linux/audit.h, AUDIT_ARCH_*) and the number."""


@dataclass(frozen=True)
class Refused:
    """One refusal.

    Attributes:
        word: the constraint's.
        what: what was refused, such as a call's name.
        time: when, seconds since the epoch, by a clock that is some milliseconds coarse.
        pid: the process; None: only the domain is known.
        domain: the Landlock domain, when it was one.
    """

    word: str
    what: str
    time: float
    pid: int | None = None
    domain: str | None = None


@dataclass(frozen=True)
class DomainSeen:
    """A Landlock domain, which the kernel describes once: with the process that made it, and when."""

    domain: str
    pid: int
    time: float


def parse(kind: int, text: bytes, resolve: Resolve) -> Refused | DomainSeen | None:
    """Understand one message; None: it tells of nothing of ours.

    Args:
        kind: its type.
        text: what the kernel wrote. Names that a process chose are quoted, or in hexadecimal when they have blanks or
            quotes: they cannot add a field.
        resolve: names system calls.
    """
    if kind not in (SECCOMP, LANDLOCK_ACCESS, LANDLOCK_DOMAIN):
        return None
    fields = _fields(text)
    try:
        time = float(_TIME.match(text)[1])  # type: ignore[index] # TypeError as of any other text
        if kind == SECCOMP:
            return _call(fields, resolve, time)
        if kind == LANDLOCK_ACCESS:
            return Refused(*_access(fields), time, domain=fields["domain"])
        if kind == LANDLOCK_DOMAIN and "pid" in fields:
            return DomainSeen(fields["domain"], int(fields["pid"]), time)
    except (KeyError, TypeError, ValueError):
        pass  # of a kernel that writes other messages than those we know: shown by nobody rather than wrongly
    return None


def _fields(text: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.decode("utf-8", "backslashreplace").rstrip("\0\n").split(" "):
        name, equals, value = word.partition("=")
        if equals:
            found.setdefault(name, value)
    return found


def _call(fields: dict[str, str], resolve: Resolve, time: float) -> Refused | None:
    how = _ACTIONS.get(int(fields["code"], 16), "")
    name = resolve(int(fields["arch"], 16), int(fields["syscall"]))
    if name in ABSENT and not how:
        return None
    return Refused("syscalls", f"{name}{how}", time, pid=int(fields["pid"]))


def _access(fields: dict[str, str]) -> tuple[str, str]:
    """Constraint word and what: the kernel names the rights that were missing, such as `fs.write_file`."""
    missing = fields["blockers"]
    place = fields.get("path") or fields.get("dest") or fields.get("src") or ""
    what = f"{missing} {place}".strip()
    word = next((word for start, word in _WORDS.items() if missing.startswith(start)), "filesystem")
    return word, what.replace('"', "")
