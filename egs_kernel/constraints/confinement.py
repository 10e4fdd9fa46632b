"""What the daemon itself does to one launcher, so that what it executes reaches only the files and networks signed.

In two turns, for the launcher's own steps lie between them: the namespaces first, since a new user namespace would undo
what a launcher did to its capabilities; the Landlock domain last, since the launcher needs files for its steps.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from egs_kernel.constraints.attest import Part, Stopped
from egs_kernel.constraints.handed import require_no_network
from egs_kernel.constraints.injection import MACHINE, injected, may_inject
from egs_kernel.constraints.landlock import EXECUTE, PathRule, Plan
from egs_kernel.constraints.namespaces import NEEDED, isolate, may_isolate, network_of
from egs_kernel.constraints.proc import Status, not_attested, task_identity
from egs_kernel.constraints.reach import SINCE_ABI, enforceable
from egs_kernel.constraints.rulesets import create, impose, kernel_abi
from egs_kernel.constraints.tracing import hold
from egs_kernel.constraints.view import View, open_root, require_trusted_view, view_of
from egs_kernel.errors import HostLacks, Refused
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel.constraints.reach import Reach
    from egs_kernel.model import TaskIdentity


def require_landlock() -> None:
    """Check that this host can enforce everything that takes Landlock.

    Raises:
        HostLacks: it cannot enforce some; the message lists it.
    """
    abi = kernel_abi()
    lacking = sorted(set(SINCE_ABI) - enforceable(abi, namespaces=False))
    if not may_inject():
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            f"filesystem, network and signals cannot be enforced on {os.uname().machine}",
            f"Use a host of the architecture {MACHINE}.",
        )
    if lacking:
        has = f"Landlock of version {abi}" if abi else "no Landlock"
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            f"{has}: cannot enforce {', '.join(lacking)}",
            "Boot Linux 6.12 or later, with landlock among its LSMs (boot parameter lsm=); "
            "or issue artifacts that do without (docs/constraints.md).",
        )


def require_namespaces() -> None:
    """Check that this process can give launchers a network namespace.

    Raises:
        HostLacks: the kernel has none, or the capabilities are missing.
    """
    if not may_isolate():
        raise HostLacks(
            Reason.KERNEL_UNSUPPORTED,
            "network.none cannot be enforced: it takes network and user namespaces, and " + ", ".join(NEEDED),
            "Give these capabilities to egsd (CapabilityBoundingSet= in egsd.service).",
        )


class Confinement:
    """One launcher's. First `look`, then `isolate`; `part` is for its attestation; `close` at the end, whatever happened.

    Args:
        task: the launcher. Nothing is done to another process that came to bear its number.
        uid: the user who asked. Nothing is done to a program that the launcher executed and that has other privileges:
            it would not know what became of it (that is why the kernel wants no_new_privs before Landlock).
        reach: what it may reach.
        program: a descriptor of what it will execute.
        named: paths that belong to what it executes: they need not be signed as roots as well.
    """

    def __init__(
        self, task: TaskIdentity, uid: int, reach: Reach, program: int, named: Iterable[str]
    ) -> None:
        self._task = task
        self._uid = uid
        self._pid = task.pid
        self._reach = reach
        self._program = program
        self._named = tuple(named)
        self._view: View | None = None
        self._network: tuple[int, int] | None = None
        self._ruleset: int | None = None

    def look(self) -> None:
        """See where its files are, and make its ruleset, unless `isolate` has time for that. Nothing is done to it.

        Raises:
            Refused: it is not who may be confined, or a path is not there.
        """
        require_trusted_view(self._pid)
        self._view = view_of(self._pid)
        if not self._reach.own_network:
            self._make_ruleset()

    def isolate(self) -> None:
        """Give it its namespaces; stops it meanwhile. For a thread that ends when this fails (`hold`).

        Raises:
            Refused: it is not who may be confined, a path is not there, or the kernel does not do it.
        """
        if self._reach.own_network:
            hold(self._pid, self._isolate)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to send to the launcher with its steps."""
        return () if self._ruleset is None else (self._ruleset,)

    @property
    def part(self) -> Part:
        """Its part of the attestation: the domain is imposed, and the new image is where it was put."""
        return Part(
            installed=None if self._reach.ruleset is None else self._impose, executed=self._require_place
        )

    def close(self) -> None:
        """Forget the ruleset; a domain that was made of it stays."""
        if self._ruleset is not None:
            os.close(self._ruleset)
            self._ruleset = None

    def _make_ruleset(self) -> None:
        if self._reach.ruleset is not None:
            self._ruleset = self._create(self._reach.ruleset)

    def _create(self, plan: Plan) -> int:
        own = tuple(PathRule(path, EXECUTE & plan.handled, "") for path in self._named if plan.handled)
        root = open_root(self._pid)
        try:
            return create(replace(plan, paths=(*plan.paths, *own)), root, (self._program,))
        finally:
            os.close(root)

    def _isolate(self) -> None:
        self._require_itself(Status(self._pid))
        with injected(self._pid) as process:
            isolate(process, self._make_ruleset)  # its files stay where they were seen
        self._network = network_of(self._pid)

    def _impose(self, process: Stopped) -> None:
        if self._ruleset is None:
            raise not_attested(self._pid, "was sent no ruleset")
        self._require_itself(process.status)
        with injected(process.pid) as called:
            held = process.status.number("NoNewPrivs") == 1
            impose(called, self._ruleset, kernel_abi(), no_new_privs=held)
        self._require_view(process.pid)

    def _require_place(self, process: Stopped) -> None:
        """A launcher may have entered namespaces of a helper's since, where other files lie below the same folders."""
        self._require_view(process.pid)
        if self._network is not None and network_of(process.pid) != self._network:
            raise not_attested(process.pid, "has left its network namespace")
        if self._reach.no_sockets:
            require_no_network(process.pid)

    def _require_itself(self, status: Status) -> None:
        """While it is held, since which `status` was read: it is who asked, and has what an exec without privileges gives."""
        if task_identity(self._pid) != self._task:
            raise Refused(Reason.LAUNCHER_LOST, "the launcher has gone, and another process bears its pid")
        permitted, ambient = status.number("CapPrm", base=16), status.number("CapAmb", base=16)
        own_namespace = self._network is not None  # where it has all capabilities, until its exec
        gained = self._uid != 0 and permitted != ambient and not own_namespace
        if set(status.numbers("Uid")) != {self._uid} or len(set(status.numbers("Gid"))) != 1 or gained:
            raise not_attested(self._pid, "has executed a program with other privileges")

    def _require_view(self, pid: int) -> None:
        if view_of(pid) != self._view:
            raise not_attested(pid, "has changed what files it has")
