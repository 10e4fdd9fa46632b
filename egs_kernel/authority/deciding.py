"""What policy says to a draft: permitted, permitted once enough people approve, or denied. Pure; the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import format_time
from egs_kernel.policy.evaluate import answer, approvals_needed
from egs_kernel.policy.questions import File, Host, Lineage, Program, Question, Who

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.authority.drafts import Draft
    from egs_kernel.authority.intent import NamedFile
    from egs_kernel.packages import Packages
    from egs_kernel.policy.evaluation import Evaluation
    from egs_kernel.policy.sets import PolicySet


@dataclass(frozen=True)
class Ruling:
    """What policy says.

    Attributes:
        evaluation: what Cedar says.
        required: with how many approvals it would be permitted; None: with none that could be had.
        unseen: what the set names and nobody here could find out, in words; "": nothing.
    """

    evaluation: Evaluation
    required: int | None
    unseen: str = ""

    @property
    def permitted(self) -> bool:
        """Whether it is permitted as it is."""
        return self.evaluation.permitted


def rule(  # noqa: PLR0913 - what a decision depends on, by name
    policy_set: PolicySet,
    draft: Draft,
    *,
    request: str,
    renews: str | None,
    approvals: int,
    labels: tuple[str, ...],
    now: datetime,
    packages: Packages | None = None,
) -> Ruling:
    """Ask the policy set.

    Args:
        policy_set: the active one.
        draft: what is asked for.
        request: its id.
        renews: the artifact that it is to follow.
        approvals: how many people approved it by now.
        labels: of the host that it is to run on, as far as they are known.
        now: the authority's clock.
        packages: of the files' host; None: not known here. The node, which does know them, asks again.
    """
    question = question_of(draft, request=request, renews=renews, approvals=approvals, labels=labels, now=now)
    if packages is not None:
        question = packages.filled(question)
    evaluation = answer(policy_set, question)
    if evaluation.permitted:
        return Ruling(evaluation, approvals)
    needed = approvals_needed(policy_set, question)
    required = needed if needed is not None and needed > approvals else None
    return Ruling(evaluation, required, _unseen(policy_set, packages))


def _unseen(policy_set: PolicySet, packages: Packages | None) -> str:
    if not policy_set.packages:
        return ""
    if packages is None:
        return "of which package a file of another host is, is not known here"
    return "" if packages.known else "this host has no dpkg to say of which package a file is"


def question_of(  # noqa: PLR0913 - as above
    draft: Draft, *, request: str, renews: str | None, approvals: int, labels: tuple[str, ...], now: datetime
) -> Question:
    """The draft as policy sees it."""
    intent, asker = draft.intent, draft.asker
    environment = intent.environment
    return Question(
        scope=draft.scope,
        now=format_time(now),
        who=Who(
            account=asker.name if asker.is_local else None,
            uid=asker.uid,
            groups=asker.groups,
            unit=asker.unit,
            spiffe_id=asker.spiffe_id,
        ),
        host=Host(id=intent.host or "", labels=labels),
        program=Program(path=intent.program.path, digest=intent.program.sha256, kind=draft.kind),
        scripts=_files(intent.scripts),
        libraries=_files(intent.libraries),
        children=tuple(Program(path=file.path, digest=file.sha256) for file in intent.children),
        argv=intent.argv,
        cwd=intent.cwd,
        variables=None if environment is None else tuple(sorted({*environment.allow, *environment.set})),
        purpose=intent.purpose,
        ticket=intent.ticket,
        risk=intent.risk,
        valid_seconds=draft.seconds,
        uses=intent.uses,
        constraints=()
        if intent.constraints is None
        else tuple(sorted({*intent.constraints.words, *intent.constraints.needs})),
        approvals=approvals,
        lineage=Lineage(parent_artifact=renews, parent_execution=intent.parent_execution, request_id=request),
    )


def _files(named: tuple[NamedFile, ...]) -> tuple[File, ...]:
    return tuple(File(path=file.path, digest=file.sha256) for file in named)
