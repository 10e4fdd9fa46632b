"""Whether a policy set leaves nobody who may execute anything: said before it is activated.

Nothing here decides. Cedar is asked with everything unknown: what is denied then is denied whatever the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cedarpy import Decision, PartialAuthzResult, is_authorized_partial

from egs_kernel.policy.evaluation import Effect
from egs_kernel.policy.requests import EXECUTE, RUN
from egs_kernel.policy.sets import PolicySet
from egs_kernel.policy.source import Case

REMEDY: Final = (
    "Break-glass, and what else stays possible then: docs/policy.md, When a set locks everyone out."
)


def warnings(policy_set: PolicySet, cases: Iterable[Case] | None = None) -> tuple[str, ...]:
    """Why it may lock everyone out, in words.

    Args:
        policy_set: the set.
        cases: its tests, where they are known.
    """
    result = _asked_by_anybody(policy_set)
    if result.decision is Decision.Deny:
        named = sorted(result.diagnostics.reasons)  # what could permit is among them
        because = ", ".join(name for name in named if policy_set.policies[name].effect == "forbid")
        said = f"{because} forbids it" if because else "nothing permits it"
        return (f"it locks everyone out: whatever is asked, {said}",)
    if cases is not None and not any(case.expect == Effect.PERMIT.value for case in cases):
        return ("none of its tests expects a permit: they do not show that anybody may execute anything",)
    return ()


def _asked_by_anybody(policy_set: PolicySet) -> PartialAuthzResult:
    """The answer to somebody unknown who wants to execute something unknown."""
    request = {"principal": None, "action": f'Action::"{EXECUTE}"', "resource": None, "context": None}
    return is_authorized_partial(request, policy_set.slices.whole, _ACTIONS)


_ACTIONS: Final = [
    {
        "uid": {"type": "Action", "id": EXECUTE},
        "attrs": {},
        "parents": [{"type": "Action", "id": RUN}],
    }
]
