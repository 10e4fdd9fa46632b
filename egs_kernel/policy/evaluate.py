"""What a policy set says to a request: pure and deterministic. The same set and request give the same bytes.

Cedar decides: denied unless something permits, and one forbid wins over all permits. On top of that nothing but
caution: a policy that fails to evaluate denies, where Cedar would go on without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from cedarpy import AuthzResult, Decision, is_authorized

from egs_kernel.policy.evaluation import Effect, Evaluation
from egs_kernel.policy.questions import Question
from egs_kernel.policy.requests import RUN, Entity, EntityId, Request, requests_for
from egs_kernel.policy.sets import PolicySet

MOST_APPROVALS: Final = 16

_RUN: Final = EntityId("Action", RUN)
_ENCODER = msgspec.json.Encoder(order="sorted")


def evaluate(policy_set: PolicySet, request: Request) -> Evaluation:
    """What the set says to one request."""
    canonical = request.canonical
    result = _ask(policy_set, request)
    # Cedar keeps both in hash tables: their order is another one each time.
    determining = tuple(sorted(result.diagnostics.reasons))
    errors = tuple(sorted(result.diagnostics.errors))
    permitted = result.decision is Decision.Allow and not errors
    return Evaluation(
        effect=Effect.PERMIT if permitted else Effect.DENY,
        determining=determining,
        advice=_advice(policy_set, determining),
        errors=errors,
        policy_digest=policy_set.digest,
        request_digest=hashlib.sha256(canonical).hexdigest(),
    )


def evaluate_all(policy_set: PolicySet, requests: Sequence[Request]) -> Evaluation:
    """What the set says to requests that belong together: permitted when each is.

    When one is not, what determined that is told, and nothing of those that are.
    """
    each = [evaluate(policy_set, request) for request in requests]
    if not each:
        raise ValueError("nothing is asked")
    denied = [evaluation for evaluation in each if not evaluation.permitted]
    telling = denied or each
    determining = tuple(sorted({name for evaluation in telling for name in evaluation.determining}))
    digests = b"".join(bytes.fromhex(evaluation.request_digest) for evaluation in each)
    return Evaluation(
        effect=Effect.DENY if denied else Effect.PERMIT,
        determining=determining,
        advice=_advice(policy_set, determining),
        errors=tuple(sorted({error for evaluation in telling for error in evaluation.errors})),
        policy_digest=policy_set.digest,
        request_digest=each[0].request_digest if len(each) == 1 else hashlib.sha256(digests).hexdigest(),
    )


def answer(policy_set: PolicySet, question: Question) -> Evaluation:
    """What the set says to a question: to everything that would run or be loaded."""
    return evaluate_all(policy_set, requests_for(question, policy_set.catalog))


def approvals_needed(policy_set: PolicySet, question: Question) -> int | None:
    """With how many approvals it would be permitted, at least; None: with none that could be had.

    Nothing is granted by this: when they are there, it is asked again.
    """
    counts = range(MOST_APPROVALS + 1)
    mentioned = policy_set.mentions.context
    if mentioned is not None and "approvals" not in mentioned:
        counts = range(1)  # no policy tells them apart
    for count in counts:
        if answer(policy_set, msgspec.structs.replace(question, approvals=count)).permitted:
            return count
    return None


def _ask(policy_set: PolicySet, request: Request) -> AuthzResult:
    """Ask Cedar, with the policies that the request concerns, and with what of it they can tell apart.

    Requests are of the schema as requests.py makes them (test_policy_properties.py): Cedar need not look each time.
    """
    mentions = policy_set.mentions
    entities = [mentions.of_entity(entity) for entity in request.entities]
    asked: dict[str, Any] = {
        "principal": _identified(request.principal),
        "action": _identified(request.action),
        "resource": _identified(request.resource),
        "context": _ENCODER.encode(mentions.of_context(request.context)).decode(),
    }
    if _RUN in mentions.entities:
        entities.append(Entity(request.action, {}, (_RUN,)))  # what the schema says of it
    return is_authorized(asked, policy_set.slices.of(request), _ENCODER.encode(entities).decode())


def _identified(entity: EntityId) -> dict[str, str]:
    return {"type": entity.type, "id": entity.id}


def _advice(policy_set: PolicySet, determining: tuple[str, ...]) -> tuple[str, ...]:
    texts = (policy_set.policies[name].advice for name in determining)
    return tuple(dict.fromkeys(text for text in texts if text))
