"""What an artifact says of what runs under it, in the few words that the monitor compares. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.artifact.drift import DriftConstraint
from egs_kernel.artifact.envelope import parse_envelope
from egs_kernel.artifact.limits import ResourceConstraint
from egs_kernel.artifact.reach import NetworkConstraint
from egs_kernel.artifact.statement import parse_statement

if TYPE_CHECKING:
    from egs_kernel.artifact.statement import Predicate

Files = tuple[tuple[str, str], ...]
"""Paths and SHA-256."""


class Authorized(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact, shared by everything that runs under it.

    Attributes:
        id: of the artifact.
        program: path and digest.
        files: scripts and libraries.
        children: what it may start, by path and digest.
        signers: key ids.
        not_after: seconds since 1970.
        parent: the artifact that it continues, "" for none.
        variables: names that it permits in the environment; None: every one that the gate lets pass.
        capabilities: that it may have at most; None: it does not say.
        may_fork: whether it may have processes of its own.
        lists_children: whether it may start its children, and nothing else.
        makes_code: whether executable memory of no file is allowed or refused; None: it does not say.
        resources: ceilings.
        network: ports.
        drift: responses, and what is expected.
    """

    id: str
    program: tuple[str, str]
    files: Files = ()
    children: Files = ()
    signers: tuple[str, ...] = ()
    not_after: float = float("inf")
    parent: str = ""
    variables: frozenset[str] | None = None
    capabilities: int | None = None
    may_fork: bool = True
    makes_code: bool | None = None
    lists_children: bool = False
    resources: ResourceConstraint | None = None
    network: NetworkConstraint | None = None
    drift: DriftConstraint | None = None

    @property
    def own_namespaces(self) -> frozenset[str]:
        """Kinds of the namespaces that a launch under it is given before its exec."""
        alone = self.network is not None and self.network.mode == "none"
        return frozenset({"user", "net"}) if alone else frozenset()

    @property
    def paths(self) -> frozenset[str]:
        """Of every file that it names."""
        return frozenset(path for path, _ in (self.program, *self.files, *self.children))


def authorized(envelope: str) -> Authorized:
    """What the envelope of an artifact says, as it stands in the record. Whoever recorded it has verified it.

    Raises:
        Refused: it is no artifact of this version.
    """
    parsed = parse_envelope(envelope.encode())
    statement = parse_statement(parsed.payload)
    predicate = statement.predicate
    constraints = predicate.constraints
    process = None if constraints is None else constraints.process
    code = None if constraints is None else constraints.code
    return Authorized(
        id=hashlib.sha256(parsed.payload).hexdigest(),
        program=(statement.program.name, statement.program.digest.sha256),
        files=tuple((item.name, item.digest.sha256) for item in statement.code),
        children=tuple((item.name, item.digest.sha256) for item in statement.children),
        signers=tuple(sorted(parsed.signatures)),
        not_after=predicate.window[1].timestamp(),
        parent=(predicate.lineage and predicate.lineage.parent_artifact) or "",
        variables=_variables(predicate),
        capabilities=None if process is None else process.kept,
        may_fork=process is None or process.children != "none",
        makes_code=None if code is None else code.anonymous == "allowed",
        lists_children=constraints is not None and constraints.lists_children,
        resources=None if constraints is None else constraints.resources,
        network=None if constraints is None else constraints.network,
        drift=None if constraints is None else constraints.drift,
    )


def _variables(predicate: Predicate) -> frozenset[str] | None:
    rules = None if predicate.intent is None else predicate.intent.environment
    return None if rules is None else frozenset((*rules.allow, *rules.set))
