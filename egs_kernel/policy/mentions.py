"""What the policies of a set can tell apart at all: the rest of a request need not be handed to Cedar.

A condition reads the context by attributes that it names, and asks for membership in entities that it names. What no
policy names changes no answer, so it is left out: parsing it would take longer than deciding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from egs_kernel.policy.requests import Entity, EntityId

_BY_NAME: Final = frozenset({"Folder", "Group", "Package"})
"""Types whose entities are nowhere in an attribute: only a policy's text can name them."""
_CONTEXT: Final = {"Var": "context"}


@dataclass(frozen=True)
class Mentions:
    """What policies name.

    Attributes:
        context: attributes of the context; None: a policy takes it as a whole.
        attributes: of anything.
        entities: in what they ask for membership, and more.
    """

    context: frozenset[str] | None
    attributes: frozenset[str]
    entities: frozenset[EntityId]

    @classmethod
    def of(cls, policies: Iterable[dict[str, Any]]) -> Mentions:
        """Of policies in their JSON form (Cedar's EST)."""
        found = _Found(set(), set(), set())
        for policy in policies:
            found.look(policy)
        return cls(
            None if found.whole else frozenset(found.context),
            frozenset(found.attributes),
            frozenset(found.entities),
        )

    def of_context(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a context that a policy can read."""
        if self.context is None:
            return context
        return {name: value for name, value in context.items() if name in self.context}

    def of_entity(self, entity: Entity) -> Entity:
        """The entity below what a policy can ask for, with the attributes that one can read."""
        parents = tuple(
            parent for parent in entity.parents if parent.type not in _BY_NAME or parent in self.entities
        )
        attributes = {name: value for name, value in entity.attrs.items() if name in self.attributes}
        return Entity(entity.uid, attributes, parents)


@dataclass
class _Found:
    context: set[str]
    attributes: set[str]
    entities: set[EntityId]
    whole: bool = False

    def look(self, value: Any) -> None:
        """Go through a part of a policy."""
        if isinstance(value, list):
            for item in value:
                self.look(item)
        elif value == _CONTEXT:
            self.whole = True
        elif isinstance(value, dict):
            if isinstance(value.get("type"), str) and isinstance(value.get("id"), str):
                self.entities.add(EntityId(value["type"], value["id"]))
            for operator, operands in value.items():
                if operator in (".", "has") and isinstance(operands, dict) and "attr" in operands:
                    self.attributes.add(operands["attr"])
                    if operands.get("left") == _CONTEXT:
                        self.context.add(operands["attr"])
                        continue
                self.look(operands)
