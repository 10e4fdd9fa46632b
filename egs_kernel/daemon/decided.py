"""A launch that is authorized and in the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from egs_kernel import verify
    from egs_kernel.constraints.attest import Plan
    from egs_kernel.constraints.escort import Escort
    from egs_kernel.daemon.host import Settings
    from egs_kernel.daemon.programs import Program
    from egs_kernel.daemon.trees import Tree
    from egs_kernel.daemon.verdicts import Trial
    from egs_kernel.model import Intent, TaskIdentity


@dataclass(frozen=True)
class Decided:
    """It spent its use; nothing is armed yet.

    Attributes:
        id: of the request.
        task: the launcher.
        program: what was measured.
        intent: what was asked for.
        trial: how the artifact came through.
        artifact: what authorizes it.
        authorization: as what.
        settings: in force when that was decided.
        plan: what the launcher has to do first, and what has to hold.
        escort: sees to the constraints; None: there are none.
        entered: done when the launcher is under its scope, and in its cgroup; the one of its own, if it has one.
        may_enter: when to see to its cgroup. Under constraints that is while the launcher does its steps, and we have nothing to do.
    """

    id: str
    task: TaskIdentity
    program: Program
    intent: Intent
    trial: Trial
    artifact: verify.Artifact
    authorization: verify.Authorization
    settings: Settings
    plan: Plan
    escort: Escort | None
    entered: asyncio.Task[Tree | None]
    may_enter: asyncio.Event
