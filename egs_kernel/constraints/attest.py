"""Establish that a launcher did to itself what was signed: by the kernel's word, while ptrace holds it still.

The launcher is not trusted. What it installed that is irrevocable stays true until its exec; what it could take back
is looked at again in the new image (`escort.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from egs_kernel.constraints.filters import read_filters, read_logged
from egs_kernel.constraints.proc import Status, not_attested, task_identity
from egs_kernel.constraints.reach import Reach
from egs_kernel.constraints.steps import NoNewPrivs, Seccomp, Step, in_order
from egs_kernel.constraints.tracing import while_stopped
from egs_kernel.errors import HostLacks
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from egs_kernel.model import TaskIdentity


@dataclass(frozen=True)
class Before:
    """What was true of a launcher before it was sent its steps.

    Attributes:
        filters: how many seccomp filters it had.
        capabilities: its effective ones, as the kernel's bits.
    """

    filters: int
    capabilities: int = 0

    @classmethod
    def of(cls, pid: int) -> Before:
        """Read it.

        Raises:
            Refused: it is gone, or the kernel does not say.
        """
        status = Status(pid)
        return cls(filters=status.number("Seccomp_filters"), capabilities=status.number("CapEff", base=16))


@dataclass(frozen=True)
class Stopped:
    """A process that the calling thread holds by ptrace: what a check looks at.

    Attributes:
        pid: its number. It cannot be borne by another one while it is held.
        status: its /proc/PID/status, read since it was stopped.
        before: what was true of it before its steps.
    """

    pid: int
    status: Status
    before: Before


Check = Callable[[Stopped], None]
"""Raises `not_attested` unless the process is as was signed."""


@dataclass(frozen=True)
class Part:
    """One thing that must hold.

    Attributes:
        step: what the launcher does for it; None: nothing.
        installed: checked when the launcher says that it is ready, before anything is armed.
        executed: checked in the new image, before its first instruction. For what the launcher could have taken back
            meanwhile, and for what only the new image has.
    """

    step: Step | None = None
    installed: Check | None = None
    executed: Check | None = None


@dataclass(frozen=True)
class Plan:
    """What an artifact's constraints come to at a launch.

    Attributes:
        parts: beside the filters.
        filters: seccomp programs, in the order in which they are installed.
        reach: what the daemon itself does to the launcher.
    """

    parts: tuple[Part, ...] = ()
    filters: tuple[bytes, ...] = ()
    reach: Reach = field(default_factory=Reach)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What the launcher does, in order. Whoever does anything sets no_new_privs first."""
        asked = [part.step for part in self.parts if part.step is not None]
        asked += [Seccomp(filter=program) for program in self.filters]
        others = [step for step in asked if not isinstance(step, NoNewPrivs)]
        return in_order([NoNewPrivs(), *others]) if asked else ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do and nothing to look at."""
        return not self.parts and not self.filters and self.reach.unlimited

    @property
    def follows(self) -> bool:
        """Whether the new image is looked at."""
        return any(part.executed is not None for part in self.parts)


@dataclass(frozen=True)
class Restrictions:
    """What holds a process down, read while it was stopped.

    Attributes:
        filters: its seccomp programs, the oldest first.
        logged: whether the kernel reports what each of them refuses.
        filter_count: how many the kernel says there are.
        no_new_privs: whether no exec can raise its privileges.
        threads: how many threads it has.
        task: the process, immune to pid reuse.
    """

    filters: tuple[bytes, ...]
    logged: tuple[bool, ...]
    filter_count: int
    no_new_privs: bool
    threads: int
    task: TaskIdentity


def attest(pid: int, plan: Plan, before: Before) -> TaskIdentity:
    """Stop process `pid`, check that it is as the plan has it, let it go on.

    Returns:
        The process that was attested: arm this one, and nothing that came to bear its pid since.

    Raises:
        Refused: anything is different, or it could not be established.
    """
    return while_stopped(pid, lambda: inspect(pid, plan, before))


def inspect(pid: int, plan: Plan, before: Before) -> TaskIdentity:
    """`attest` for a process that the calling thread holds already.

    Raises:
        Refused: anything is different, or it could not be established.
    """
    found = Stopped(pid, Status(pid), before)
    require_single(found)
    if plan.steps:
        _require_filters(_restrictions(pid, found.status), plan.filters, before.filters)
    for part in plan.parts:
        if part.installed is not None:
            part.installed(found)
    return task_identity(pid)


def confirm(pid: int, plan: Plan, before: Before) -> None:
    """What must hold in the new image; the calling thread holds it before its first instruction.

    Raises:
        Refused: it does not.
    """
    found = Stopped(pid, Status(pid), before)
    for part in plan.parts:
        if part.executed is not None:
            part.executed(found)


def require_single(found: Stopped) -> None:
    """No other thread can appear while this one is held: those that could make it are counted here.

    Raises:
        Refused: it has more than one.
    """
    threads = found.status.number("Threads")
    if threads != 1:
        raise not_attested(
            found.pid, f"has {threads} threads, and what one of them installs does not bind the others"
        )


def restrictions(pid: int) -> Restrictions:
    """Stop the process, read what restricts it, let it go on.

    Raises:
        Refused: it is gone, somebody traces it already, it does not stop, or the kernel does not let us look.
    """
    return while_stopped(pid, lambda: _restrictions(pid, Status(pid)))


def installed_filters(pid: int) -> list[bytes]:
    """The seccomp programs of a process as `struct sock_filter` arrays, the oldest first.

    Raises:
        Refused: they cannot be read.
    """
    return list(restrictions(pid).filters)


def require_attestation() -> None:
    """Check that this process is one that the kernel shows filters to.

    Raises:
        HostLacks: it runs under a seccomp filter itself, or lacks the capabilities.
    """
    status = Status(os.getpid())
    if status.number("Seccomp") != 0:
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            "this process runs under a seccomp filter, so the kernel shows it nobody's filters",
            "Remove from egsd.service what installs one (docs/systemd.md lists the directives).",
        )
    held = status.number("CapEff", base=16)
    for name, bit in (("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21)):
        if not held >> bit & 1:
            raise HostLacks(
                Reason.KERNEL_UNSUPPORTED,
                f"this process lacks {name}, so it cannot read seccomp filters",
                f"Give {name} to egsd (CapabilityBoundingSet= in egsd.service).",
            )


def _restrictions(pid: int, status: Status) -> Restrictions:
    count = status.number("Seccomp_filters")
    return Restrictions(
        filters=read_filters(pid, count),
        logged=read_logged(pid, count),
        filter_count=count,
        no_new_privs=status.number("NoNewPrivs") == 1,
        threads=status.number("Threads"),
        task=task_identity(pid),
    )


def _require_filters(found: Restrictions, expected: tuple[bytes, ...], before: int) -> None:
    pid = found.task.pid
    if not found.no_new_privs:
        raise not_attested(pid, "did not set no_new_privs")
    count = before + len(expected)
    if expected and not found.filters:
        raise not_attested(pid, "has no seccomp filter")
    if len(found.filters) != count or found.filter_count != count:
        raise not_attested(pid, f"has {found.filter_count} seccomp filters instead of {count}")
    if found.filters[before:] != expected:
        raise not_attested(pid, "installed another seccomp filter than the authorization artifact demands")
    if not all(found.logged[before:]):
        raise not_attested(pid, "installed a seccomp filter without having its refusals reported")
