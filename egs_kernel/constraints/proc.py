"""What /proc says of a process that has to be attested; what cannot be read is a refusal."""

from __future__ import annotations

from pathlib import Path

from egs_kernel.errors import Refused
from egs_kernel.model import Reason, TaskIdentity
from egs_kernel.processes import start_ticks


class Status:
    """A /proc/PID/status, read once.

    Lines end with a newline and with nothing else: the process chooses its own name, and the kernel escapes
    only the newline in it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            self._lines = Path(f"/proc/{pid}/status").read_bytes().split(b"\n")
        except OSError as error:
            raise not_attested(pid, f"is gone: {error.strerror}") from error

    def number(self, field: str, base: int = 10) -> int:
        """The number of one field.

        Raises:
            Refused: the kernel does not show it.
        """
        wanted = field.encode()
        values = [rest for name, _, rest in (line.partition(b":") for line in self._lines) if name == wanted]
        if len(values) != 1:
            raise not_attested(
                self._pid,
                f"cannot be inspected: this kernel does not show {field}",
                "Use a kernel of 5.10 or later.",
            )
        try:
            return int(values[0], base)
        except ValueError as error:
            raise not_attested(self._pid, f"has an unreadable {field}: {values[0]!r}") from error


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
