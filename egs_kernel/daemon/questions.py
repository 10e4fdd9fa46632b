"""What this node asks policy of an artifact: what it says, completed by what this node knows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import SubjectRole, format_time
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.policy.questions import MOST_WORDS, File, Host, HostState, Lineage, Program, Question, Who

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from egs_kernel.artifact.statement import Predicate, Statement, Subject
    from egs_kernel.model import Intent, Posture


def question_of(  # noqa: PLR0913 - what is known of this node, each for itself
    statement: Statement,
    intent: Intent,
    *,
    who: Who,
    host_id: str,
    labels: Sequence[str],
    posture: Posture,
    now: datetime,
) -> Question:
    """The question whether an artifact's execution is permitted here, now.

    Program, user, arguments and host are what was found; scripts, libraries and children are what the artifact names, which
    was compared before; purpose, risk, time and approvals are what was signed.

    Raises:
        Refused: POLICY_DENIED: more words than policy is asked about.
    """
    predicate = statement.predicate
    declared, governance, lineage = predicate.intent, predicate.governance, predicate.lineage
    start, end = predicate.window
    fixed = None if declared is None else declared.argv
    environment = intent.environment
    if max(len(intent.argv or ()), len(environment or ())) > MOST_WORDS:
        raise Refused(
            Reason.POLICY_DENIED,
            f"policy is asked about {MOST_WORDS} arguments and variables at most",
            "Pass the rest in a file.",
        )
    return Question(
        scope=predicate.scope.name,
        now=format_time(now),
        who=who,
        host=Host(id=host_id, labels=tuple(labels)),
        program=Program(path=intent.program, digest=intent.digest, kind=intent.program_kind),
        scripts=_files(statement, SubjectRole.SCRIPT),
        libraries=_files(statement, SubjectRole.LIBRARY),
        children=tuple(Program(path=child.name, digest=child.digest.sha256) for child in _listed(statement)),
        argv=fixed if intent.argv is None else intent.argv,
        standing=intent.argv is None,
        cwd=intent.cwd,
        variables=None if environment is None else tuple(name for name, _value in environment),
        purpose=None if declared is None else declared.purpose,
        ticket=None if governance is None else governance.ticket,
        risk=None if governance is None else governance.risk,
        valid_seconds=int((end - start).total_seconds()),
        uses=predicate.uses,
        constraints=_constraints(predicate),
        approvals=0 if governance is None else len(set(governance.approvers)),
        lineage=Lineage()
        if lineage is None
        else Lineage(
            parent_artifact=lineage.parent_artifact,
            parent_execution=lineage.parent_execution,
            request_id=lineage.request_id,
        ),
        posture=_state(posture),
    )


def require_user(predicate: Predicate) -> None:
    """What stands for whoever executes it cannot be asked about: policy is about somebody.

    Raises:
        Refused: POLICY_DENIED.
    """
    identity = predicate.identity
    if identity is None or (identity.user is None and identity.uid is None):
        raise Refused(
            Reason.POLICY_DENIED,
            "it stands for every user, and policy permits somebody",
            "Have it issued for a user: egs issue --user NAME",
        )


def _files(statement: Statement, role: SubjectRole) -> tuple[File, ...]:
    return tuple(
        File(path=subject.name, digest=subject.digest.sha256)
        for subject in statement.subject
        if subject.role is role
    )


def _listed(statement: Statement) -> tuple[Subject, ...]:
    constraints = statement.predicate.constraints
    return statement.children if constraints is not None and constraints.lists_children else ()


def _constraints(predicate: Predicate) -> tuple[str, ...]:
    constraints = predicate.constraints
    return () if constraints is None else tuple(sorted({*constraints.words, *constraints.needs}))


def _state(posture: Posture) -> HostState:
    return HostState(
        established=not posture.problems,
        kernel=posture.kernel,
        lockdown=posture.lockdown,
        tier=posture.tier.value,
        seal=posture.seal,
        clock_synchronized=posture.clock_synchronized,
    )
