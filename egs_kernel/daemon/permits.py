"""Step 11, second half: this node asks the active policy set again, with what it knows itself."""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING, Final

from egs_kernel.daemon.host import now
from egs_kernel.daemon.policy import require_permitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egs_kernel import verify
    from egs_kernel.artifact.statement import Identity
    from egs_kernel.daemon.host import Host
    from egs_kernel.model import Intent
    from egs_kernel.policy.questions import Question, Who

_NAMED: Final = 1000
"""Characters of policies' names in an entry of the record."""


def permit(host: Host, artifact: verify.Artifact, intent: Intent) -> str:
    """By what the active policy set permits it here, now, for the record; "" where the scope is under none.

    Raises:
        Refused: POLICY_DENIED or POLICY_UNAVAILABLE.
    """
    if not host.policy.governs(artifact.statement.predicate.scope.name):
        return ""
    evaluation = host.policy.ask(lambda: _question(host, artifact, intent))
    require_permitted(evaluation)
    named = ", ".join(evaluation.determining)
    return f"permitted by {named}" if len(named) <= _NAMED else f"permitted by {named[:_NAMED]}…"


def _question(host: Host, artifact: verify.Artifact, intent: Intent) -> Question:
    # What is asked is of no use to a daemon without policy: its memory is tested.
    from egs_kernel.daemon.questions import question_of, require_user  # noqa: PLC0415 - see above

    predicate = artifact.statement.predicate
    if intent.argv is None:
        require_user(predicate)
    return question_of(
        artifact.statement,
        intent,
        who=_who(intent, predicate.identity),
        host_id=host.settings.host_id,
        labels=host.settings.config.host_labels,
        posture=host.posture,
        now=now(),
    )


def _who(intent: Intent, identity: Identity | None) -> Who:
    """Who launches it, as the kernel says; of what stands, for whom it was signed."""
    from egs_kernel.policy.questions import Who  # noqa: PLC0415 - as above

    if intent.argv is not None:
        account = _account(intent.uid)
        groups = _names(intent.groups)
        return Who(
            account=account, uid=intent.uid, groups=groups, unit=intent.unit, spiffe_id=intent.spiffe_id
        )
    user = None if identity is None else identity.user
    uid = None if identity is None else identity.uid
    account = user or _account(uid)
    return Who(account=account, uid=uid, groups=_groups_of(account))


def _account(uid: int | None) -> str | None:
    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _groups_of(account: str | None) -> tuple[str, ...]:
    try:
        return () if account is None else _names(os.getgrouplist(account, pwd.getpwnam(account).pw_gid))
    except KeyError:
        return ()


def _names(numbers: Iterable[int]) -> tuple[str, ...]:
    """The names of groups; one without a name is none that a policy could name."""
    found = []
    for number in sorted(set(numbers)):
        try:
            found.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return tuple(found)
