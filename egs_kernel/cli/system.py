"""The running system: `egs status|ps|artifacts|reload|config|version`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from egs_kernel import __version__
from egs_kernel.artifact.envelope import MAX_ARTIFACT
from egs_kernel.audit.witnesses import witnesses_of
from egs_kernel.cli.client import ask
from egs_kernel.cli.output import columns, print_json, print_lines
from egs_kernel.config import load_config
from egs_kernel.daemon import protocol
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Mode, Reason
from egs_kernel.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.cli.main import Commands

_SHORT_ID = 16


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    _command(commands, "status", _status, "how the daemon, the gate and the artifacts are doing")
    processes = _command(commands, "ps", _processes, "the governed processes, and what authorized each")
    processes.add_argument("--why", action="store_true", help="and what constraints refused each of them")
    _add_artifacts(commands)
    _command(
        commands, "reload", _reload, "have the daemon read configuration, trust, policy and artifacts again"
    )
    config = commands.add_parser("config", help="check the configuration")
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = _command(
        actions, "check", _check_config, "read egs.toml and say what is wrong with it, or what it says"
    )
    check.add_argument("file", metavar="FILE", nargs="?", help="another file than the active one")
    _command(commands, "version", _version, "the version of egs-kernel")


def _add_artifacts(commands: Commands) -> None:
    artifacts = commands.add_parser("artifacts", help="the standing artifacts of the running daemon")
    actions = artifacts.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = _command(actions, "add", _add_artifact, "let an artifact stand")
    add.add_argument("file", metavar="FILE", help="the artifact, as `egs issue` wrote it")
    _command(actions, "list", _list_artifacts, "every artifact in the folder, and why one does not stand")
    remove = _command(actions, "remove", _remove_artifact, "remove an artifact; what runs goes on")
    remove.add_argument("id", metavar="ID", help="the artifact id, or an unambiguous beginning of it")


def _command(
    commands: Commands, word: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(word, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def _status(options: argparse.Namespace) -> int:
    from egs_kernel.cli.tables import status_lines  # noqa: PLC0415 - rich is for people only

    answer = ask(Paths.from_environment(), protocol.StatusRequest(), protocol.StatusAnswer)
    if options.json:
        _print_answer(answer)
    else:
        print_lines(status_lines(answer))
    return int(ExitCode.DONE)


def _processes(options: argparse.Namespace) -> int:
    from egs_kernel.cli.tables import process_lines, process_objects  # noqa: PLC0415 - as above

    answer = ask(Paths.from_environment(), protocol.ProcessesRequest(), protocol.ProcessesAnswer)
    if options.json:
        print_json({"processes": process_objects(answer.processes)})
    else:
        print_lines(process_lines(answer.processes, why=options.why))
    return int(ExitCode.DONE)


def _list_artifacts(options: argparse.Namespace) -> int:
    answer = ask(Paths.from_environment(), protocol.ArtifactsRequest(), protocol.ArtifactsAnswer)
    if options.json:
        _print_answer(answer)
        return int(ExitCode.DONE)
    rows = [
        (
            item.id[:_SHORT_ID] or "-",
            item.state,
            item.scope or "-",
            item.program or item.file,
            _uses(item),
            _why(item),
        )
        for item in answer.artifacts
    ]
    print_lines(columns(("ARTIFACT", "STATE", "SCOPE", "PROGRAM", "USES", "WHY"), rows))
    return int(ExitCode.DONE)


def _add_artifact(options: argparse.Namespace) -> int:
    path = Path(options.file)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_ARTIFACT + 1)
    except OSError as error:
        raise UsageError(
            Reason.NOT_FOUND, f"cannot read {path}: {error.strerror}", "Name an artifact file."
        ) from error
    return _do(protocol.AddArtifactRequest(artifact=content), options)


def _remove_artifact(options: argparse.Namespace) -> int:
    return _do(protocol.RemoveArtifactRequest(id=options.id), options)


def _reload(options: argparse.Namespace) -> int:
    return _do(protocol.ReloadRequest(), options)


def _check_config(options: argparse.Namespace) -> int:
    path = Path(options.file).absolute() if options.file else Paths.from_environment().config
    config = load_config(path)
    witnesses_of(config.witnesses)
    if options.json:
        print_json({"file": str(path), "valid": True, "config": msgspec.to_builtins(config)})
        return int(ExitCode.DONE)
    lines = [f"{path} is valid. daemon_grace {config.daemon_grace} s, {len(config.scopes)} scopes."]
    for scope in config.scopes:
        lines.append(f"  {scope.name}: {scope.mode.value}")
        if scope.holds:
            lines.append(f"  {scope.name} holds what is not authorized for {scope.hold_seconds} s")
        if scope.mode is Mode.OBSERVE:
            lines.append(f"  {scope.name} only observes: not EGS-001 compliant (clause 3.1)")
    print_lines(lines)
    return int(ExitCode.DONE)


def _version(options: argparse.Namespace) -> int:
    if options.json:
        print_json({"version": __version__})
    else:
        print_lines([f"egs-kernel {__version__}"])
    return int(ExitCode.DONE)


def _do(request: protocol.Request, options: argparse.Namespace) -> int:
    answer = ask(Paths.from_environment(), request, protocol.Done)
    if options.json:
        _print_answer(answer)
    else:
        print_lines([f"{answer.id} {answer.message}" if answer.id else answer.message])
    return int(ExitCode.DONE)


def _print_answer(answer: protocol.Answer) -> None:
    content: dict[str, Any] = msgspec.to_builtins(answer)
    content.pop("type")
    print_json(content)


def _uses(item: protocol.ArtifactStatus) -> str:
    return str(item.uses) if item.max_uses is None else f"{item.uses}/{item.max_uses}"


def _why(item: protocol.ArtifactStatus) -> str:
    return f"{item.message} [{item.reason}]" if item.reason else ""
