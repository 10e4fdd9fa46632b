"""What /proc says of a process that has to be attested; what cannot be read is a refusal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.errors import Refused
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import read_whole, start_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator


class Status:
    """A /proc/PID/status, read once.

    Lines end with a newline and with nothing else: the process chooses its own name, and the kernel escapes
    only the newline in it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            content = read_whole(f"/proc/{pid}/status")
        except OSError as error:
            raise not_attested(pid, f"is gone: {error.strerror}") from error
        self._values: dict[bytes, list[bytes]] = {}
        for line in content.split(b"\n"):
            name, _, value = line.partition(b":")
            self._values.setdefault(name, []).append(value)

    def number(self, field: str, base: int = 10) -> int:
        """The number of one field.

        Raises:
            Refused: the kernel does not show it.
        """
        value = self._value(field)
        try:
            return int(value, base)
        except ValueError as error:
            raise not_attested(self._pid, f"has an unreadable {field}: {value!r}") from error

    def numbers(self, field: str) -> tuple[int, ...]:
        """The numbers of a field that has several, such as `Uid`.

        Raises:
            Refused: the kernel does not show it.
        """
        value = self._value(field)
        try:
            return tuple(map(int, value.split()))
        except ValueError as error:
            raise not_attested(self._pid, f"has an unreadable {field}: {value!r}") from error

    def _value(self, field: str) -> bytes:
        values = self._values.get(field.encode(), [])
        if len(values) != 1:
            raise not_attested(
                self._pid,
                f"cannot be inspected: this kernel does not show {field}",
                "Use a kernel of 5.10 or later.",
            )
        return values[0]


def working_directory(pid: int) -> str:
    """Its working directory.

    Raises:
        Refused: it is gone.
    """
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError as error:
        raise not_attested(pid, f"is gone: {error.strerror}") from error


def environment(pid: int) -> tuple[tuple[str, str], ...]:
    """The environment that it was executed with.

    Raises:
        Refused: it is gone.
    """
    try:
        return parse_environment(read_whole(f"/proc/{pid}/environ"))
    except OSError as error:
        raise not_attested(pid, f"is gone: {error.strerror}") from error


def parse_environment(content: bytes) -> tuple[tuple[str, str], ...]:
    """The (name, value) pairs in a /proc/PID/environ. Pure."""
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if entry)
    return tuple((name, value) for name, _, value in pairs)


def descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """The open descriptors of a process, each with what the kernel calls it.

    Raises:
        Refused: it is gone, or the kernel does not say.
    """
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            yield int(entry.name), str(entry.readlink())
    except OSError as error:
        raise not_attested(pid, f"cannot be inspected: its descriptors: {error.strerror}") from error


def no_new_privs(pid: int) -> bool:
    """Whether no exec of this process can raise its privileges.

    Raises:
        Refused: it is gone, or the kernel does not say.
    """
    return Status(pid).number("NoNewPrivs") == 1


def seccomp_count(pid: int) -> int:
    """How many seccomp filters the process has.

    Raises:
        Refused: it is gone, or the kernel does not say (before 5.9).
    """
    return Status(pid).number("Seccomp_filters")


def task_identity(pid: int) -> TaskIdentity:
    """The process that bears this number now.

    Raises:
        Refused: it is gone.
    """
    try:
        return TaskIdentity(pid, start_ticks(pid))
    except ProcessLookupError as error:
        raise not_attested(pid, "is gone") from error


def not_attested(pid: int, problem: str, next_step: str = "") -> Refused:
    """The refusal of a launcher that is not as it was signed, or of which that cannot be established."""
    return Refused(
        Reason.CONSTRAINT_NOT_ATTESTED,
        f"launcher {pid} {problem}",
        next_step or "Start the program with the `egs run` of this version, and not under another tool.",
    )
