"""The catalog of a policy set: who is an agent or a workload, and which files are a tool or carry a label."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from egs_kernel.artifact.statement import AbsolutePath, AccountName, Label, Sha256, SpiffeId

Groups = Annotated[tuple[Label, ...], Meta(max_length=256)]
MOST_ENTRIES: Final = 10_000


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every entry of a catalog has."""

    name: Label


class Files(Named, frozen=True):
    """A tool or a label: the files that it is for. A path is as trustworthy as who may write there; a digest is exact."""

    digests: Annotated[tuple[Sha256, ...], Meta(max_length=MOST_ENTRIES)] = ()
    paths: Annotated[tuple[AbsolutePath, ...], Meta(max_length=MOST_ENTRIES)] = ()
    packages: Annotated[tuple[Label, ...], Meta(max_length=MOST_ENTRIES)] = ()

    def __post_init__(self) -> None:
        if not (self.digests or self.paths or self.packages):
            raise ValueError(f"{self.name} names no digest, path or package")


class User(Named, frozen=True):
    """Groups of a user beyond those that the host knows. `name` is the account's."""

    name: AccountName
    groups: Groups


class Workload(Named, frozen=True):
    """A service: every part that is given must be the asker's."""

    account: AccountName | None = None
    unit: Label | None = None
    spiffe_id: SpiffeId | None = None
    groups: Groups = ()

    def __post_init__(self) -> None:
        if self.account is None and self.unit is None and self.spiffe_id is None:
            raise ValueError(f"the workload {self.name} has no account, unit or spiffe_id")


class Agent(Named, frozen=True):
    """A program that decides for itself what to start: the account that it runs as, and its tools."""

    account: AccountName
    tools: Annotated[tuple[Label, ...], Meta(max_length=1024)] = ()
    groups: Groups = ()


class Catalog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that the policies of a set may call by a name."""

    agent: Annotated[tuple[Agent, ...], Meta(max_length=MOST_ENTRIES)] = ()
    workload: Annotated[tuple[Workload, ...], Meta(max_length=MOST_ENTRIES)] = ()
    user: Annotated[tuple[User, ...], Meta(max_length=MOST_ENTRIES)] = ()
    tool: Annotated[tuple[Files, ...], Meta(max_length=MOST_ENTRIES)] = ()
    label: Annotated[tuple[Files, ...], Meta(max_length=MOST_ENTRIES)] = ()

    def __post_init__(self) -> None:
        for kind in self.__struct_fields__:
            _require_distinct(kind, (entry.name for entry in getattr(self, kind)))
        _require_distinct("agent of the account", (agent.account for agent in self.agent))
        tools = {tool.name for tool in self.tool}
        for agent in self.agent:
            if unknown := sorted(set(agent.tools) - tools):
                raise ValueError(
                    f"the agent {agent.name} has the tool {unknown[0]}, which the catalog does not have"
                )
        # Nobody is two workloads: which of them would decide?
        _require_distinct(
            "workload of the account, unit and spiffe_id",
            (f"{entry.account}, {entry.unit}, {entry.spiffe_id}" for entry in self.workload),
        )

    def groups_of(self, account: str) -> tuple[str, ...]:
        """The groups that the catalog puts an account into."""
        return next((user.groups for user in self.user if user.name == account), ())

    def agent_of(self, account: str | None) -> Agent | None:
        """The agent that runs as this account."""
        return next((agent for agent in self.agent if agent.account == account), None)

    def workload_of(self, account: str | None, unit: str | None, spiffe_id: str | None) -> Workload | None:
        """The workload that somebody is: the one that asks for most of what is known of them, and for nothing else."""
        asker = (account, unit, spiffe_id)
        fitting = [
            (
                sum(part is not None for part in wanted),
                entry.spiffe_id is not None,
                entry.unit is not None,
                entry,
            )
            for entry in self.workload
            for wanted in [(entry.account, entry.unit, entry.spiffe_id)]
            if all(part in (None, given) for part, given in zip(wanted, asker, strict=True))
        ]
        return max(fitting, key=lambda found: found[:3])[3] if fitting else None


def naming(entries: Collection[Files], digest: str, path: str, package: str | None) -> tuple[str, ...]:
    """The names of those of `entries` that a file belongs to."""
    return tuple(
        entry.name
        for entry in entries
        if digest in entry.digests
        or path in entry.paths
        or (package is not None and package in entry.packages)
    )


def _require_distinct(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {kind} {name} is there twice")
        seen.add(name)
