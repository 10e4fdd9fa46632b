"""A policy set that can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cedarpy import Schema

from egs_kernel.policy.catalog import Catalog
from egs_kernel.policy.manifest import Manifest
from egs_kernel.policy.mentions import Mentions
from egs_kernel.policy.parse import Policy, invalid, parse_policies, require_valid
from egs_kernel.policy.slices import Slices
from egs_kernel.policy.vocabulary import SCHEMA


@dataclass(frozen=True)
class PolicySet:
    """A set that can be asked: its policies parsed, valid, and found by what a request is about.

    Attributes:
        manifest: what it was made of.
        digest: the SHA-256 (hex) of the canonical manifest.
        policies: by their ids.
        schema: Cedar's, parsed.
        slices: which policies a request concerns.
        mentions: what of a request they can tell apart.
    """

    manifest: Manifest
    digest: str
    policies: Mapping[str, Policy]
    schema: Schema
    slices: Slices
    mentions: Mentions

    @classmethod
    def of(cls, manifest: Manifest) -> PolicySet:
        """Parse and check what a manifest holds.

        Raises:
            UsageError: POLICY_INVALID: a text that is no Cedar, with line and column; a policy that the schema
                refuses; two policies with one id; or one without.
        """
        if manifest.schema != SCHEMA:
            raise invalid("it was checked against another schema than this version of egs-kernel has")
        schema = Schema.from_str(SCHEMA)
        policies = parse_policies(manifest.policies)
        require_valid(policies, schema)
        slices = Slices({name: policy.json for name, policy in policies.items()})
        mentions = Mentions.of(policy.json for policy in policies.values())
        return cls(manifest, manifest.digest, policies, schema, slices, mentions)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Which one it is: a node takes no older one than it had."""
        return self.manifest.version

    @property
    def catalog(self) -> Catalog:
        """Agents, workloads, tools and labels."""
        return self.manifest.catalog

    @cached_property
    def packages(self) -> frozenset[str]:
        """The packages that its catalog or its policies name."""
        named = {name for entry in (*self.catalog.tool, *self.catalog.label) for name in entry.packages}
        return frozenset(named.union(*(_packages(policy.json) for policy in self.policies.values())))

    def governs(self, scope: str) -> bool:
        """Whether executions in this scope need what it permits."""
        return self.manifest.governs(scope)


def _packages(value: Any) -> set[str]:
    """The ids of the packages that occur in a policy's JSON form."""
    if isinstance(value, list):
        return set().union(*(_packages(item) for item in value))
    if not isinstance(value, dict):
        return set()
    own = {value["id"]} if value.get("type") == "Package" and isinstance(value.get("id"), str) else set()
    return own.union(*(_packages(item) for item in value.values()))
