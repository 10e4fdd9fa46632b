"""Which policies of a set a request can concern at all, by their scopes.

A policy whose scope (principal, action, resource) does not match is not satisfied and cannot fail, so leaving it out
changes no decision, no reason and no error: Cedar proves that for its own slicing, tests/unit/test_policy_properties.py
compares. It is left out by what it names: a request concerns a policy that names the principal, its type or something
above it, or nothing; and the same for the resource. That takes a few look-ups where Cedar would evaluate each policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import Any, Final

import msgspec
from cedarpy import PolicySet as Policies

from egs_kernel.policy.requests import ACTIONS, RUN, Entity, Request

_MOST_SLICES: Final = 512
"""Slices that are kept parsed. How many there can be depends on what policies name, not on what is asked."""

_Key = tuple[str, str] | str | None
"""What a scope names: an entity, a type, or nothing."""


class Slices:
    """The policies of a set, found by what a request is about."""

    def __init__(self, policies: Mapping[str, dict[str, Any]]) -> None:
        """`policies`: their JSON form (Cedar's EST) by their ids."""
        self._texts = {name: msgspec.json.encode({name: policy})[1:-1] for name, policy in policies.items()}
        self._index: dict[str, dict[_Key, dict[_Key, list[str]]]] = {action: {} for action in ACTIONS}
        for name, policy in sorted(policies.items()):
            self._add(name, policy)
        self._parsed: dict[tuple[str, ...], Policies] = {}
        self._changing = Lock()

    def of(self, request: Request) -> Policies:
        """The policies that the request can concern, parsed."""
        names = self.names(request)
        found = self._parsed.get(names)
        if found is None:
            found = self._parse(names)
            with self._changing:  # whoever serves requests may do so in several threads
                if len(self._parsed) >= _MOST_SLICES:
                    del self._parsed[next(iter(self._parsed))]
                self._parsed[names] = found
        return found

    @property
    def whole(self) -> Policies:
        """All of them, parsed."""
        return self._parse(sorted(self._texts))

    def names(self, request: Request) -> tuple[str, ...]:
        """The ids of these policies, sorted."""
        entities = {entity.uid: entity for entity in request.entities}
        resource_keys = tuple(_keys(entities[request.resource]))
        by_principal = self._index[request.action.id]
        found: list[str] = []
        for key in _keys(entities[request.principal]):
            if by_resource := by_principal.get(key):
                for other in resource_keys:
                    found += by_resource.get(other, ())
        return tuple(sorted(found))

    def _add(self, name: str, policy: dict[str, Any]) -> None:
        principal, resource = _named(policy["principal"]), _named(policy["resource"])
        for action in _actions(policy["action"]):
            self._index[action].setdefault(principal, {}).setdefault(resource, []).append(name)

    def _parse(self, names: Iterable[str]) -> Policies:
        texts = b",".join(self._texts[name] for name in names)
        document = b'{"staticPolicies":{' + texts + b'},"templates":{},"templateLinks":[]}'
        return Policies.from_json_str(document.decode())


def _keys(entity: Entity) -> Iterator[_Key]:
    yield None
    yield entity.uid.type
    yield entity.uid.type, entity.uid.id
    for parent in entity.parents:
        yield parent.type, parent.id


def _named(scope: dict[str, Any]) -> _Key:
    """What the scope of a principal or a resource names."""
    within = scope.get("in", {}) if scope["op"] == "is" else scope
    if entity := within.get("entity"):
        return entity["type"], entity["id"]
    kind: str | None = scope.get("entity_type")
    return kind


def _actions(scope: dict[str, Any]) -> tuple[str, ...]:
    """The actions that a scope is for."""
    named = scope.get("entities") or [scope["entity"]] if scope["op"] != "All" else []
    names = {entity["id"] for entity in named}
    if scope["op"] == "All" or (scope["op"] == "in" and RUN in names):
        return ACTIONS
    return tuple(action for action in ACTIONS if action in names)
