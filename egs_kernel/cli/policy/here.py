"""A command line as the question that policy would be asked if it were requested here and now, by whoever types it."""

from __future__ import annotations

import grp
import os
import pwd
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.statement import format_time
from egs_kernel.authority.settings import load_settings
from egs_kernel.cli.elsewhere import config_of
from egs_kernel.cli.files import inspect_program
from egs_kernel.cli.intended import intent_of
from egs_kernel.errors import UsageError
from egs_kernel.identity.units import unit_of
from egs_kernel.launch import Stop, find_program
from egs_kernel.model import Reason
from egs_kernel.packages import Packages
from egs_kernel.paths import Paths
from egs_kernel.policy.manifest import ANY_SCOPE
from egs_kernel.policy.questions import File, Host, Program, Question, Who
from egs_kernel.posture import host_id
from egs_kernel.processes import cgroup_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from egs_kernel.authority.settings import Settings
    from egs_kernel.policy.sets import PolicySet

_SECONDS: Final = 300
"""Where no authority of this host says how long an artifact is valid."""


def question_here(options: argparse.Namespace, command: Sequence[str], policy_set: PolicySet) -> Question:
    """What `egs run` would have the authority ask for this command: for one use, as this user, in this folder.

    Raises:
        EgsError: a file of it cannot be read, no scope is known, or the configuration is wrong.
    """
    paths = Paths.from_environment()
    config, settings = config_of(paths), _settings(paths)
    scope = options.scope or _scope(policy_set, settings)
    try:
        path = find_program(command[0], os.environ.get("PATH", os.defpath))
    except Stop as stop:
        raise UsageError(Reason.NOT_FOUND, stop.message, "Check the command.") from stop
    intent = intent_of(path, command)
    imposed = None if settings is None else settings.constraints.get(scope)
    program = inspect_program(Path(intent["program"]["path"]))
    question = Question(
        scope=scope,
        now=format_time(datetime.now(UTC)),
        who=_who(),
        host=Host(id=host_id(config), labels=config.host_labels),
        program=Program(path=str(program.path), digest=program.digest, kind=program.kind),
        scripts=tuple(File(path=file["path"], digest=file["sha256"]) for file in intent.get("scripts", ())),
        argv=tuple(intent["argv"]),
        cwd=intent["cwd"],
        purpose=options.purpose,
        ticket=options.ticket,
        risk=options.risk,
        valid_seconds=_SECONDS if settings is None else settings.valid_for,
        uses=1,
        constraints=() if imposed is None else tuple(sorted({*imposed.words, *imposed.needs})),
    )
    return Packages(policy_set.packages).filled(question)


def _settings(paths: Paths) -> Settings | None:
    """Those of this host's authority, where it has one that this user may know of."""
    return load_settings(paths.authority_config) if os.access(paths.authority_config, os.R_OK) else None


def _scope(policy_set: PolicySet, settings: Settings | None) -> str:
    if settings is not None and settings.default_scope is not None:
        return settings.default_scope
    scopes = policy_set.manifest.scopes
    if len(scopes) == 1 and scopes[0] != ANY_SCOPE:
        return scopes[0]
    raise UsageError(
        Reason.USAGE, f"the set is for {', '.join(scopes)}: which scope is meant?", "Name one: --scope S"
    )


def _who() -> Who:
    uid = os.geteuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:
        account = None
    groups = tuple(sorted({name for group in {os.getegid(), *os.getgroups()} if (name := _group(group))}))
    return Who(account=account, uid=uid, groups=groups, unit=unit_of(cgroup_of(os.getpid())))


def _group(number: int) -> str | None:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return None
