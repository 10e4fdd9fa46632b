"""A policy set: named, versioned, addressed by its content, signed.

Its signed form is a DSSE envelope around canonical JSON, the manifest; its digest is the SHA-256 of the manifest,
whoever signed it. Everything that decides is in it: the policies' text, the schema and the catalog, so any Cedar
engine can check a decision by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgspec
from cedarpy import Schema
from msgspec import Meta

from egs_kernel.artifact import canonical
from egs_kernel.artifact.statement import Label, ScopeName
from egs_kernel.policy.catalog import Catalog
from egs_kernel.policy.parse import Policy, parse_policies, require_valid
from egs_kernel.policy.slices import Slices
from egs_kernel.policy.vocabulary import SCHEMA

ANY_SCOPE: Final = "*"
MAX_POLICIES: Final = 10_000
"""Most policies of a set."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. `scopes`: where executions need what this set permits; `*` is every scope of the host.

    `policies` are Cedar texts by the names of their files; `schema` is the one that they were checked against.
    """

    type: Annotated[str, Meta(pattern="^urn:egs-001:policy-set:v1$")] = msgspec.field(name="_type")
    name: ScopeName
    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    scopes: Annotated[tuple[ScopeName | str, ...], Meta(min_length=1, max_length=256)]
    description: Label | None = None
    policies: Annotated[dict[Label, str], Meta(min_length=1, max_length=1000)]
    schema: str
    catalog: Catalog = Catalog()


TYPE: Final = "urn:egs-001:policy-set:v1"


@dataclass(frozen=True)
class PolicySet:
    """A set that can be asked: its policies parsed, valid, and found by what a request is about.

    Attributes:
        manifest: what it was made of.
        digest: the SHA-256 (hex) of the canonical manifest.
        policies: by their ids.
        schema: Cedar's, parsed.
        slices: which policies a request concerns.
    """

    manifest: Manifest
    digest: str
    policies: Mapping[str, Policy]
    schema: Schema
    slices: Slices

    @classmethod
    def of(cls, manifest: Manifest) -> PolicySet:
        """Parse and check what a manifest holds.

        Raises:
            UsageError: POLICY_INVALID: a text that is no Cedar, with line and column; a policy that the schema
                refuses; two policies with one id; or one without.
        """
        schema = Schema.from_str(SCHEMA)
        policies = parse_policies(manifest.policies)
        require_valid(policies, schema)
        slices = Slices({name: policy.json for name, policy in policies.items()})
        return cls(manifest, digest_of(manifest), policies, schema, slices)

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
    def scopes(self) -> frozenset[str]:
        """The scopes that are under it."""
        return frozenset(self.manifest.scopes)

    def governs(self, scope: str) -> bool:
        """Whether executions in this scope need what it permits."""
        return scope in self.scopes or ANY_SCOPE in self.scopes


def payload_of(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest: what is signed."""
    return canonical.encode(msgspec.to_builtins(manifest))


def digest_of(manifest: Manifest) -> str:
    """The SHA-256 (hex) that names a set."""
    return hashlib.sha256(payload_of(manifest)).hexdigest()
