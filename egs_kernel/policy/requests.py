"""From a question to what Cedar is asked: pure, one request for each file that would run or be loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from egs_kernel.artifact.statement import parse_time
from egs_kernel.policy.catalog import Catalog, naming
from egs_kernel.policy.questions import File, HostState, Lineage, Program, Question, Risk

EXECUTE: Final = "execute"
LOAD: Final = "load"
START: Final = "start"
RUN: Final = "run"
"""The group of all actions."""
ACTIONS: Final = (EXECUTE, LOAD, START)

RISKS: Final[dict[Risk, int]] = {"low": 1, "medium": 2, "high": 3, "critical": 4}
"""How policies compare risks: `context.risk`."""

_ENCODER = msgspec.json.Encoder(order="sorted")


class EntityId(msgspec.Struct, frozen=True, order=True):
    """What Cedar writes as `type::"id"`."""

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type}::{msgspec.json.encode(self.id).decode()}"


class Entity(msgspec.Struct, frozen=True):
    """An entity with its attributes (Cedar's JSON form) and everything above it."""

    uid: EntityId
    attrs: dict[str, Any]
    parents: tuple[EntityId, ...]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request to Cedar. `context` holds its JSON form; lists of it are sets, and sorted.

    `entities` are the principal, the resource and the program that the context names.
    """

    principal: EntityId
    action: EntityId
    resource: EntityId
    context: dict[str, Any]
    entities: tuple[Entity, ...]

    @property
    def canonical(self) -> bytes:
        """The same bytes for the same request."""
        return _ENCODER.encode(self)


def requests_for(question: Question, catalog: Catalog) -> tuple[Request, ...]:
    """What must all be permitted for the question to be: its program, what that loads, and what it may start.

    Args:
        question: the intent, with what is known around it.
        catalog: of the policy set that is asked.
    """
    who = _principal(question, catalog)
    program = _file_entity("Binary", question.program, catalog)
    context = _context(question, program.uid)
    asked: list[tuple[str, str, File]] = [(EXECUTE, "Binary", question.program)]
    asked += [(LOAD, "Script", file) for file in question.scripts]
    asked += [(LOAD, "Library", file) for file in question.libraries]
    asked += [(START, "Binary", file) for file in question.children]
    return tuple(
        _request(action, who, program, _file_entity(kind, file, catalog), context)
        for action, kind, file in asked
    )


def _request(action: str, who: Entity, program: Entity, resource: Entity, context: dict[str, Any]) -> Request:
    # A program that may start itself is one entity, even when it is there under two paths.
    entities = (who, program) if resource.uid == program.uid else (who, program, resource)
    return Request(
        principal=who.uid,
        action=EntityId("Action", action),
        resource=resource.uid,
        context=context,
        entities=entities,
    )


def _principal(question: Question, catalog: Catalog) -> Entity:
    """Who asks: an agent or a workload where the catalog says so; else by SPIFFE id; else the user."""
    who = question.who
    groups = set(who.groups)
    if who.account is not None:
        groups.update(catalog.groups_of(who.account))
    if agent := catalog.agent_of(who.account):
        tools = [_reference(EntityId("Tool", name)) for name in sorted(agent.tools)]
        attributes = {"account": agent.account, "tools": tools}
        return Entity(EntityId("Agent", agent.name), attributes, _groups(groups, agent.groups))
    if workload := catalog.workload_of(who.account, who.unit, who.spiffe_id):
        return Entity(
            EntityId("Workload", workload.name), _of_workload(question), _groups(groups, workload.groups)
        )
    if who.spiffe_id is not None:
        return Entity(EntityId("Workload", who.spiffe_id), _of_workload(question), _groups(groups, ()))
    name = who.account if who.account is not None else f"#{who.uid}"
    return Entity(EntityId("User", name), _present(uid=who.uid), _groups(groups, ()))


def _of_workload(question: Question) -> dict[str, Any]:
    who = question.who
    return _present(account=who.account, unit=who.unit, spiffeId=who.spiffe_id)


def _groups(*names: set[str] | tuple[str, ...]) -> tuple[EntityId, ...]:
    return tuple(EntityId("Group", name) for name in sorted(set().union(*names)))


def _file_entity(kind: str, file: File, catalog: Catalog) -> Entity:
    attributes = {"digest": file.digest, "path": file.path}
    if isinstance(file, Program):
        attributes["kind"] = file.kind.value
    return Entity(EntityId(kind, f"sha256:{file.digest}"), attributes, tuple(sorted(_above(file, catalog))))


def _above(file: File, catalog: Catalog) -> Iterator[EntityId]:
    named = file.digest, file.path, file.package
    yield from (EntityId("Tool", name) for name in naming(catalog.tool, *named))
    yield from (EntityId("Label", name) for name in naming(catalog.label, *named))
    yield from _folders(file.path)
    if file.package is not None:
        yield EntityId("Package", file.package)


@lru_cache(maxsize=1024)
def _folders(path: str) -> tuple[EntityId, ...]:
    """Every folder above a file. The same programs are asked for again and again."""
    return tuple(EntityId("Folder", str(folder)) for folder in PurePosixPath(path).parents)


def _context(question: Question, program: EntityId) -> dict[str, Any]:
    argv = question.argv
    return _present(
        scope=question.scope,
        now=_datetime(question.now),
        weekday=parse_time(question.now).isoweekday(),
        host={"id": question.host.id, "labels": _set(question.host.labels)},
        standing=question.standing,
        argv=None if argv is None else _set(argv),
        commandLine=None if argv is None else shlex.join(argv),
        cwd=question.cwd,
        variables=None if question.variables is None else _set(question.variables),
        purpose=question.purpose,
        ticket=question.ticket,
        risk=None if question.risk is None else RISKS[question.risk],
        validSeconds=question.valid_seconds,
        uses=question.uses,
        constraints=_set(question.constraints),
        approvals=question.approvals,
        lineage=_lineage(question.lineage),
        posture=None if question.posture is None else _posture(question.posture),
        program=_reference(program),
    )


def _lineage(lineage: Lineage) -> dict[str, Any]:
    return _present(
        parentArtifact=lineage.parent_artifact,
        parentExecution=lineage.parent_execution,
        requestId=lineage.request_id,
    )


def _posture(posture: HostState) -> dict[str, Any]:
    return {
        "established": posture.established,
        "kernel": posture.kernel,
        "lockdown": posture.lockdown,
        "tier": posture.tier,
        "seal": posture.seal,
        "clockSynchronized": posture.clock_synchronized,
    }


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _set(values: tuple[str, ...]) -> list[str]:
    return sorted(set(values))


def _datetime(time: str) -> dict[str, Any]:
    return {"__extn": {"fn": "datetime", "arg": time}}


def _reference(uid: EntityId) -> dict[str, Any]:
    return {"__entity": {"type": uid.type, "id": uid.id}}
